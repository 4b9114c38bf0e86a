"""Where labelled pictures come from: a name in a recipe -> splits held in memory as uint8."""

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

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return self.train.images.shape[1]


def load_dataset(
    source: str,
    *,
    root: str | None = None,
    validation: float = 0.1,
    size: int = 224,
    unreadable: Unreadable = "skip",
    limit: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Read the data set that `source` names: ``fashion-mnist``, or ``folder:PATH`` for a class per folder.

    `validation` is the part of the training pictures held out: a count from 1 up, or a fraction below 1.
    `size` is the side in pixels at which a folder's pictures are kept in memory; `seed` chooses a folder's
    validation pictures. `limit` keeps at most so many pictures of each split, evenly spaced.
    Raises ValueError for an unknown source or data that cannot be used.
    """
    kind, _, place = source.partition(":")
    if source == "fashion-mnist":
        from .fashion_mnist import load_fashion_mnist

        data = load_fashion_mnist(root, validation)
    elif kind == "folder" and place:
        from .folder import load_folder

        data = load_folder(place, validation=validation, size=size, unreadable=unreadable, seed=seed)
    else:
        raise ValueError(f"unknown data source {source!r}; use fashion-mnist or folder:PATH")
    if limit is None:
        return data
    train, held, test = (split.spaced(limit) for split in (data.train, data.validation, data.test))
    return replace(data, train=train, validation=held, test=test)


def held_out(count: int, validation: float) -> int:
    """How many of `count` pictures to hold out; ValueError unless at least one is left to train on."""
    held = round(count * validation) if validation < 1 else int(validation)
    if validation < 0 or held >= count:
        raise ValueError(f"validation must leave pictures to train on: {validation} of {count} was asked for")
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
