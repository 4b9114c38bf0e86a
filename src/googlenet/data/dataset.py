"""What a data set is once it is read: splits of uint8 pictures in memory, with their labels and names."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor


class Split(NamedTuple):
    """A part of a data set: `images` uint8 (n, channels, h, w), `labels` int64 (n,), one name per picture."""

    images: Tensor
    labels: Tensor
    names: Sequence[str]

    def __bool__(self) -> bool:
        return len(self.labels) > 0

    def to(self, device: torch.device) -> "Split":
        """The same pictures on `device`."""
        return Split(self.images.to(device), self.labels.to(device), self.names)

    def part(self, start: int, stop: int | None) -> "Split":
        """Pictures start..stop, without a copy."""
        return Split(self.images[start:stop], self.labels[start:stop], self.names[start:stop])

    def spaced(self, count: int) -> "Split":
        """At most `count` pictures, evenly spaced, so that each class of an ordered folder keeps its share."""
        if count >= len(self.labels):
            return self
        rows = torch.arange(count) * len(self.labels) // count
        return Split(self.images[rows], self.labels[rows], [self.names[row] for row in rows.tolist()])


Unreadable = Literal["skip", "refuse"]


@dataclass(frozen=True)
class Dataset:
    """A labelled data set, whole in memory.

    `validation` is held out of the training pictures; `test` is read once, for the final figure, and is
    empty where the source has none. `mean` and `std` are of the training pixels, per channel, as fractions of
    the pixel range. `skipped` lists the unreadable files with their reasons.
    """

    source: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    skipped: tuple[str, ...] = field(default=())

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


def pixel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 (n, c, h, w), as fractions of the pixel range.

    Counted from the histogram, so that no float copy of the data set is made.
    """
    mean, std = [], []
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel in range(images.shape[1]):
        share = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        share /= share.sum()
        centre = (share * values).sum()
        mean.append(round(centre.item(), 4))
        std.append(max(round((share * (values - centre) ** 2).sum().sqrt().item(), 4), 1e-4))
    return tuple(mean), tuple(std)
