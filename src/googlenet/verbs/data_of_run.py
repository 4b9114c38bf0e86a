"""The pictures that a run is measured on or explained with: its own, or those that the command line names."""

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..data.dataset import Dataset, Split
    from ..training.checkpoint import Checkpoint


def data_of_run(
    checkpoint: "Checkpoint",
    size: int,
    *,
    source: str | None = None,
    root: str | None = None,
    limit: int | None = None,
    whole: bool = False,
) -> "Dataset":
    """The pictures as the network's run saw them, kept at `size` pixels; from `source` where one is named.

    With `whole`, files stay on the disk, with their proportions. ValueError where the classes are not the network's;
    ImageNet's may be called by their synsets.
    Pictures that had to be skipped are named on standard error.
    """
    from ..data.imagenet import same_classes
    from ..data.sources import absolute_source, load_dataset

    options = checkpoint.recipe.data
    wanted = absolute_source(source or options.source, root)
    own = wanted == options.source
    data = load_dataset(
        wanted,
        root=root or options.root,
        validation=options.validation if own else 0,
        size=size,
        fit=checkpoint.preprocess.fit,
        channels=checkpoint.preprocess.channels,
        unreadable=options.unreadable,
        limit=limit or (options.limit if own else None),
        seed=checkpoint.recipe.split_seed,
        resident=False if whole else options.resident,
        workers=options.workers,
    )
    for skipped in data.skipped:
        print(f"skipped: {skipped}", file=sys.stderr)
    if not same_classes(data, checkpoint.classes):
        raise ValueError(f"{wanted} has the classes {few(data.classes)}, the network knows {few(checkpoint.classes)}")
    return replace(data, classes=checkpoint.classes)


def split_of(data: "Dataset", name: str | None) -> "tuple[str, Split]":
    """The part called `name`, else the first there is of test, validation, train; with its name."""
    for candidate in [name] if name else ["test", "validation", "train"]:
        if getattr(data, candidate):
            return candidate, getattr(data, candidate)
    raise ValueError(f"{data.source} has no {name} pictures")


def few(names: tuple[str, ...]) -> str:
    """The first names of many, for a message."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
