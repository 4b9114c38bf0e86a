"""Pictures of any size -> one batch of pixels, and the boxes in it."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.loader import Turn, pictures_of
from ..data.preprocess import Preprocess
from ..data.rows import Rows
from ..data.transfer import send
from .boxes import mirror, rescale
from .dataset import Picture

# Heights and widths of a batch are multiples of it: then every map of a padded network lies exactly over the picture.
MULTIPLE = 32


class Target(NamedTuple):
    """What is on one picture of a batch, in the batch's pixels; the fields are those of `Picture`."""

    boxes: Tensor
    labels: Tensor
    crowd: Tensor


class DetectionBatch(NamedTuple):
    """`images` float (n, channels, height, width), each picture in its upper left corner, the mean pixel around it;
    the `sizes` (height, width) of the pictures there; what is on them."""

    images: Tensor
    sizes: tuple[tuple[int, int], ...]
    targets: tuple[Target, ...]

    @property
    def pictures(self) -> int:
        """How many pictures these are."""
        return len(self.images)


def fitted(height: int, width: int, longer: int) -> tuple[int, int]:
    """Height and width of a picture whose longer side is made `longer` pixels, proportions kept, 1 at least."""
    scale = longer / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def stacked(pictures: Sequence[Tensor], least: int) -> Tensor:
    """Normalised pictures (channels, h, w) of any sizes -> (n, channels, height, width), filled up with zeros.

    Height and width are those of the largest, but `least` pixels at least, rounded up to `MULTIPLE`.
    """
    height, width = (
        -(-max(least, *(picture.shape[dim] for picture in pictures)) // MULTIPLE) * MULTIPLE for dim in (1, 2)
    )
    batch = pictures[0].new_zeros(len(pictures), pictures[0].shape[0], height, width)
    for row, picture in zip(batch, pictures, strict=True):
        row[:, : picture.shape[1], : picture.shape[2]] = picture
    return batch


def at_size(pixels: Tensor, preprocess: Preprocess, longer: int) -> Tensor:
    """uint8 (channels, h, w) -> normalised float (channels, ...), its longer side `longer` pixels."""
    size = fitted(pixels.shape[1], pixels.shape[2], longer)
    return preprocess.normalise(preprocess.resize_to(pixels.unsqueeze(0), *size))[0]


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
    device: torch.device,
) -> DetectionBatch:
    """Those `rows` of the batch of step `step`: a function of the seed and the step, as in `data.loader`.

    The pictures' longer sides are made `size` pixels; with `flip` half of them are mirrored.
    """
    chosen = pictures_of(len(pictures), seed, turn, rows).tolist()
    generator = torch.Generator().manual_seed(2 * seed * 1_000_000_007 + step)
    mirrored = rows.of(torch.rand(rows.total, generator=generator)) < (0.5 if flip else 0.0)
    images, sizes, targets = [], [], []
    for number, turned in zip(chosen, mirrored.tolist(), strict=True):
        picture = pictures[number]
        pixels = at_size(picture.read(preprocess.channels), preprocess, size)
        here = (pixels.shape[1], pixels.shape[2])
        boxes = rescale(picture.boxes, (picture.height, picture.width), here)
        images.append(pixels.flip(-1) if turned else pixels)
        sizes.append(here)
        boxes = mirror(boxes, here[1]) if turned else boxes
        targets.append(Target(*(send(v, device) for v in (boxes, picture.labels, picture.crowd))))
    if not images:  # of several processes one may have none
        side = -(-max(least, size) // MULTIPLE) * MULTIPLE
        return DetectionBatch(torch.zeros(0, preprocess.channels, side, side, device=device), (), ())
    return DetectionBatch(send(stacked(images, least), device), tuple(sizes), tuple(targets))


def in_groups(shapes: Sequence[tuple[int, int]], pixels: int, most: int) -> Iterator[list[int]]:
    """Row numbers in groups that make good batches: of like shapes, `most` at most, about `pixels` together.

    Pictures of like proportions are put together, so that little is filled up; every row is in one group.
    """
    order = sorted(range(len(shapes)), key=lambda row: (shapes[row][0] / shapes[row][1], row))
    group: list[int] = []
    height = width = 0
    for row in order:
        taller, wider = max(height, shapes[row][0]), max(width, shapes[row][1])
        if group and (len(group) >= most or taller * wider * (len(group) + 1) > pixels):
            yield group
            group, taller, wider = [], *shapes[row]
        group.append(row)
        height, width = taller, wider
    if group:
        yield group
