"""What ``googlenet explain`` can answer: a function a question, from measuring to pictures and lines."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.dataset import Dataset, Split
from ..data.pictures import read_picture, to_tensor
from ..errors import nearest
from ..evaluation.predict import STANDARD_INPUT, expand
from ..evaluation.scales import check_sizes
from ..insight import cam, drawing, gradcam, scales
from ..insight.drawing import Seen
from ..insight.page import Picture
from ..insight.stages import layer_of, stages
from ..models.network import Network
from ..training.checkpoint import Checkpoint, load
from ..training.devices import pick_device
from .data_of_run import data_of_run, split_of

# Classes that a class activation map is drawn of, and classes' lines over the sizes.
MAPS, LINES = 3, 6


class Found(NamedTuple):
    """An answer: `figures` for JSON, `pictures`, and `lines` for a person."""

    title: str
    figures: Any
    pictures: list[Picture]
    lines: list[str]


class Given(NamedTuple):
    """A picture of the command line: its `path`, a `name` for files, `pixels` uint8 (1, channels, h, w)."""

    path: str
    name: str
    pixels: Tensor


@dataclass(frozen=True)
class Asked:
    """The network, and what it is asked about. The data set is read when a question first needs it."""

    args: argparse.Namespace
    checkpoint: Checkpoint
    device: torch.device
    size: int
    given: Sequence[Given]

    @property
    def model(self) -> Network:
        """In evaluation mode, on the device."""
        return self.checkpoint.network

    @property
    def about(self) -> str:
        """One line on the network."""
        return f"{self.checkpoint.recipe.model.name} at {self.size} px"

    @cached_property
    def data(self) -> Dataset:
        """The run's pictures, or those that the command line names."""
        args, stored = self.args, max(self.size, self.checkpoint.recipe.stored_size)
        return data_of_run(self.checkpoint, stored, source=args.data, root=args.root, limit=args.limit)

    @cached_property
    def split(self) -> tuple[str, Split]:
        """The part of the data that is measured on, with its name."""
        return split_of(self.data, self.args.split)

    def pixels(self, given: Given) -> Tensor:
        """A picture as the network takes it."""
        return self.checkpoint.preprocess(given.pixels, self.size).to(self.device)

    def seen(self, given: Given) -> Seen:
        """A picture as the network sees it."""
        preprocess = self.checkpoint.preprocess
        return Seen(Path(given.path).name, preprocess.resize(preprocess.square(given.pixels), self.size)[0])

    def classes(self, logits: Tensor, count: int) -> list[int]:
        """The class that was named, else the `count` best of logits (classes,)."""
        names, label = self.checkpoint.classes, self.args.label
        if label is None:
            found: list[int] = logits.topk(min(count, len(names))).indices.tolist()
            return found
        return [names.index(label)]


def ask(args: argparse.Namespace) -> Asked:
    """Read the network and the pictures; ValueError for what cannot be used, before anything is computed."""
    checkpoint = load(args.run)
    size = checkpoint.preprocess.size if args.size is None else args.size
    check_sizes(checkpoint.network, [size])
    if args.sizes:
        check_sizes(checkpoint.network, args.sizes)
    if args.stage is not None:
        layer_of(checkpoint.network, args.stage)
    if args.label is not None and args.label not in checkpoint.classes:
        raise ValueError(
            f"the network knows no class {args.label!r}{nearest(args.label, checkpoint.classes)}; "
            f"it has {len(checkpoint.classes)}"
        )
    device = pick_device("auto")
    checkpoint.model.to(device)
    return Asked(args, checkpoint, device, size, _given(args.images, checkpoint.preprocess.channels))


def _given(images: Sequence[str], channels: int) -> list[Given]:
    found, names = [], set()
    for path in expand(images):
        if path == STANDARD_INPUT:
            picture, stem = read_picture(sys.stdin.buffer.read(), "standard input"), "standard-input"
        else:
            picture, stem = read_picture(Path(path)), Path(path).stem
        name, number = stem, 1
        while name in names:
            name, number = f"{stem}-{number + 1}", number + 1
        names.add(name)
        found.append(Given(path, name, to_tensor(picture, channels).unsqueeze(0)))
    return found


