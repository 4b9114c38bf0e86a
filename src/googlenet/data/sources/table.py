"""Tables: a row of a CSV, TSV, JSON Lines or Parquet file has the path of an image, its label and further columns."""

import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...files import clean_name
from ..accounting import Accounting
from ..dataset import Dataset, LoadOptions, Split
from ..decode import printable
from ..image_files import Folder, exclude_rejected, scan_folder
from ..table_file import Table, cell_text, find_column, read_table, require_column, sort_classes
from .folder import ImageTree, load_tree
from .splits import SPLITS, split_name

NO_LABEL = "no label"


class Row(NamedTuple):
    """A row of a table whose image exists: its `number` in the table from 0, the image's path and the split."""

    number: int
    path: Path
    split: str


def load(location: str, options: LoadOptions) -> Dataset:
    """Load the images of a table with one label each; raises ValueError for a table without images or two classes.

    The columns of the table are in `Split.columns`.
    """
    accounting = Accounting(strict=options.on_error == "raise")
    table = read_table(Path(location), accounting)
    column = label_column(table, options)
    labels = {row: text for row, value in enumerate(table.columns[column]) if (text := label_text(value))}
    tree = scan_folder(table.path.parent)
    rows = list_rows(table, tree, options, labels.keys(), accounting)
    # Without training rows, the table is one to evaluate on.
    classes = sort_classes(labels[row.number] for row in [r for r in rows if r.split == "train"] or rows)
    if len(classes) < 2:
        found = f"found {len(classes)}. {accounting.reasons()}".rstrip(". ")
        raise ValueError(f"{location}: needs at least two classes in column {column!r}; {found}")
    numbers = {name: number for number, name in enumerate(classes)}
    used = []
    for row in rows:
        if labels[row.number] in numbers:
            used.append(row)
        else:
            entry = f"{table.positions[row.number]}: {labels[row.number]}"
            accounting.exclude("entry", "of a class without training images", entry, invalid=True)
    accounting.use("entry", len(used))
    exclude_unlisted(tree, table, used, accounting)
    return load_rows(table, used, [numbers[labels[row.number]] for row in used], classes, options, accounting)


def load_rows(
    table: Table,
    rows: Sequence[Row],
    labels: Sequence[int],
    classes: tuple[str, ...],
    options: LoadOptions,
    accounting: Accounting,
) -> Dataset:
    """Load the images of `rows` with their labels (indices of `classes`), and attach the columns of the table."""
    present = [split for split in SPLITS if any(row.split == split for row in rows)]
    # Ordered by class, so that evenly spaced images (`Split.subsample`) are of all classes.
    ordered = sorted(zip(labels, rows, strict=True), key=lambda item: (item[0], item[1].number))
    files = {split: [(row.path, label) for label, row in ordered if row.split == split] for split in SPLITS}
    tree = ImageTree((), classes, dict.fromkeys(present, table.path), files, accounting)
    data = load_tree(tree, f"table:{table.path}", options)
    index = {printable(row.path): row.number for row in rows}

    def with_columns(split: Split) -> Split:
        positions = np.array([index[name] for name in split.names], np.int64)
        return replace(split, columns={name: values[positions] for name, values in table.columns.items()})

    train, validation, test = map(with_columns, (data.train, data.validation, data.test))
    folds = find_column(table.columns, "fold", options.fold_column, table.path)
    return replace(data, train=train, validation=validation, test=test, fold_column=folds)


def label_column(table: Table, options: LoadOptions) -> str:
    """Return the column of the labels: the given one, one with a usual name, or the only one without another role."""
    columns, where = table.columns, table.path
    image = require_column(columns, "image", options.image_column, where)
    others = [find_column(columns, role, getattr(options, f"{role}_column"), where) for role in ("split", "fold")]
    rest = {name: values for name, values in columns.items() if name not in (image, *others)}
    if options.label_column is None and len(rest) == 1:
        return next(iter(rest))
    return require_column(columns if options.label_column else rest, "label", options.label_column, where)


def label_text(value: object) -> str:
    """Return the label of a cell, which may be a list with one label; "" for a missing one."""
    if isinstance(value, list) and len(value) == 1:
        return cell_text(value[0])
    if isinstance(value, list | dict):
        raise ValueError(
            f"a label is {str(value)[:60]}, but an image has one class: choose another --data.label_column"
        )
    return cell_text(value)


