"""Where labelled pictures come from: a name in a recipe -> a data set."""

from dataclasses import replace

from .dataset import Dataset, Unreadable
from .fashion_mnist import load_fashion_mnist
from .folder import load_folder


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
        data = load_fashion_mnist(root, validation)
    elif kind == "folder" and place:
        data = load_folder(place, validation=validation, size=size, unreadable=unreadable, seed=seed)
    else:
        raise ValueError(f"unknown data source {source!r}; use fashion-mnist or folder:PATH")
    if limit is None:
        return data
    train, held, test = (split.spaced(limit) for split in (data.train, data.validation, data.test))
    return replace(data, train=train, validation=held, test=test)
