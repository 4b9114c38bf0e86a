"""The registry of data sources: from a name in a recipe, such as ``folder:PATH``, to a data set.

A new source is a module with ``load(location: str, options: LoadOptions)`` and an entry in `SOURCES`.
"""

import re
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..dataset import COLUMN_OPTIONS, Dataset, LoadOptions
from ..folds import hold_out

__all__ = [
    "SOURCES",
    "Kind",
    "LoadOptions",
    "Source",
    "absolute_source",
    "describe_sources",
    "load_dataset",
    "load_source",
]

Kind = Literal["classification", "multilabel", "detection"]
ARCHIVE_SUFFIXES = (".7z", ".rar", ".gz")
TORCHVISION = "googlenet.data.sources.torchvision_datasets"
SEPARATOR = "::"  # between several paths or URLs of shards


def _absolute_path(location: str, root: str | None) -> str:
    if url_scheme(location):
        raise ValueError(f"{location}: a URL; download the data, unpack it and give the path of the folder")
    return str(Path(root or "", Path(location).expanduser()).absolute())


def _absolute_file(location: str, root: str | None) -> str:
    return _absolute_path(location, root)  # A function of its own, because archives are an error for `_absolute_path`.


def _absolute_if_path(location: str, root: str | None) -> str:
    """Make a location absolute if it is a path that exists, or looks like one; otherwise it is a name."""
    is_path = location.startswith(("/", ".", "~")) or Path(root or "", location).exists()
    return _absolute_path(location, root) if is_path else location


def _absolute_shards(location: str, root: str | None) -> str:
    items = location.split(SEPARATOR)
    return SEPARATOR.join(item if url_scheme(item) else _absolute_path(item, root) for item in items)


def url_scheme(location: str) -> str:
    """Return the scheme of a URL, such as https, or "pipe" or "file"; "" for a path."""
    match = re.match(r"\w+(?=://)|(pipe|file)(?=:)", location)
    return match[0] if match else ""


class Source(NamedTuple):
    """A kind of data source.

    `module`, which is imported on use, loads images for the task `kind`. `usage` are the forms ``NAME`` or
    ``NAME:LOCATION``. `make_absolute(location, root)` makes the paths in a location absolute, relative to `root`.
    `has_columns` if the `COLUMN_OPTIONS` apply. `multilabel` is the module with the ``load`` for any number
    of labels per image, if there is one. `loader` is the function of `module`.
    """

    module: str
    kind: Kind
    usage: tuple[str, ...]
    make_absolute: Callable[[str, str | None], str] = lambda location, _: location
    has_columns: bool = False
    multilabel: str = ""
    loader: str = "load"

    def supports(self, kind: Kind) -> bool:
        """Return whether the source has data for a task."""
        return kind == self.kind or (kind == "multilabel" and bool(self.multilabel))


SOURCES = {
    "fashion-mnist": Source("googlenet.data.sources.fashion_mnist", "classification", ("fashion-mnist",)),
    "folder": Source("googlenet.data.sources.folder", "classification", ("folder:PATH",), _absolute_path),
    "imagenet": Source("googlenet.data.sources.imagenet", "classification", ("imagenet:PATH",), _absolute_path),
    "shards": Source(
        "googlenet.data.sources.webdataset", "classification", ("shards:PATH", "shards:URL"), _absolute_shards
    ),
    "table": Source(
        "googlenet.data.sources.table",
        "classification",
        ("table:FILE",),
        _absolute_file,
        has_columns=True,
        multilabel="googlenet.data.sources.label_table",
    ),
    "hf": Source(
        "googlenet.data.sources.huggingface",
        "classification",
        ("hf:NAME", "hf:PATH"),
        _absolute_if_path,
        has_columns=True,
    ),
    "numpy": Source("googlenet.data.sources.numpy_file", "classification", ("numpy:FILE.npz",), _absolute_file),
    "cifar10": Source(TORCHVISION, "classification", ("cifar10",), loader="load_cifar10"),
    "cifar100": Source(TORCHVISION, "classification", ("cifar100",), loader="load_cifar100"),
    "mnist": Source(TORCHVISION, "classification", ("mnist",), loader="load_mnist"),
    "kmnist": Source(TORCHVISION, "classification", ("kmnist",), loader="load_kmnist"),
    "emnist": Source(TORCHVISION, "classification", ("emnist:SPLIT",), loader="load_emnist"),
    "scenes": Source("googlenet.detection.data.scenes", "detection", ("scenes", "scenes:train=N,test=N,seed=N")),
    "coco": Source("googlenet.detection.data.coco", "detection", ("coco:PATH",), _absolute_path),
    "voc": Source("googlenet.detection.data.voc", "detection", ("voc:PATH",), _absolute_path),
    "yolo": Source("googlenet.detection.data.yolo", "detection", ("yolo:PATH",), _absolute_path),
}


def describe_sources(kind: Kind) -> str:
    """List the forms of the sources of a task, for help and error messages."""
    forms = [form for source in SOURCES.values() if source.supports(kind) for form in source.usage]
    return " or ".join([", ".join(forms[:-1]), forms[-1]] if len(forms) > 1 else forms)


def load_dataset(source: str, options: LoadOptions | None = None, kind: Kind = "classification") -> Dataset:
    """Load images with labels, of `kind` multilabel with any number of them per image.

    Raises ValueError for an unknown source or unusable data.
    """
    options = options or LoadOptions()
    # Groups, folds and several labels are known after loading only.
    is_late = kind == "multilabel" or options.group_column is not None or options.num_folds is not None
    data: Dataset = load_source(source, replace(options, validation=0) if is_late else options, kind)
    if is_late and options.num_folds is None:
        data = hold_out(data, options)
    data = data if options.max_samples is None else data.subsample(options.max_samples)
    return data if options.num_folds is None else hold_out(data, options)


def load_source(source: str, options: LoadOptions, kind: Kind) -> Any:
    """Load a source of a task with its module's ``load``; raises ValueError for an unknown source."""
    name, _, location = source.partition(":")
    entry = SOURCES.get(name)
    if entry is None or not (source in entry.usage or (location and any(":" in form for form in entry.usage))):
        raise ValueError(f"unknown data source {source!r}; use {describe_sources(kind)}")
    if not entry.supports(kind):
        raise ValueError(f"{source}: a data source for task: {entry.kind}; for {kind} use {describe_sources(kind)}")
    if not entry.has_columns and (given := [key for key in COLUMN_OPTIONS if getattr(options, key) is not None]):
        raise ValueError(
            f"{source}: has no columns, so data.{given[0]} does not apply; unset it: --data.{given[0]} null"
        )
    location = entry.make_absolute(location, options.root)
    if entry.make_absolute is _absolute_path and _is_archive(Path(location)):
        raise ValueError(f"{location}: an archive; unpack it and give the path of the folder")
    if kind == "multilabel":
        return import_module(entry.multilabel).load(location, options)
    return getattr(import_module(entry.module), entry.loader)(location, options)


def _is_archive(path: Path) -> bool:
    return path.is_file() and (
        path.suffix.lower() in ARCHIVE_SUFFIXES or zipfile.is_zipfile(path) or tarfile.is_tarfile(path)
    )


def absolute_source(source: str, root: str | None = None) -> str:
    """Make the paths of a source absolute, so that it does not depend on the current folder; relative to `root`."""
    name, _, location = source.partition(":")
    entry = SOURCES.get(name)
    return f"{name}:{entry.make_absolute(location, root)}" if entry and location else source
