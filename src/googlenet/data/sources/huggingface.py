"""Data sets in the format of Hugging Face: by name, from the hub or its cache, or in local files and folders.

The encoded images are read in place from the Arrow files of the library `datasets`, like samples of tar files.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..accounting import Accounting
from ..dataset import Dataset, LoadedSplit, LoadOptions, Split, build_dataset, drop_unusable_images, read_into_memory
from ..lazy import ByteRanges, LazyImages
from ..table_file import cell_text, find_column, listed, object_array, require_column, sort_classes
from .folder import fits_in_memory
from .splits import SPLITS, split_name

SAVED_FILES = ("dataset_dict.json", "state.json")  # of `datasets.save_to_disk`
FORMATS = {".parquet": "parquet", ".arrow": "arrow", ".jsonl": "json", ".json": "json", ".csv": "csv"}
UNKNOWN = -1  # the label of an image without class


def load(location: str, options: LoadOptions) -> Dataset:
    """Load ``NAME``, ``NAME:CONFIG``, a file (Parquet, Arrow) or a folder of these, of images, or of `save_to_disk`.

    The image is the column with images, the label that with a ClassLabel; otherwise the columns are found as in tables.
    Raises ValueError for a data set that does not exist or has no such columns.
    """
    accounting = Accounting(strict=options.on_error == "raise")
    parts = _splits(location, accounting)
    first = next(iter(parts.values()))
    image = _image_column(location, first, options)
    label = _label_column(location, first, image, options)
    classes, labels = _read_labels(parts, label)
    if len(classes) < 2:
        raise ValueError(f"{location}: needs at least two classes in column {label!r}; found {len(classes)}")
    ranges = {name: byte_ranges(part, image) for name, part in parts.items()}
    options = options.with_max_value(ranges.values(), cached=True)
    in_memory = fits_in_memory(location, sum(map(len, parts.values())), options)
    loaded = {}
    for name in SPLITS:
        if name not in parts:
            empty = LazyImages(ByteRanges.from_files([]), options.storage)
            loaded[name] = LoadedSplit(Split(empty, torch.empty(0, dtype=torch.int64), []), True)
            continue
        full_size = options.of_split(name).full_size
        images = LazyImages(ranges[name], options.storage, options.workers, full_size=full_size)
        names = [f"{name} {row}" for row in range(len(images))]
        split = Split(images, torch.from_numpy(labels[name]), names, _columns(parts[name], image))
        item = drop_unusable_images(_drop_unknown(split, accounting), "image", f"hf:{location}|{name}", accounting)
        stays_on_disk = not in_memory or full_size is not None
        loaded[name] = item if stays_on_disk else LoadedSplit(read_into_memory(item.split), item.all_gray)
        if not loaded[name].split:
            raise ValueError(f"{location}: no readable {name} image. {accounting.reasons()}".rstrip(". "))
    data = build_dataset(f"hf:{location}", classes, loaded, accounting, options)
    return replace(data, fold_column=find_column(first.column_names, "fold", options.fold_column, location))


def import_datasets() -> Any:
    """Import datasets; ValueError with the installation command if it is missing."""
    try:
        import datasets
    except ImportError:
        raise ValueError("hf: needs the library datasets: pip install 'googlenet[hf]'") from None
    return datasets


def _splits(location: str, accounting: Accounting) -> dict[str, Any]:
    """Return the `datasets.Dataset` of each split, in the order of `SPLITS`; others are excluded."""
    datasets = import_datasets()
    path = Path(location).expanduser()
    try:
        if not path.exists():
            name, _, config = location.partition(":")
            loaded = datasets.load_dataset(name, config or None)
        elif path.is_file():
            loaded = datasets.load_dataset(FORMATS[path.suffix.lower()], data_files=str(path))
        elif any((path / name).is_file() for name in SAVED_FILES):
            loaded = datasets.load_from_disk(str(path))
        else:
            loaded = datasets.load_dataset(str(path))
    except KeyError:
        known = ", ".join(FORMATS)
        raise ValueError(f"{path}: not a file that datasets reads ({known}); name its folder") from None
    except Exception as error:  # of the network, of the hub and of parsers
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        advice = "" if path.exists() else "; without a network, give the path of a downloaded folder or Parquet file"
        raise ValueError(f"{location}: cannot load the data set: {reason}{advice}") from None
    parts = loaded if isinstance(loaded, dict) else {"train": loaded}
    by_split: dict[str, Any] = {}
    for name, part in parts.items():
        split = split_name(name)
        if split is None or split in by_split or not len(part):
            accounting.exclude("image", "in a split that is not train, validation or test", f"{name} 0", len(part))
        else:
            by_split[split] = part
    if not by_split:
        raise ValueError(f"{location}: its splits are {', '.join(parts)}; one must be train, validation or test")
    return {split: by_split[split] for split in SPLITS if split in by_split}


def _of_type(part: Any, kind: str) -> list[str]:
    return [name for name, feature in part.features.items() if type(feature).__name__ == kind]


def _image_column(location: str, part: Any, options: LoadOptions) -> str:
    columns = part.column_names
    if options.image_column is not None:
        column = require_column(dict.fromkeys(columns), "image", options.image_column, location)
        if column not in _of_type(part, "Image"):
            raise ValueError(
                f"{location}: the column {column!r} has no images; for paths in a table use --data table:FILE"
            )
        return column
    images = _of_type(part, "Image")
    if len(images) != 1:
        found = f"the columns {listed(images)} have images: choose one with --data.image_column" if images else (
            f"no column has images; the columns are {listed(columns)}; for paths in a table use --data table:FILE"
        )  # fmt: skip
        raise ValueError(f"{location}: {found}")
    return images[0]


def _label_column(location: str, part: Any, image: str, options: LoadOptions) -> str:
    labels = _of_type(part, "ClassLabel")
    rest: list[str] = [name for name in part.column_names if name != image]
    if options.label_column is None and len(labels) == 1:
        return labels[0]
    if options.label_column is None and len(rest) == 1:
        return rest[0]
    return require_column(dict.fromkeys(rest), "label", options.label_column, location)


def _read_labels(parts: dict[str, Any], column: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return the classes and the labels of each split, int64 (n,): `UNKNOWN` for one without training images."""
    values = {name: part.data.column(column).to_pylist() for name, part in parts.items()}
    feature = next(iter(parts.values())).features[column]
    if type(feature).__name__ == "ClassLabel":
        classes = tuple(feature.names)
        numbers: dict[Any, int] = {number: number for number in range(len(classes))}
    else:
        if any(isinstance(value, list | dict) for items in values.values() for value in items):
            raise ValueError(f"the column {column!r} has several labels per image: choose another --data.label_column")
        values = {name: [cell_text(value) for value in items] for name, items in values.items()}
        classes = sort_classes(name for name in values.get("train", next(iter(values.values()))) if name)
        numbers = {name: number for number, name in enumerate(classes)}
    indices = {
        name: np.array([numbers.get(value, UNKNOWN) for value in items], np.int64) for name, items in values.items()
    }
    return classes, indices


