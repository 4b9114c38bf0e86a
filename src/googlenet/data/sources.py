"""Where labelled pictures come from: a name in a recipe -> a data set."""

from dataclasses import replace
from pathlib import Path

from .dataset import Dataset, Unreadable
from .fashion_mnist import load_fashion_mnist
from .folder import load_folder
from .preprocess import Fit

FOLDER = "folder:"


def load_dataset(
    source: str,
    *,
    root: str | None = None,
    validation: float = 0.1,
    size: int = 224,
    fit: Fit = "crop",
    channels: int | None = None,
    unreadable: Unreadable = "skip",
    limit: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Read the data set that `source` names: ``fashion-mnist``, or ``folder:PATH`` for a class per folder.

    `validation` is the part of the training pictures held out: a count from 1 up, or a fraction below 1.
    The pictures of a folder are kept in memory at `size` pixels, made square as `fit` says, with `channels` (1 or 3;
    unset: grey when all are); `seed` chooses its validation pictures. `limit` keeps at most so many pictures of each
    split, evenly spaced. `root` is where to look first, and what a relative PATH is relative to.
    Raises ValueError for an unknown source or data that cannot be used.
    """
    if source == "fashion-mnist":
        data = load_fashion_mnist(root, validation)
    elif source.startswith(FOLDER) and source != FOLDER:
        data = load_folder(
            Path(absolute_source(source, root).removeprefix(FOLDER)),
            validation=validation,
            size=size,
            fit=fit,
            channels=channels,
            unreadable=unreadable,
            seed=seed,
        )
    else:
        raise ValueError(f"unknown data source {source!r}; use fashion-mnist or folder:PATH")
    if limit is None:
        return data
    train, held, test = (split.spaced(limit) for split in (data.train, data.validation, data.test))
    return replace(data, train=train, validation=held, test=test)


def absolute_source(source: str, root: str | None = None) -> str:
    """`source` with a folder's path made absolute, so that it means the same wherever it is read again."""
    if not source.startswith(FOLDER):
        return source
    return FOLDER + str(Path(root or "", Path(source.removeprefix(FOLDER)).expanduser()).absolute())
