"""Tables of images with any number of labels each: texts separated by ``;`` or ``|``, or lists."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..accounting import Accounting
from ..dataset import Dataset, LoadOptions, Split
from ..image_files import scan_folder
from ..table_file import cell_text, read_table, sort_classes
from .table import exclude_unlisted, label_column, list_rows, load_rows

SEPARATORS = re.compile(r"[;|]")


def load(location: str, options: LoadOptions) -> Dataset:
    """Load the images of a table with their labels, bool (n, classes); an empty cell means that an image has none.

    The classes are the labels of the training images. Raises ValueError for a table without images or with fewer than
    two labels, and for one without a readable training image of some label.
    """
    accounting = Accounting(strict=options.on_error == "raise")
    table = read_table(Path(location), accounting)
    column = label_column(table, options)
    labels = [split_labels(value) for value in table.columns[column]]
    tree = scan_folder(table.path.parent)
    rows = list_rows(table, tree, options, range(len(table)), accounting)
    training = [row for row in rows if row.split == "train"] or rows
    classes = sort_classes(name for row in training for name in labels[row.number])
    if len(classes) < 2:
        found = f"found {len(classes)}. {accounting.reasons()}".rstrip(". ")
        raise ValueError(f"{location}: needs at least two different labels in column {column!r}; {found}")
    numbers = {name: number for number, name in enumerate(classes)}
    for row in rows:
        if unknown := [name for name in labels[row.number] if name not in numbers]:
            accounting.exclude(
                "label", "not a label of a training image", f"{table.positions[row.number]}: {unknown[0]}"
            )
    accounting.use("entry", len(rows))
    exclude_unlisted(tree, table, rows, accounting)
    # Loaded as images of one class; their labels follow from their rows.
    data = load_rows(table, rows, [0] * len(rows), ("image",), options, accounting)

    def with_labels(split: Split) -> Split:
        values = split.columns.get(column, ())
        return replace(split, labels=label_matrix([split_labels(value) for value in values], numbers))

    train, validation, test = map(with_labels, (data.train, data.validation, data.test))
    if len(train):
        missing = [name for name, count in zip(classes, train.labels.sum(0).tolist(), strict=True) if not count]
        if missing:
            raise ValueError(f"{location}: no readable training image of label {', '.join(missing)}. "
                             f"{accounting.reasons()}".rstrip(". "))  # fmt: skip
    if unlabeled := sum(not labels[row.number] for row in rows):
        accounting.notes.append(f"{unlabeled:,} of {len(rows):,} images have no label")
    return replace(data, classes=classes, train=train, validation=validation, test=test)


def split_labels(value: object) -> list[str]:
    """Return the different labels of a cell: a text with separators or a list; none for a missing value."""
    if isinstance(value, dict):
        raise ValueError(f"a label is {str(value)[:60]}: use a list, or texts separated by ; or |")
    items: Sequence[object] = value if isinstance(value, list) else SEPARATORS.split(cell_text(value))
    names = (cell_text(item) for item in items)
    return list(dict.fromkeys(name for name in names if name))


def label_matrix(labels: Sequence[Sequence[str]], numbers: dict[str, int]) -> Tensor:
    """Return the labels of each image, bool (n, classes); names that are not in `numbers` are ignored."""
    matrix = torch.zeros(len(labels), len(numbers), dtype=torch.bool)
    for row, names in zip(matrix, labels, strict=True):
        row[[numbers[name] for name in names if name in numbers]] = True
    return matrix
