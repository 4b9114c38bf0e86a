"""Where labelled pictures come from: a name in a recipe -> a data set."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from .dataset import Dataset, Unreadable
from .fashion_mnist import load_fashion_mnist
from .folder import load_folder
from .imagenet import load_imagenet
from .preprocess import Fit
from .shards import absolute_shards, load_shards
from .stream import default_workers

FOLDER, IMAGENET, SHARDS = "folder:", "imagenet:", "shards:"
# Pictures with boxes, which `detection.sources` reads.
BOXES = ("scenes", "coco:", "voc:")


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
    resident: bool | None = None,
    workers: int | None = None,
) -> Dataset:
    """Read the data set that `source` names.

    ``fashion-mnist``; ``folder:PATH`` for a class per folder (`load_folder`); ``imagenet:PATH`` for ImageNet's layout
    (`load_imagenet`); ``shards:PATH`` or ``shards:URL`` for tar files in webdataset's form (`load_shards`).
    `validation` is the part of the training pictures held out: a count from 1 up, or a fraction below 1.
    Pictures are given out at `size` pixels, made square as `fit` says, with `channels` (1 or 3; unset: grey when all
    are); `seed` chooses the validation pictures. `limit` keeps at most so many pictures of each split, evenly spaced.
    `root` is where to look first, and what a relative PATH is relative to. A folder is `resident`, decoded in memory,
    where it fits if unset; what is not is decoded by `workers` processes (unset: one per core, none on a single one).
    Raises ValueError for an unknown source or data that cannot be used.
    """
    workers = default_workers() if workers is None else workers
    place = absolute_source(source, root)
    options: dict[str, Any] = {
        "validation": validation,
        "size": size,
        "fit": fit,
        "channels": channels,
        "unreadable": unreadable,
        "seed": seed,
        "workers": workers,
    }
    if source == "fashion-mnist":
        data = load_fashion_mnist(root, validation)
    elif source.startswith(FOLDER) and source != FOLDER:
        data = load_folder(Path(place.removeprefix(FOLDER)), resident=resident, **options)
    elif source.startswith(IMAGENET) and source != IMAGENET:
        data = load_imagenet(Path(place.removeprefix(IMAGENET)), resident=resident, **options)
    elif source.startswith(SHARDS) and source != SHARDS:
        if resident:
            raise ValueError("shards are streamed: data.resident is for folders")
        data = load_shards(place.removeprefix(SHARDS), **options)
    elif source.startswith(BOXES):
        raise ValueError(f"{source}: has boxes and no label per picture; such a source is for task: detection")
    else:
        raise ValueError(
            f"unknown data source {source!r}; "
            "use fashion-mnist, folder:PATH, imagenet:PATH, shards:PATH or shards:URL"
        )
    if limit is None:
        return data
    train, held, test = (split.spaced(limit) for split in (data.train, data.validation, data.test))
    return replace(data, train=train, validation=held, test=test)


def absolute_source(source: str, root: str | None = None) -> str:
    """`source` with paths made absolute, so that it means the same wherever it is read again."""
    if source.startswith(SHARDS):
        return SHARDS + absolute_shards(source.removeprefix(SHARDS), root)
    for kind in (FOLDER, IMAGENET, *BOXES[1:]):
        if source.startswith(kind):
            return kind + str(Path(root or "", Path(source.removeprefix(kind)).expanduser()).absolute())
    return source
