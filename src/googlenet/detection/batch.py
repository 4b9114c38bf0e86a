"""A step's pictures with their boxes: a function of the seed and the step, as in `data.loader`."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.loader import Turn, pictures_of
from ..data.preprocess import Preprocess
from ..data.rows import Rows
from ..data.transfer import send
from .boxes import mirror, rescale
from .dataset import Picture
from .placing import canvas_side, on_canvas


class Target(NamedTuple):
    """What is on one picture of a batch, in the batch's pixels; the fields are those of `Picture`."""

    boxes: Tensor
    labels: Tensor
    crowd: Tensor


class DetectionBatch(NamedTuple):
    """Pictures as they enter the network.

    `images` are float (n, channels, side, side), `sizes` the heights and widths of the pictures in their upper left
    corners, `targets` what is on them: none where it is not known.
    """

    images: Tensor
    sizes: tuple[tuple[int, int], ...]
    targets: tuple[Target, ...]

    @property
    def pictures(self) -> int:
        """How many pictures these are."""
        return len(self.images)

    def to(self, device: torch.device) -> "DetectionBatch":
        """The same batch on `device`."""
        targets = tuple(Target(*(send(values, device) for values in target)) for target in self.targets)
        return DetectionBatch(send(self.images, device), self.sizes, targets)


def training_pictures(
    pictures: Sequence[Picture],
    preprocess: Preprocess,
    *,
    flip: bool,
    step: int,
    size: int,
    seed: int,
    turn: Turn,
    rows: Rows,
    least: int,
) -> DetectionBatch:
    """Those `rows` of the batch of step `step`, longer sides `size` pixels, on canvases of `least` pixels at least.

    With `flip` half of the pictures are mirrored.
    """
    chosen = pictures_of(len(pictures), seed, turn, rows).tolist()
    generator = torch.Generator().manual_seed(2 * seed * 1_000_000_007 + step)
    mirrored = rows.of(torch.rand(rows.total, generator=generator)) < (0.5 if flip else 0.0)
    side = canvas_side(size, least)
    images = torch.zeros(len(chosen), preprocess.channels, side, side)
    sizes, targets = [], []
    for row, (number, turned) in enumerate(zip(chosen, mirrored.tolist(), strict=True)):
        picture = pictures[number]
        pixels = picture.read(preprocess.channels)
        images[row], here = on_canvas(pixels.flip(-1) if turned else pixels, preprocess, size, least)
        boxes = rescale(picture.boxes, (picture.height, picture.width), here)
        targets.append(Target(mirror(boxes, here[1]) if turned else boxes, picture.labels, picture.crowd))
        sizes.append(here)
    return DetectionBatch(images, tuple(sizes), tuple(targets))