def _drop_unknown(split: Split, accounting: Accounting) -> Split:
    known = split.labels != UNKNOWN
    if bool(known.all()):
        return split
    unknown = (~known).nonzero().flatten().tolist()
    reason = "no label, or of a class without training images"
    accounting.exclude("image", reason, split.names[unknown[0]], len(unknown), invalid=True)
    return split.select(known)


def _columns(part: Any, image: str) -> dict[str, Any]:
    """Return the columns of numbers, texts and lists of these, by name."""
    from pyarrow import types

    table, columns = part.data, {}
    for field in table.schema:
        value_type = field.type.value_type if types.is_list(field.type) else field.type
        if field.name != image and (types.is_primitive(value_type) or types.is_string(value_type)):
            columns[field.name] = object_array(table.column(field.name).to_pylist())
    return columns


def byte_ranges(part: Any, image: str) -> ByteRanges:
    """Return where the encoded images of a `datasets.Dataset` are: in its Arrow files, or in files of their own."""
    files, rows = list[str](), list[tuple[int, int, int]]()
    for arrow_file in (item["filename"] for item in part.cache_files):
        number = len(files)
        files.append(arrow_file)
        for start, size, path in _images_in_arrow_file(arrow_file, image):
            if size >= 0:
                rows.append((number, start, size))
            else:
                rows.append((len(files), 0, -1))
                files.append(path)
    if len(rows) != len(part):
        raise ValueError(
            f"{image}: {len(part):,} images, but {len(rows):,} in the Arrow files; save the data set again"
        )
    file, starts, sizes = np.array(rows, np.int64).reshape(-1, 3).T
    names = np.array([os.fsencode(name) for name in files], np.bytes_)
    return ByteRanges(names, file.astype(np.int32), starts, sizes)


def _images_in_arrow_file(path: str, column: str) -> Iterator[tuple[int, int, str]]:
    """Yield the first byte and the size of each image in an Arrow file; or 0, -1 and the path of its own file.

    The file is mapped to memory, so the position in it is the difference of two addresses (Arrow's IPC format, without
    compression).
    """
    import pyarrow

    with pyarrow.memory_map(path) as mapped:
        whole = mapped.read_buffer()
        mapped.seek(0)
        for batch in pyarrow.ipc.open_stream(mapped):
            images = batch.column(column)
            yield from _positions(images.field("bytes"), whole, images.field("path").to_pylist(), path)


def _positions(content: Any, whole: Any, paths: Sequence[str | None], where: str) -> Iterator[tuple[int, int, str]]:
    import pyarrow

    valid, offsets, data = content.is_valid().to_pylist(), content.buffers()[1], content.buffers()[2]
    width = np.int64 if pyarrow.types.is_large_binary(content.type) else np.int32
    bounds = np.frombuffer(offsets, width)[content.offset :] if offsets else np.zeros(len(content) + 1, width)
    first = data.address - whole.address if data else 0
    if data and not 0 <= first <= whole.size:
        raise ValueError(
            f"{where}: compressed Arrow files are not read in place; save the data set without compression"
        )
    for row, is_valid in enumerate(valid):
        if is_valid:
            yield first + int(bounds[row]), int(bounds[row + 1] - bounds[row]), ""
        else:
            yield 0, -1, paths[row] or where
