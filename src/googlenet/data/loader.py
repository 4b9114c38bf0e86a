"""Splits -> batches. Which pictures a step sees depends on the seed and the step alone, so any run can resume."""

import itertools
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .augment import Flip, erase, flip, shift
from .dataset import Split
from .preprocess import Preprocess
from .stream import Stream, rows_in_parts

# Of an evaluation batch: enough to keep a CPU busy, and the first layer's output stays near 100 MB.
PIXELS_AT_ONCE = 2_000_000


class Batch(NamedTuple):
    """`images` float (n, channels, size, size), `labels` int64 (n,), as they enter the loss."""

    images: Tensor
    labels: Tensor


class Augment(NamedTuple):
    """What `training_batch` does to the pictures; the values are those of the functions in `augment`."""

    flip: Flip = "none"
    shift: int = 0
    erase: int = 0


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Batches in one pass over `count` pictures; the last may be smaller, but never a single picture.

    Batch normalisation cannot train on one value, so a remainder of one picture is left out of the epoch.
    """
    return math.ceil(count / batch_size) - (1 if count % batch_size == 1 and count > 1 else 0)


@lru_cache(maxsize=2)
def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The permutation of 0..count-1 in which an epoch visits the pictures."""
    return torch.randperm(count, generator=_generator(2 * seed + 1, epoch))


def rows_of_step(count: int, batch_size: int, seed: int, step: int) -> Tensor:
    """The numbers of the pictures, of `count`, that `step` (counted from 0) sees: int64 (at most batch_size,).

    Each epoch is a fresh permutation.
    """
    epoch, position = divmod(step, steps_per_epoch(count, batch_size))
    return epoch_order(count, seed, epoch)[position * batch_size : (position + 1) * batch_size]


def _generator(stream: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(stream * 1_000_000_007 + number)


def training_batch(
    split: Split,
    preprocess: Preprocess,
    augment: Augment,
    *,
    step: int,
    batch_size: int,
    size: int,
    seed: int,
) -> Batch:
    """The batch of optimisation step `step` (counted from 0) at `size` pixels.

    Shuffling, flips and shifts are functions of (seed, step). Of a streamed split, the next steps' pictures are read
    meanwhile.
    """
    count = len(split.labels)
    epoch, indices = step // steps_per_epoch(count, batch_size), rows_of_step(count, batch_size, seed, step)
    generator = _generator(2 * seed, step)
    if isinstance(split.images, Stream):
        later = (rows_of_step(count, batch_size, seed, number) for number in itertools.count(step + 1))
        images = split.images.take(indices, later)
    else:
        images = split.images[indices.to(split.images.device)]
    images = flip(images, augment.flip, indices, epoch, seed, generator)
    images = shift(images, augment.shift, generator)
    images = erase(images, augment.erase, generator)
    return Batch(preprocess(images, size), split.labels[indices.to(split.labels.device)])


def evaluation_batches(split: Split, preprocess: Preprocess, size: int | None = None) -> Iterator[Batch]:
    """Every picture once, in order, as prediction would see it, in batches of about `PIXELS_AT_ONCE`."""
    side = preprocess.size if size is None else size
    batch_size = max(1, min(500, PIXELS_AT_ONCE // side**2))
    parts = rows_in_parts(len(split.labels), batch_size)
    for rows, pixels in zip(parts, split.pixels(parts), strict=True):
        yield Batch(preprocess(pixels, side), split.labels[rows[0] : rows[-1] + 1])