def list_rows(
    table: Table, tree: Folder, options: LoadOptions, labeled: Collection[int], accounting: Accounting
) -> list[Row]:
    """Return the usable rows of a table, in order; all others are excluded. `tree` is the folder of the table.

    Used are the rows of `labeled` (indices) whose image exists, is not in an earlier row, and has a split: that of the
    split column; without one, "validation" for the rows of `options.validation_fold`, else "train".
    """
    image = require_column(table.columns, "image", options.image_column, table.path)
    splits = _splits_of_rows(table, options)
    finder = ImageFinder(tree.path, list(tree.walk()))
    first, rows = dict[str, int](), list[Row]()
    for index, value in enumerate(table.columns[image]):
        position, text, path = table.positions[index], cell_text(value), None
        reason = f"no image in column {image!r}"
        if text:
            path, reason = finder.find(text)
        name = printable(path) if path else ""
        if path and name in first:
            reason = "lists the image of an earlier row again"
        elif path and splits[index] not in SPLITS:
            reason = f"unknown split {splits[index][:40]!r}: use train, validation or test"
        elif path and index not in labeled:
            reason = NO_LABEL
        elif path:
            rows.append(Row(index, path, splits[index]))
            reason = ""
        if path:
            first.setdefault(name, index)
        if reason:
            accounting.exclude("entry", reason, f"{position}: {text[:80]}", invalid=reason != NO_LABEL)
    return rows


def exclude_unlisted(tree: Folder, table: Table, rows: Sequence[Row], accounting: Accounting) -> None:
    """Exclude the images below the table's folder that are in none of `rows`.

    Other files do not belong to the data, except those that claim to be images.
    """
    used = {printable(row.path) for row in rows}
    for path in tree.walk():
        if (name := printable(path)) not in used:
            accounting.exclude("file", f"in no used row of {printable(table.path.name)}", name)
    for item in tree.all_rejected():
        if item.invalid:
            exclude_rejected(item._replace(invalid=False), accounting)


def _splits_of_rows(table: Table, options: LoadOptions) -> list[str]:
    """Return the split of each row, or the text that is none."""
    column = find_column(table.columns, "split", options.split_column, table.path)
    fold = find_column(table.columns, "fold", options.fold_column, table.path)
    names = [cell_text(value) for value in table.columns[column]] if column else ["train"] * len(table)
    splits = [split_name(name) or name for name in names]
    if options.validation_fold is None:
        return splits
    if fold is None:
        raise ValueError(f"{table.path}: data.validation_fold needs a column of folds: --data.fold_column")
    folds = [cell_text(value) for value in table.columns[fold]]
    if options.validation_fold not in folds:
        known = ", ".join(sort_classes(folds)[:12])
        raise ValueError(f"{table.path}: no row has the fold {options.validation_fold!r} in {fold!r}; folds: {known}")
    held_out = (
        split == "train" and value == options.validation_fold for split, value in zip(splits, folds, strict=True)
    )
    return ["validation" if is_held_out else split for is_held_out, split in zip(held_out, splits, strict=True)]


class ImageFinder:
    """Finds the image that a table names: by a path, or by a file name with or without suffix."""

    def __init__(self, root: Path, images: Sequence[Path]):
        """Index the `images` below the folder `root` of the table."""
        self.root = root
        self.images = set(images)
        self.by_name: dict[str, list[Path]] = {}
        for path in images:
            for name in {clean_name(path.name), clean_name(path.stem)}:
                self.by_name.setdefault(name, []).append(path)

    def find(self, text: str) -> tuple[Path | None, str]:
        """Return the image, or None and the reason.

        An absolute path, or one relative to the table's folder, comes first. Else it is the only image below that
        folder whose path ends with the text, with or without its suffix; `\\` separates folders as `/` does.
        """
        for name in map(os.path.normpath, (text, text.replace("\\", "/"))):
            path = self.root / name
            is_outside = os.path.isabs(name) or name.startswith("..")
            if path in self.images or (is_outside and path.is_file()):
                return path, ""
        parts = [part for part in re.split(r"[\\/]", text) if part not in ("", ".")]
        found = list(self._ending_with(parts)) if parts else []
        if len(found) == 1:
            return found[0], ""
        return None, "names several images: give the path" if found else "its image does not exist"

    def _ending_with(self, parts: list[str]) -> Iterator[Path]:
        for path in self.by_name.get(parts[-1], ()):
            if [clean_name(part) for part in path.parts[-len(parts) : -1]] == parts[:-1]:
                yield path
