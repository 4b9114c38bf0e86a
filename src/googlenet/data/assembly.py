"""Splits as they were read -> a data set."""

from collections.abc import Mapping, Sequence

from .checked import Read
from .dataset import Dataset, hold_out
from .statistics import pixel_statistics


def assemble(
    source: str,
    classes: tuple[str, ...],
    read: Mapping[str, Read],
    skipped: Sequence[str],
    *,
    channels: int | None,
    validation: float,
    seed: int,
) -> Dataset:
    """The data set of the splits ``train``, ``validation`` and ``test`` that were `read`.

    With `channels` unset it is grey where all its pictures are. Where no validation pictures were read, `validation`
    (a count, or a fraction below 1) of the training pictures are held out; which, `seed` decides.
    """
    splits = {name: found.split for name, found in read.items()}
    if channels is None and all(found.all_grey for found in read.values()):
        splits = {name: split.grey() for name, split in splits.items()}
    if not splits["validation"] and validation:
        splits["train"], splits["validation"] = hold_out(splits["train"], validation, seed)
    # There are sources without training pictures, to be measured on.
    counted = next((split for split in splits.values() if split), splits["train"])
    mean, std = pixel_statistics(counted.images)
    train, held, test = (splits[name] for name in ("train", "validation", "test"))
    return Dataset(source, classes, train, held, test, mean, std, tuple(skipped))
