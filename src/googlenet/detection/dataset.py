"""What a data set of objects is once it is read: pictures with boxes; and what was found wrong on the way."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ..data.dataset import held_out
from ..data.pictures import PictureError, read_picture, to_tensor
from . import boxes as geometry


class Picture(NamedTuple):
    """One picture and what is on it.

    `pixels` are uint8 (channels, height, width), or the file that has them. `number` is the picture's id in its
    source. `boxes` float (n, 4) are clipped to the picture, none of zero area; `labels` int64 (n,) number the
    classes. A `crowd` box (bool (n,)) holds objects that were not told apart: neither trained on nor asked for, and
    a detection in it is no false alarm. `areas` float (n,) are the objects' in square pixels, by which COCO calls
    them small, medium or large; of a box without an outline, the box's.
    """

    name: str
    number: int
    pixels: Tensor | Path
    height: int
    width: int
    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    areas: Tensor

    def read(self, channels: int) -> Tensor:
        """The pixels, uint8 (channels, height, width), for 1 (grey) or 3 (RGB) channels.

        PictureError where the file cannot be read, or is not of the size that the boxes were made for.
        """
        if isinstance(self.pixels, Path):
            return read_as(self.pixels, self.height, self.width, channels)
        if len(self.pixels) == channels:
            return self.pixels
        return self.pixels.expand(channels, -1, -1) if channels == 3 else luma(self.pixels)

    @property
    def objects(self) -> Tensor:
        """Which boxes are of one object each: bool (n,), the opposite of `crowd`."""
        return ~self.crowd


def read_as(path: Path, height: int, width: int, channels: int) -> Tensor:
    """The picture in `path`, uint8 (channels, height, width); PictureError where its size is another.

    A camera's rotation is applied unless the size says that the boxes were drawn without it.
    """
    picture = read_picture(path)
    if (picture.height, picture.width) != (height, width):
        if (picture.width, picture.height) != (height, width):
            raise PictureError(
                f"{path}: {picture.width}x{picture.height} pixels, the boxes were made for {width}x{height}"
            )
        with Image.open(path) as raw:
            picture = raw.convert("L" if channels == 1 else "RGB")
        if (picture.height, picture.width) != (height, width):
            raise PictureError(f"{path}: lies on its side to what the boxes were made for")
    return to_tensor(picture, channels)


def luma(pixels: Tensor) -> Tensor:
    """RGB uint8 (3, h, w) -> grey uint8 (1, h, w), with the weights of ITU-R 601 that Pillow uses."""
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    return (pixels.float() * weights).sum(dim=0, keepdim=True).round().to(torch.uint8)


class Detections(NamedTuple):
    """What was found on one picture, best first: `boxes` float (n, 4) in its pixels, `scores` (n,) in 0..1,
    `labels` int64 (n,)."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    @classmethod
    def none(cls) -> "Detections":
        """Nothing found."""
        return cls(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))

    def above(self, score: float) -> "Detections":
        """Those that score more."""
        kept = self.scores > score
        return Detections(self.boxes[kept], self.scores[kept], self.labels[kept])

    def cpu(self) -> "Detections":
        """The same in the processor's memory."""
        return Detections(self.boxes.cpu(), self.scores.cpu(), self.labels.cpu())


class Found(NamedTuple):
    """A file of annotations, read: its `classes`, the `pictures` that can be used, and a count of each kind of
    `problem` that was met."""

    classes: tuple[str, ...]
    pictures: list[Picture]
    problems: Counter[str]


@dataclass(frozen=True)
class DetectionDataset:
    """A data set of objects.

    `validation` is held out of the training pictures, or the source's own; `test` is read once, for the final
    figure, and is empty where the source has none. `channels` is 1 where every picture is grey, else 3. `mean` and
    `std` are of the training pixels, per channel, as fractions of the pixel range. `skipped` says what was wrong with
    the source, a line each.
    """

    source: str
    classes: tuple[str, ...]
    train: Sequence[Picture]
    validation: Sequence[Picture]
    test: Sequence[Picture]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    skipped: tuple[str, ...] = field(default=())

    def to(self, device: torch.device) -> "DetectionDataset":
        """The same: pictures of all sizes stay where they are, batches of them are sent to a device."""
        return self


def spaced(pictures: Sequence[Picture], count: int) -> Sequence[Picture]:
    """At most `count` of the pictures, evenly spaced."""
    if count >= len(pictures):
        return pictures
    return [pictures[number * len(pictures) // count] for number in range(count)]


def hold_out(
    pictures: Sequence[Picture], validation: float, seed: int
) -> tuple[Sequence[Picture], Sequence[Picture]]:
    """The pictures without those held out, and these; `validation` is a count, or a fraction below 1."""
    count = held_out(len(pictures), validation)
    if not count:
        return pictures, []
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = set(order[:count])
    return (
        [picture for row, picture in enumerate(pictures) if row not in chosen],
        [picture for row, picture in enumerate(pictures) if row in chosen],
    )


def usable(boxes: Tensor, height: int, width: int, problems: Counter[str]) -> tuple[Tensor, Tensor]:
    """Boxes clipped to the picture, and which of them can be used (bool (n,)); what is wrong is counted.

    Less than a pixel outside is rounding, and nothing that is wrong.
    """
    finite = boxes.isfinite().all(dim=1)
    boxes = torch.where(finite.unsqueeze(1), boxes, 0.0)
    clipped = geometry.clip(boxes, height, width)
    sides = boxes[:, 2:] - boxes[:, :2]
    empty = ~finite | (sides <= 0).any(dim=1)
    gone = ~empty & ((clipped[:, 2:] - clipped[:, :2]) <= 0).any(dim=1)
    cut = ~empty & ~gone & ((clipped - boxes).abs() > 1).any(dim=1)
    for kind, which in (
        ("boxes of no area, left out", empty),
        ("boxes wholly outside their picture, left out", gone),
        ("boxes partly outside their picture, clipped to it", cut),
    ):
        if count := int(which.sum()):
            problems[kind] += count
    return clipped, ~empty & ~gone


def sentences(problems: Counter[str], where: str) -> list[str]:
    """The counted problems, one line each."""
    return [f"{where}: {count:,} {kind}" for kind, count in sorted(problems.items())]
