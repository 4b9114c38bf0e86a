"""What a data set is once it is read: splits of uint8 pictures, in memory or on the disk, with labels and names."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .stream import Stream


class Split(NamedTuple):
    """A part of a data set: `images` uint8 (n, channels, h, w), `labels` int64 (n,), one name per picture.

    The images are a tensor, or a `Stream` that decodes them when they are asked for.
    """

    images: Tensor | Stream
    labels: Tensor
    names: Sequence[str]

    def __bool__(self) -> bool:
        return len(self.labels) > 0

    def to(self, device: torch.device) -> "Split":
        """The same pictures on `device`."""
        return Split(self.images.to(device), self.labels.to(device), self.names)

    def part(self, start: int, stop: int | None) -> "Split":
        """Pictures start..stop, without a copy."""
        if isinstance(self.images, Tensor):
            return Split(self.images[start:stop], self.labels[start:stop], self.names[start:stop])
        return self.select(torch.arange(len(self.labels))[start:stop])

    def select(self, rows: Tensor) -> "Split":
        """The pictures `rows`: int64 numbers, or a mask of all."""
        images = self.images[rows] if isinstance(self.images, Tensor) else self.images.select(rows)
        numbers = (rows.nonzero().flatten() if rows.dtype == torch.bool else rows).tolist()
        return Split(images, self.labels[rows], [self.names[row] for row in numbers])

    def spaced(self, count: int) -> "Split":
        """At most `count` pictures, evenly spaced, so that each class of an ordered folder keeps its share."""
        if count >= len(self.labels):
            return self
        return self.select(torch.arange(count) * len(self.labels) // count)

    def grey(self) -> "Split":
        """The same pictures with one channel, where all their channels are alike."""
        if isinstance(self.images, Stream):
            return self._replace(images=self.images.with_channels(1))
        return self._replace(images=self.images[:, :1].clone())

    def pixels(self, plan: Iterable[Tensor]) -> Iterator[Tensor]:
        """For each int64 tensor of rows in `plan` those pictures, uint8 (len(rows), channels, h, w)."""
        if isinstance(self.images, Stream):
            return self.images.batches(plan)
        images = self.images
        return (images[rows.to(images.device)] for rows in plan)


Unreadable = Literal["skip", "refuse"]


@dataclass(frozen=True)
class Dataset:
    """A labelled data set.

    `validation` is held out of the training pictures; `test` is read once, for the final figure, and is
    empty where the source has none. `mean` and `std` are of the training pixels, per channel, as fractions of
    the pixel range. `skipped` lists the unreadable files with their reasons. `synsets` are WordNet's names of the
    classes, where the source has them.
    """

    source: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    skipped: tuple[str, ...] = field(default=())
    synsets: tuple[str, ...] = field(default=())

    def to(self, device: torch.device) -> "Dataset":
        """The same data set on `device`, so that batches are made there."""
        train, validation, test = (split.to(device) for split in (self.train, self.validation, self.test))
        return replace(self, train=train, validation=validation, test=test)

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return self.train.images.shape[1]


def held_out(count: int, validation: float) -> int:
    """How many of `count` pictures to hold out; ValueError unless at least one is left to train on."""
    held = round(count * validation) if validation < 1 else int(validation)
    if validation < 0 or held >= count:
        raise ValueError(
            f"validation must leave pictures to train on: {validation:g} of {count} was asked for; "
            "a fraction such as 0.2 suits any number"
        )
    return held


def hold_out(split: Split, validation: float, seed: int) -> tuple[Split, Split]:
    """`split` without its held-out pictures, and these: of each class in proportion, never its last one.

    `validation` is a count, or a fraction below 1, which holds out one at least of every class that has two; which
    pictures, `seed` decides. ValueError where none were left.
    """
    labels, count = split.labels, held_out(len(split.labels), validation)
    if validation < 1:
        count = max(count, int((torch.bincount(labels) > 1).sum()))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    # Rank each picture within its class as a share of the class, and take the smallest shares.
    by_class = order[labels[order].argsort(stable=True)]
    share = torch.ones(len(labels))
    for members in torch.split(by_class, torch.bincount(labels).tolist()):
        share[members] = (torch.arange(len(members)) + 0.5) / len(members)
        share[members[:1]] = 0.0  # so that small classes are in both parts too
        share[members[-1:]] = 2.0
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[share.argsort(stable=True)[:count]] = True
    mask &= share < 2.0
    return split.select(~mask), split.select(mask)
