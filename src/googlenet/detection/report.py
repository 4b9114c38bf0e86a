"""The report of a detection run: metrics, precision-recall curves, the worst false negatives and false positives."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.utils import draw_bounding_boxes

from ..evaluation.fonts import drawn_names, font_file, numbers_note
from ..evaluation.plots import Curve, legend_label, new_figure, style_axes, to_svg, training_curves
from ..evaluation.report import Cell, GalleryItem, ReportInfo, Section, Tile, render, render_run_page
from ..palette import BLUE, GRAY, GREEN, VERMILLION
from .boxes import intersection_over_area
from .data.dataset import Detections, Sample
from .metrics import IOU_THRESHOLDS, CocoMetrics, EvaluatedSplit

MAX_ERRORS = 12
MAX_CURVES = 20  # classes in the precision-recall chart
# Smaller images are enlarged to about this longer side, in pixels.
GALLERY_SIDE = 256
# Objects without a detection above this score are false negatives.
MIN_SCORE = 0.3


class Error(NamedTuple):
    """A false negative, or a false positive with its `score`: a `box` of class `label` on an image."""

    image_index: int
    box: Tensor
    label: int
    score: float


def render_detection_report(info: ReportInfo, split: Sequence[Sample], predictions: EvaluatedSplit | None) -> str:
    """Render the page; `predictions` are those of the images of `split`, None without held-out images."""
    note = "Training accuracy is the fraction of objects with the correct class."
    curve = Curve("ap", "AP; in training: class accuracy", "")
    sections = [Section("Training", note, drawn(lambda: training_curves(info.entries, curve)))]
    tiles: list[Tile] = []
    if predictions is not None:
        metrics, classes = predictions.metrics, info.classes
        summary, ap = metrics.summary, f"AP, {info.evaluated_split} ({len(predictions.detections):,} images)"
        labels = {"ap": ap, "ap50": "AP50", "ap75": "AP75", "recall": "recall, 100 detections per image"}
        tiles = [Tile(f"{summary[name]:.4f}", label) for name, label in labels.items() if name in summary]
        found = predictions.detections
        note = numbers_note(classes, range(min(MAX_CURVES, len(classes))))
        false_negatives, false_positives = find_errors(split, found)
        sections += [
            Section("Precision and recall", "The mean over the classes at three IoU thresholds, and each class at an "
                    f"IoU of 0.5.{note}", drawn(lambda: precision_recall_curves(metrics, classes))),
            Section("By class and size", "", _metrics_table(metrics)),
            Section("Worst false negatives", "Objects without a detection of their class at an IoU of 0.5, the largest "
                    "first; gray boxes are the ground truth.",
                    drawn(lambda: _gallery(split, found, false_negatives, classes))),
            Section("Worst false positives", "Detections without an object of their class at an IoU of 0.5, the "
                    "highest scores first.", drawn(lambda: _gallery(split, found, false_positives, classes))),
        ]  # fmt: skip
    return render_run_page(info, tiles, sections)


def drawn(draw: Callable[[], str]) -> str:
    """Return a drawing; if it fails, the reason, because a report must not be the end of a trained run."""
    try:
        return draw()
    except Exception as error:  # such as an image that has been deleted, or a name that matplotlib cannot draw
        print(f"report: a drawing failed: {type(error).__name__}: {error}", file=sys.stderr)
        return str(Markup("<p>This drawing failed: {}</p>").format(error))


def precision_recall_curves(metrics: CocoMetrics, classes: Sequence[str]) -> str:
    """Draw precision by recall: the mean over the classes at three IoU thresholds, and each class at 0.5 (SVG)."""
    figure = new_figure(10, 4)
    mean_axis, class_axis = figure.subplots(1, 2)
    recalls = np.linspace(0, 1, metrics.precision.shape[1])
    measured = ~np.isnan(metrics.precision[0]).all(axis=0)
    for threshold, color in ((0.5, BLUE), (0.75, VERMILLION), (0.9, GREEN)):
        if measured.any():
            mean = np.nanmean(metrics.precision[IOU_THRESHOLDS.index(threshold)][:, measured], axis=1)
            mean_axis.plot(recalls, mean, color=color, lw=1.4, label=f"IoU {threshold:g}")
    drawn = measured[:MAX_CURVES].nonzero()[0].tolist()
    names = drawn_names(classes, drawn)
    for index in drawn:
        class_axis.plot(recalls, metrics.precision[0, :, index], lw=1.1, label=legend_label(names[index]))
    for axis in (mean_axis, class_axis):
        axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02))
        if axis.lines:
            axis.legend(frameon=False, fontsize=8, loc="best")
    style_axes(mean_axis, class_axis)
    return to_svg(figure)


def find_errors(samples: Sequence[Sample], detections: Sequence[Detections]) -> tuple[list[Error], list[Error]]:
    """Return the false negatives, largest first, and the false positives, highest score first.

    As in COCO, detections are matched in the order of their scores, each with the unmatched object of its class with
    the highest IoU, at least 0.5, and in a crowd are not false positives. Objects need a score above `MIN_SCORE`.
    """
    false_negatives, false_positives = [], []
    for index, (sample, found) in enumerate(zip(samples, detections, strict=True)):
        objects, labels = sample.boxes[~sample.crowd], sample.labels[~sample.crowd]
        crowds, crowd_labels = sample.boxes[sample.crowd], sample.labels[sample.crowd]
        unmatched = torch.ones(len(objects), dtype=torch.bool)
        iou, in_crowd = box_iou(found.boxes, objects), intersection_over_area(found.boxes, crowds)
        for row, (score, label) in enumerate(zip(found.scores.tolist(), found.labels.tolist(), strict=True)):
            candidates = torch.where(unmatched & (labels == label), iou[row], 0.0)
            if len(candidates) and candidates.max() >= 0.5:
                if score > MIN_SCORE:
                    unmatched[candidates.argmax()] = False
            elif not (in_crowd[row][crowd_labels == label] >= 0.5).any():
                false_positives.append(Error(index, found.boxes[row], label, score))
        missed = unmatched.nonzero().flatten().tolist()
        false_negatives += [Error(index, objects[row], int(labels[row]), 0.0) for row in missed]

    false_negatives.sort(key=lambda error: float((error.box[2:] - error.box[:2]).prod()), reverse=True)
    false_positives.sort(key=lambda error: error.score, reverse=True)
    return false_negatives, false_positives


def draw_boxes(
    pixels: Tensor, boxes: Tensor, texts: Sequence[str], colors: Sequence[str], min_side: int = GALLERY_SIDE
) -> Tensor:
    """Draw boxes with texts on an image uint8 (1 or 3, h, w); returns uint8 (3, h', w').

    Images with a longer side under `min_side` are enlarged by an integer factor, so that lines and text are legible.
    """
    factor = max(1, min_side // max(pixels.shape[-2:]))
    canvas = pixels.expand(3, -1, -1).repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2).contiguous()
    if not len(boxes):
        return canvas
    # A box that ends at the image's border is drawn on the last pixel.
    last = torch.tensor([canvas.shape[2], canvas.shape[1]] * 2) - 1
    drawn = torch.minimum((boxes * factor).round(), last.to(boxes.dtype))
    drawn = torch.cat((torch.minimum(drawn[:, :2], drawn[:, 2:]), drawn[:, 2:]), dim=1)
    # The default font of Pillow has Latin letters only. One font must have the characters of all texts.
    font = None if all(text.isascii() for text in texts) else font_file(texts)
    texts = [text if font else text.encode("ascii", "backslashreplace").decode() for text in texts]
    image: Tensor = draw_bounding_boxes(
        canvas, drawn, texts, list(colors), width=max(1, min(factor, 3)), font=font, font_size=10 if font else None
    )
    return image


def _gallery(
    samples: Sequence[Sample], detections: Sequence[Detections], errors: Sequence[Error], classes: Sequence[str]
) -> str:
    """Render the images of the first errors: the error in orange, the ground truth in gray."""
    items = []
    for error in errors[:MAX_ERRORS]:
        sample = samples[error.image_index]
        boxes = torch.cat((sample.boxes, error.box.unsqueeze(0)))
        texts = [""] * len(sample.boxes) + [drawn_names(classes, [error.label])[error.label]]
        pixels = sample.read(3 if isinstance(sample.pixels, Tensor) and len(sample.pixels) == 3 else 1)
        image = draw_boxes(pixels, boxes, texts, [GRAY] * len(sample.boxes) + [VERMILLION])
        note = f" ({error.score:.0%})" if error.score else confused_with(detections[error.image_index], error, classes)
        items.append(GalleryItem(image, classes[error.label], note, Path(sample.name).name))
    return render("gallery.html", items=items)


def confused_with(detections: Detections, false_negative: Error, classes: Sequence[str]) -> str:
    """Describe the detection of another class at the position of a false negative; "" if it does not exist."""
    if not len(detections.boxes):
        return ""
    iou = box_iou(detections.boxes, false_negative.box.unsqueeze(0))[:, 0]
    row = int((iou * (detections.labels != false_negative.label) * detections.scores).argmax())
    if iou[row] < 0.5 or detections.labels[row] == false_negative.label:
        return ""
    return f", detected as {classes[int(detections.labels[row])]} ({detections.scores[row].item():.0%})"


def _metrics_table(metrics: CocoMetrics) -> str:
    """Render the metrics by class and by object size."""

    def row(name: str, objects: str, *values: float | None) -> tuple[str, list[Cell]]:
        return name, [Cell(objects), *(Cell("" if value is None else f"{value:.3f}") for value in values)]

    rows = [row(item.label, f"{item.objects:,}", item.ap, item.ap50, item.recall) for item in metrics.per_class]
    summary = metrics.summary
    for size in ("small", "medium", "large"):
        rows.append(row(f"{size} objects", "", summary.get(f"ap_{size}"), None, summary.get(f"recall_{size}")))
    return render("table.html", header=("objects", "AP", "AP50", "recall"), rows=rows)
