"""Tables of images: CSV, TSV, JSON Lines or Parquet files with one row per image, and the roles of their columns."""

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import nearest
from ..files import clean_name, raise_for_placeholder, read_text
from .accounting import Accounting

# Names of columns by role, in lower case, the most usual first.
COLUMN_NAMES = {
    "image": (
        "path", "image_path", "img_path", "file_path", "filepath", "file_name", "filename", "file", "image_name",
        "image", "img", "image_file", "image_id", "imageid", "img_id", "id_code", "uuid", "id", "name",
    ),
    "label": (
        "label", "labels", "class", "classes", "class_name", "classname", "category", "target", "tags", "y", "species",
        "diagnosis", "label_name", "class_id", "fine_label", "category_id",
    ),
    "split": ("split", "subset", "set", "partition", "usage", "data_set", "dataset", "phase"),
    "fold": ("fold", "kfold", "cv_fold", "fold_id", "folds"),
}  # fmt: skip
MAX_LISTED = 12  # columns that an error message lists
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


class Table(NamedTuple):
    """The columns of a table by name, with one value per row, and where each row is, for messages.

    Values of CSV and TSV files are strings. Those of the other formats are strings, numbers, booleans, lists or None.
    """

    path: Path
    columns: dict[str, NDArray[np.object_]]
    positions: list[str]

    def __len__(self) -> int:
        return len(self.positions)


def read_table(path: Path, accounting: Accounting) -> Table:
    """Read a table; rows with a wrong number of fields are excluded in `accounting` as entries.

    Raises ValueError for a missing file, another format, repeated names of columns, or no rows.
    """
    if not path.is_file():
        raise ValueError(f"{path}: {'a folder; name a file in it' if path.is_dir() else 'no such file'}")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: a table must be a file with the suffix {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    raise_for_placeholder(path)
    read = {".parquet": _read_parquet, ".jsonl": _read_json_lines}.get(suffix, _read_delimited)
    names, positions, rows = read(path, accounting)
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"{path}: two columns have the name {repeated[0]!r}; rename one")
    if not rows:
        raise ValueError(f"{path}: has no rows. {accounting.reasons()}".rstrip(". "))
    values = zip(*rows, strict=True)
    return Table(path, {name: object_array(column) for name, column in zip(names, values, strict=True)}, positions)


Rows = tuple[list[str], list[str], list[tuple[Any, ...]]]


def _read_delimited(path: Path, accounting: Accounting) -> Rows:
    """Read the names of the columns, the positions of the rows and the rows of a CSV or TSV file."""
    text = read_text(path)
    header = text.lstrip("\n").partition("\n")[0]
    # Spreadsheets separate by semicolons where the comma is the decimal sign.
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    names, positions, rows = list[str](), list[str](), list[tuple[Any, ...]]()
    try:
        for row in reader:
            if not any(row):
                continue
            position = f"{path}, line {reader.line_num}"
            if not names:
                names = [clean_name(name) for name in row]
            elif len(row) == len(names):
                positions.append(position)
                rows.append(tuple(row))
            else:
                accounting.exclude("entry", f"does not have {len(names)} fields", position, invalid=True)
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num} cannot be read ({error})") from None
    return names, positions, rows


def _read_json_lines(path: Path, accounting: Accounting) -> Rows:
    positions, objects = list[str](), list[dict[str, Any]]()
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        position = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            positions.append(position)
            objects.append({clean_name(key): item for key, item in value.items()})
        else:
            accounting.exclude("entry", "not a JSON object", position, invalid=True)
    names = list(dict.fromkeys(name for item in objects for name in item))
    return names, positions, [tuple(item.get(name) for name in names) for item in objects]


def _read_parquet(path: Path, _: Accounting) -> Rows:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ValueError(f"{path}: Parquet files require pyarrow: pip install 'googlenet[hf]'") from None
    try:
        with parquet.ParquetFile(path) as file:
            if any(str(field.type).startswith("struct<bytes") for field in file.schema_arrow):
                raise ValueError(f"{path}: contains the images themselves: use --data hf:{path}")
            table = file.read()
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from None
    positions = [f"{path}, row {number}" for number in range(1, table.num_rows + 1)]
    names = [clean_name(name) for name in table.column_names]
    return names, positions, list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def object_array(values: Sequence[Any]) -> NDArray[np.object_]:
    """Return a one-dimensional array of Python objects, also of lists."""
    array = np.empty(len(values), object)
    array[:] = values
    return array


def find_column(columns: Iterable[str], role: str, given: str | None, where: Path | str) -> str | None:
    """Return the column of a role of `COLUMN_NAMES`: `given`, or the first with a usual name, in any case; or None.

    Raises ValueError if there is no column `given`.
    """
    names = list(columns)
    if given is not None:
        if given not in names:
            raise ValueError(f"{where}: no column {given!r}{nearest(given, names)}; the columns are {listed(names)}")
        return given
    by_key = {re.sub(r"[\s-]+", "_", name.lower()): name for name in reversed(names)}
    return next((by_key[name] for name in COLUMN_NAMES[role] if name in by_key), None)


def require_column(columns: Mapping[str, Any], role: str, given: str | None, where: Path | str) -> str:
    """Return the column of `find_column`; ValueError with the names of the columns if it is missing."""
    found = find_column(columns, role, given, where)
    if found is None:
        raise ValueError(
            f"{where}: which column has the {role}? Choose one with --data.{role}_column; "
            f"the columns are {listed(list(columns))}"
        )
    return found


def listed(names: Sequence[str]) -> str:
    """Return the first `MAX_LISTED` names for a message, and the number of the others."""
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def cell_text(value: Any) -> str:
    """Return a value as a name: integral floats, which tables with missing values have, as integers; "" if missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else clean_name(value)


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Return different class names in order: by value if all are integers, else as text."""
    unique = set(names)
    numeric = all(re.fullmatch(r"-?\d{1,18}", name) for name in unique)
    return tuple(sorted(unique, key=lambda name: (int(name), name))) if numeric else tuple(sorted(unique))
