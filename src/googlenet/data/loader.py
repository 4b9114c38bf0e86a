"""Splits -> batches. Which pictures a step sees depends on the seed and the step alone, so any run can resume."""

import itertools
import math
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .augment import Flip, erase, flip, shift
from .dataset import Split
from .policies import apply_policy, drawing, erase_regions, mix, random_crop
from .preprocess import Preprocess
from .rows import Rows, whole
from .stream import Stream, rows_in_parts
from .transfer import send

# Of an evaluation batch: enough to keep a CPU busy, and the first layer's output stays near 100 MB.
PIXELS_AT_ONCE = 2_000_000


class Batch(NamedTuple):
    """As they enter the loss: `images` float (n, channels, size, size), `labels` int64 (n,).

    Mixed pictures have a share of every class for a label: float (n, classes).
    """

    images: Tensor
    labels: Tensor

    @property
    def pictures(self) -> int:
        """How many pictures these are."""
        return len(self.labels)


class Augment(NamedTuple):
    """What `training_batch` does to the pictures; the values are those of the functions in `augment` and `policies`.

    `crop` is the least share of a random crop, 1 for none. `mixup` and `cutmix` need the number of `classes`.
    """

    flip: Flip = "none"
    shift: int = 0
    erase: int = 0
    crop: float = 1.0
    policy: str | None = None
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    classes: int = 0


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Batches in one pass over `count` pictures; the last may be smaller, but never a single picture.

    Batch normalisation cannot train on one value, so a remainder of one picture is left out of the epoch.
    """
    return math.ceil(count / batch_size) - (1 if count % batch_size == 1 and count > 1 else 0)


class Turn(NamedTuple):
    """The pictures of one step: those from `start` to before `stop` in the order of pass number `epoch`."""

    epoch: int
    start: int
    stop: int


def fixed_turn(count: int, batch_size: int, step: int) -> Turn:
    """The pictures of `step` where every batch has `batch_size` of the `count` pictures, but for the epoch's last."""
    epoch, position = divmod(step, steps_per_epoch(count, batch_size))
    return Turn(epoch, position * batch_size, min((position + 1) * batch_size, count))


@lru_cache(maxsize=2)
def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The permutation of 0..count-1 in which an epoch visits the pictures."""
    return torch.randperm(count, generator=_generator(2 * seed + 1, epoch))


def pictures_of(count: int, seed: int, turn: Turn, rows: Rows) -> Tensor:
    """The numbers, of `count` pictures, of those `rows` of a step's batch: int64 (rows.pictures,)."""
    return rows.of(epoch_order(count, seed, turn.epoch)[turn.start : turn.stop])


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
    turn: Turn | None = None,
    rows: Rows | None = None,
    later: Iterable[tuple[Turn, Rows]] | None = None,
) -> Batch:
    """The batch of optimisation step `step` (counted from 0) at `size` pixels, or those `rows` of it.

    Each epoch is a fresh permutation; shuffling, flips and shifts are functions of (seed, step). `turn` says which
    part of which epoch the step sees; unset, it follows from `batch_size`. Of a streamed split, the pictures that
    will be asked for `later` are read meanwhile; unset, those of the next steps.
    """
    count = len(split.labels)
    turn = turn or fixed_turn(count, batch_size, step)
    rows = rows or whole(turn.stop - turn.start)
    by_timm = augment.policy or augment.random_erasing or augment.mixup or augment.cutmix
    if by_timm and rows.pictures < rows.total:
        # These draw from one stream for picture after picture, and mix pictures of the whole batch.
        batch = training_batch(
            split, preprocess, augment, step=step, batch_size=batch_size, size=size, seed=seed, turn=turn,
            later=None if later is None else ((turn, whole(turn.stop - turn.start)) for turn, _ in later),
        )  # fmt: skip
        return Batch(rows.of(batch.images), rows.of(batch.labels))
    indices = pictures_of(count, seed, turn, rows)
    generator = _generator(2 * seed, step)
    if isinstance(split.images, Stream):
        if later is None:
            turns = (fixed_turn(count, batch_size, number) for number in itertools.count(step + 1))
            later = ((turn, whole(turn.stop - turn.start)) for turn in turns)
        images = split.images.take(indices, (pictures_of(count, seed, *piece) for piece in later))
    else:
        images = split.images[send(indices, split.images.device)]
    images = flip(images, augment.flip, indices, turn.epoch, seed, generator, rows)
    images = shift(images, augment.shift, generator, rows)
    images = erase(images, augment.erase, generator, rows)
    labels = split.labels[send(indices, split.labels.device)]
    if augment.crop < 1:
        pixels = random_crop(preprocess.square(images), augment.crop, size, preprocess, generator, rows)
    else:
        pixels = preprocess.resize(preprocess.square(images), size)
    if not by_timm:
        return Batch(preprocess.normalise(pixels), labels)
    with drawing(generator):
        if augment.policy:
            pixels = apply_policy(augment.policy, pixels, preprocess)
        pixels = preprocess.normalise(pixels)
        if augment.random_erasing:
            pixels = erase_regions(pixels, augment.random_erasing)
        if augment.mixup or augment.cutmix:
            pixels, labels = mix(pixels, labels, augment.mixup, augment.cutmix, augment.classes)
    return Batch(pixels, labels)


def evaluation_batches(split: Split, preprocess: Preprocess, size: int | None = None) -> Iterator[Batch]:
    """Every picture once, in order, as prediction would see it, in batches of about `PIXELS_AT_ONCE`."""
    side = preprocess.size if size is None else size
    batch_size = max(1, min(500, PIXELS_AT_ONCE // side**2))
    parts = rows_in_parts(len(split.labels), batch_size)
    for rows, pixels in zip(parts, split.pixels(parts), strict=True):
        yield Batch(preprocess(pixels, side), split.labels[rows[0] : rows[-1] + 1])
