"""The page of a detection run: figures, precision and recall, the worst misses and false alarms."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import draw_bounding_boxes

from ..evaluation.report import BLUE, GREEN, GREY, ORANGE, Section, Tile, curves, data_url, drawing, page
from ..training.task import About
from .boxes import iou, overlaps
from .dataset import Detections, Picture
from .metrics import OVERLAPS, Answers, Scores

SHOWN = 12
# Enlarged until the longer side has so many pixels, so that small pictures can be seen.
SIDE = 256


class Mistake(NamedTuple):
    """A `box` of a picture (by number) with its class: missed, or seen with a `score` where there is none."""

    picture: int
    box: Tensor
    label: int
    score: float


def render_detection_report(about: About, split: Sequence[Picture], answers: Answers | None) -> str:
    """The page; `answers` are those to the pictures of `split`, None where nothing was held out."""
    which = next((e["split"] for e in reversed(about.entries) if e["split"] != "train"), "none")
    drawn = curves(about.entries, "ap", "AP; in training: class hits", "")
    sections: list[Section] = [("Training", "In training the rate of objects whose class was seen.", drawn)]
    tiles: list[Tile] = []
    if answers is not None:
        figures = answers.scores.figures
        names = (("ap", f"AP, {which} ({len(answers.found):,} pictures)"), ("ap50", "AP50"), ("ap75", "AP75"),
                 ("recall", "recall, 100 boxes a picture"))  # fmt: skip
        tiles = [(f"{figures[name]:.4f}", called) for name, called in names if name in figures]
        misses, alarms = mistakes(split, answers.found)
        sections += [
            ("Precision and recall", "The mean over the classes, by the overlap that counts as found; and each class "
             "at an overlap of 0.5.", precision_recall(answers.scores, about.classes)),
            ("By class and size", "", _tables(answers.scores)),
            ("Worst misses", "Objects that no box of their class overlaps by half, the largest first; grey boxes "
             "are what was asked for.", _gallery(split, answers.found, misses, about.classes)),
            ("Worst false alarms", "Boxes that overlap no object of their class by half, the surest first.",
             _gallery(split, answers.found, alarms, about.classes)),
        ]  # fmt: skip
    return page(about.title, about.recipe, about.entries, about.environment, tiles, sections)


def precision_recall(scores: Scores, classes: Sequence[str]) -> str:
    """Precision by recall: the mean over the classes at three overlaps, and each class at 0.5; an SVG drawing."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    whole, each = figure.subplots(1, 2)
    recalls = np.linspace(0, 1, scores.precision.shape[1])
    there = ~np.isnan(scores.precision[0]).all(axis=0)
    for overlap, colour in ((0.5, BLUE), (0.75, ORANGE), (0.9, GREEN)):
        if there.any():
            mean = np.nanmean(scores.precision[OVERLAPS.index(overlap)][:, there], axis=1)
            whole.plot(recalls, mean, color=colour, lw=1.4, label=f"overlap {overlap:g}")
    for number, label in enumerate(classes[:20]):
        if there[number]:
            each.plot(recalls, scores.precision[0, :, number], lw=1.1, label=label)
    for axis in (whole, each):
        axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02))
        axis.grid(color="#e3e7ec", lw=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.lines:
            axis.legend(frameon=False, fontsize=8, loc="best")
    return drawing(figure)


def mistakes(pictures: Sequence[Picture], found: Sequence[Detections]) -> tuple[list[Mistake], list[Mistake]]:
    """The misses, largest first, and the false alarms, surest first.

    Boxes are matched as COCO does, surest first, each with the object of its class that it overlaps most, by half at
    least. A box in a crowd is no false alarm; of a miss only boxes that are surer than 0.3 count as seen.
    """
    misses, alarms = [], []
    for number, (picture, detections) in enumerate(zip(pictures, found, strict=True)):
        objects, labels = picture.boxes[picture.objects], picture.labels[picture.objects]
        crowds, crowd_labels = picture.boxes[picture.crowd], picture.labels[picture.crowd]
        free = torch.ones(len(objects), dtype=torch.bool)
        shared, within = iou(detections.boxes, objects), overlaps(detections.boxes, crowds)
        for row, (score, label) in enumerate(
            zip(detections.scores.tolist(), detections.labels.tolist(), strict=True)
        ):
            fits = torch.where(free & (labels == label), shared[row], 0.0)
            if len(fits) and fits.max() >= 0.5:
                if score > 0.3:
                    free[fits.argmax()] = False
            elif not (within[row][crowd_labels == label] >= 0.5).any():
                alarms.append(Mistake(number, detections.boxes[row], label, score))
        misses += [Mistake(number, objects[row], int(labels[row]), 0.0) for row in free.nonzero().flatten().tolist()]

    def size(one: Mistake) -> float:
        return float((one.box[2:] - one.box[:2]).prod())

    return sorted(misses, key=size, reverse=True), sorted(alarms, key=lambda one: one.score, reverse=True)


def drawn_boxes(
    pixels: Tensor, boxes: Tensor, texts: Sequence[str], colours: Sequence[str], side: int = SIDE
) -> Tensor:
    """A picture uint8 (1 or 3, h, w) with boxes and their texts on it: uint8 (3, h', w').

    Enlarged by a whole number where its longer side is under `side` pixels, so that lines and letters are fine.
    """
    times = max(1, side // max(pixels.shape[-2:]))
    canvas = pixels.expand(3, -1, -1).repeat_interleave(times, dim=1).repeat_interleave(times, dim=2).contiguous()
    if not len(boxes):
        return canvas
    # An edge at a picture's rim is drawn on its last pixel.
    edges = torch.tensor([canvas.shape[2], canvas.shape[1]] * 2) - 1
    placed = torch.minimum((boxes * times).round(), edges.to(boxes.dtype))
    placed = torch.cat((torch.minimum(placed[:, :2], placed[:, 2:]), placed[:, 2:]), dim=1)
    marked: Tensor = draw_bounding_boxes(canvas, placed, list(texts), list(colours), width=max(1, min(times, 3)))
    return marked


def _gallery(
    pictures: Sequence[Picture], found: Sequence[Detections], chosen: Sequence[Mistake], classes: Sequence[str]
) -> str:
    """The pictures of the first mistakes: the mistake in orange, what was asked for in grey."""
    if not chosen:
        return "<p>None.</p>"
    figures = []
    for mistake in chosen[:SHOWN]:
        picture = pictures[mistake.picture]
        boxes = torch.cat((picture.boxes, mistake.box.unsqueeze(0)))
        texts = [""] * len(picture.boxes) + [classes[mistake.label]]
        pixels = picture.read(3 if isinstance(picture.pixels, Tensor) and len(picture.pixels) == 3 else 1)
        image = drawn_boxes(pixels, boxes, texts, [GREY] * len(picture.boxes) + [ORANGE])
        surest = f" ({mistake.score:.0%})" if mistake.score else ""
        here = _instead(found[mistake.picture], mistake, classes)
        figures.append(
            f"<figure><img alt='{html.escape(classes[mistake.label])}' src='{data_url(image)}'><figcaption>"
            f"<b>{html.escape(classes[mistake.label])}</b>{surest}{html.escape(here)}<br>"
            f"<span class='soft'>{html.escape(Path(picture.name).name)}</span></figcaption></figure>"
        )
    return f"<div class='mistakes'>{''.join(figures)}</div>"


def _instead(found: Detections, miss: Mistake, classes: Sequence[str]) -> str:
    """What was seen in the place of a missed object."""
    if miss.score or not len(found.boxes):
        return ""
    shared = iou(found.boxes, miss.box.unsqueeze(0))[:, 0]
    row = int((shared * (found.labels != miss.label) * found.scores).argmax())
    if shared[row] < 0.5 or found.labels[row] == miss.label:
        return ""
    return f", taken for {classes[int(found.labels[row])]} ({found.scores[row].item():.0%})"


def _tables(scores: Scores) -> str:
    """Figures by class, and by the objects' size."""

    def cell(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    rows = "".join(
        f"<tr><th scope='row'>{html.escape(one.label)}</th><td>{one.objects:,}</td><td>{cell(one.ap)}</td>"
        f"<td>{cell(one.ap50)}</td><td>{cell(one.recall)}</td></tr>"
        for one in scores.per_class
    )
    rows += "".join(
        f"<tr><th scope='row'>{size} objects</th><td></td><td>{cell(scores.figures.get(f'ap_{size}'))}</td><td></td>"
        f"<td>{cell(scores.figures.get(f'recall_{size}'))}</td></tr>"
        for size in ("small", "medium", "large")
    )
    head = "<tr><th></th><th>objects</th><th>AP</th><th>AP50</th><th>recall</th></tr>"
    return f"<div class='scroll'><table class='matrix'>{head}{rows}</table></div>"