def _cam(asked: Asked) -> Found:
    figures, pictures, lines = [], [], []
    names, size = asked.checkpoint.classes, asked.size
    for given in asked.given:
        pixels = asked.pixels(given)
        with torch.no_grad():
            logits = asked.model(pixels)[0]
        chosen = asked.classes(logits, MAPS)
        maps = cam.class_maps(asked.model, pixels, chosen).maps.cpu()
        places = cam.peaks(maps, size, size)[0].tolist()
        shares = logits.double().softmax(-1).tolist()
        height, width = maps.shape[-2:]
        rows = [
            {
                "label": names[number], "logit": logits[number].item(), "probability": shares[number],
                "map_mean": values.mean().item(), "peak": {"x": x, "y": y},
            }
            for number, values, (y, x) in zip(chosen, maps[0], places, strict=True)
        ]  # fmt: skip
        figures.append({"path": given.path, "map": [height, width], "classes": rows})
        titles = [f"{row['label']}\nlogit {row['logit']:.2f}, p {row['probability']:.2f}" for row in rows]
        best = rows[0]
        where = f"peak at x {best['peak']['x']:.0f}, y {best['peak']['y']:.0f} of {size}x{size} pixels"
        if height == width == 1:
            where = f"the last map is one position at {size} px: it cannot say where; try a larger --size"
        lines.append(f"{given.path}: {best['label']} {best['probability']:.3f}, map {height}x{width}, {where}")
        caption = (
            f"Class activation maps of {given.path}: what each position of the last map adds to the class's logit."
        )
        pictures.append(
            Picture(f"{given.name}-cam.png", drawing.draw_cam(asked.seen(given), titles, maps[0]), caption)
        )
    return Found("Class activation maps", figures, pictures, lines)


def _gradcam(asked: Asked) -> Found:
    figures, pictures, lines = [], [], []
    names, size = asked.checkpoint.classes, asked.size
    layers = [asked.args.stage] if asked.args.stage else list(stages(asked.model))
    for given in asked.given:
        pixels = asked.pixels(given)
        with torch.no_grad():
            logits = asked.model(pixels)
        chosen = asked.classes(logits[0], 1)
        target = torch.tensor(chosen, device=asked.device)
        cams = [gradcam.grad_cam(asked.model, pixels, layer, target)[0].cpu() for layer in layers]
        scores = [gradcam.score_map(asked.model, pixels, layer, target)[0].cpu() for layer in layers]
        places = [cam.peaks(values[None, None], size, size)[0, 0].tolist() for values in cams]
        rows = [
            {"stage": layer, "map": list(values.shape), "peak": {"x": x, "y": y}, "score_sum": score.sum().item()}
            for layer, values, score, (y, x) in zip(layers, cams, scores, places, strict=True)
        ]
        label, share = names[chosen[0]], logits[0].double().softmax(-1)[chosen[0]].item()
        figures.append({"path": given.path, "label": label, "probability": share, "stages": rows})
        lines.append(
            f"{given.path}: {label} {share:.3f}, peaks "
            + ", ".join(f"{layer} ({x:.0f}, {y:.0f})" for layer, (y, x) in zip(layers, places, strict=True))
        )
        picture = drawing.draw_stages(asked.seen(given), f"{label}, p {share:.2f}", layers, cams, scores)
        caption = f"Grad-CAM and activation x gradient of {given.path} for {label}, by stage."
        pictures.append(Picture(f"{given.name}-gradcam.png", picture, caption))
    return Found("Grad-CAM and score maps, stage by stage", figures, pictures, lines)


def _scales(asked: Asked) -> Found:
    figures, pictures, lines = [], [], []
    checkpoint = asked.checkpoint
    usual = checkpoint.preprocess.size
    sizes = sorted(asked.args.sizes or scales.usual_sizes(asked.model, usual))
    for given in asked.given:
        rows = scales.probabilities(asked.model, checkpoint.preprocess, given.pixels, sizes)
        best = rows.amax(0).topk(min(LINES, rows.shape[1])).indices.tolist()
        figures.append(
            {
                "path": given.path, "usual_size": usual, "sizes": sizes,
                "classes": [{"label": checkpoint.classes[k], "probability": rows[:, k].tolist()} for k in best],
            }
        )  # fmt: skip
        winners = [checkpoint.classes[k] for k in rows.argmax(-1).tolist()]
        said = ", ".join(
            f"{size} px {name} {p:.2f}" for size, name, p in zip(sizes, winners, rows.amax(-1).tolist(), strict=True)
        )
        lines.append(f"{given.path}: {said}")
        names = [checkpoint.classes[k] for k in best]
        picture = drawing.draw_scales(asked.seen(given), sizes, names, rows[:, best], usual)
        pictures.append(Picture(f"{given.name}-scales.png", picture, f"{given.path}: class probabilities by size."))
    return Found("The same picture at several sizes", figures, pictures, lines)


QUESTIONS: dict[str, Callable[[Asked], Found]] = {"cam": _cam, "gradcam": _gradcam, "scales": _scales}
