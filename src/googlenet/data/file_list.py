"""A list that says of which class each picture is: ImageNet's validation pictures lie in one folder and need one.

- ``ILSVRC2012_val_00000001.JPEG 65``, Caffe's ``val.txt``: the class's number, counted from 0, or its folder's name;
- ``ILSVRC2012_val_00000001,n01751748 111 108 441 193``, Kaggle's ``LOC_val_solution.csv``: the class, then boxes.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .pictures import picture_files


class Entry(NamedTuple):
    """One line: a picture by its `name`, with or without folders and suffix, and its `label`, a number or a name."""

    line: int
    name: str
    label: int | str


def read_list(path: Path) -> list[Entry]:
    """The entries in order; ValueError, naming the line, for what is no list of pictures and classes."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as a list of pictures ({error})") from None
    entries = []
    for number, name, label in (_kaggle if path.suffix.lower() == ".csv" else _caffe)(text):
        if not name or not label:
            raise ValueError(f"{path}: line {number} is not a picture and its class")
        entries.append(Entry(number, name, int(label) if label.isdecimal() else label))
    if not entries:
        raise ValueError(f"{path}: lists no pictures")
    return entries


def _caffe(text: str) -> Iterator[tuple[int, str, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            # A name may have spaces in it; the class is the last word.
            name, _, label = line.strip().rpartition(" ")
            yield number, name.strip(), label


def _kaggle(text: str) -> Iterator[tuple[int, str, str]]:
    for number, row in enumerate(csv.reader(text.splitlines()), start=1):
        if row and row != ["ImageId", "PredictionString"]:
            words = row[1].split() if len(row) == 2 else []
            yield number, row[0].strip(), words[0] if words else ""


class Labelled(NamedTuple):
    """The `files` of a folder that its list has, with their entries; and what of both was `left_out`, and why."""

    files: list[tuple[Path, Entry]]
    left_out: list[str]


def label_files(folder: Path, listed: Path) -> Labelled:
    """The pictures of `folder`, at any depth, in the order of the list at `listed`.

    Pictures are found by their path in the folder, else by their name, else by their name without its suffix.
    ValueError where a picture is listed twice, and where none is found.
    """
    there = list(picture_files(folder))
    places = {path.stem: path for path in there}
    places |= {path.name: path for path in there}
    places |= {path.relative_to(folder).as_posix(): path for path in there}
    found: dict[Path, Entry] = {}
    left_out = []
    for entry in read_list(listed):
        path = places.get(entry.name) or places.get(entry.name.rpartition("/")[2])
        if path is None:
            left_out.append(f"{entry.name}: listed in {listed.name}, not in {folder}")
        elif path in found:
            raise ValueError(f"{listed}: lines {found[path].line} and {entry.line} are of the same picture")
        else:
            found[path] = entry
    if not found:
        raise ValueError(f"{listed}: none of its pictures is in {folder}; the first is {read_list(listed)[0].name}")
    left_out += [f"{path}: not listed in {listed.name}" for path in there if path not in found]
    return Labelled(list(found.items()), left_out)
