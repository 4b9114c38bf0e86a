"""ImageNet's layouts: training images in one folder per WordNet synset, validation images in one folder with a list.

    train/n01440764/n01440764_10026.JPEG ...
    val/ILSVRC2012_val_00000001.JPEG ...        or val/n01440764/..., one folder per synset
    val.txt or LOC_val_solution.csv             if val has no folders: see `read_label_file`
    LOC_synset_mapping.txt                      optional: the synsets in order, with their names

Kaggle's download, which has the images in ``ILSVRC/Data/CLS-LOC``, is recognized.
"""

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..dataset import Dataset, LoadOptions
from ..decode import image_files, printable
from .folder import SPLIT_NAMES, Files, ImageTree, class_files, class_folders, load_tree, split_folders

KAGGLE_SUBDIRS = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
MAX_PARENTS = 3  # levels from the folder with the splits up to the root of Kaggle's download
MAPPINGS = ("LOC_synset_mapping.txt", "synset_words.txt", "classes.txt")
LABEL_FILES = ("val.txt", "validation.txt", "LOC_val_solution.csv")
SYNSET = re.compile(r"n\d{8}")


def load(location: str, options: LoadOptions) -> Dataset:
    """Load ImageNet or a data set in its layout, also validation images alone; ValueError for another layout."""
    tree = imagenet_tree(Path(location))
    return replace(load_tree(tree, f"imagenet:{location}", options), synsets=tree.folders)


def imagenet_tree(root: Path) -> ImageTree:
    """List the image files of ImageNet, without opening any."""
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    base, roots = _find_splits(root)
    search_dirs = [*roots.values(), base, *base.parents[:MAX_PARENTS]]
    if base.is_relative_to(root):
        search_dirs = [path for path in search_dirs if path.is_relative_to(root)]
    mapping = _read_mapping(search_dirs)
    present = {split: [folder.name for folder in class_folders(path)] for split, path in roots.items()}
    train = present.get("train")
    order = list(mapping) or train or present.get("validation") or list(imagenet_synsets())
    folders = tuple(synset for synset in order if synset in train) if train else tuple(order)
    if len(folders) < 2:
        raise ValueError(f"{root}: needs at least two folders, one per class; found {len(folders)}")
    files: dict[str, Files] = {split: [] for split in SPLIT_NAMES}
    ignored = []
    for split, path in list(roots.items()):
        if present[split]:
            files[split] = class_files(path, folders)
            reason = "not a class of the training images" if train else "not a class of the mapping"
            ignored += [f"{printable(path / name)}: {reason}" for name in present[split] if name not in folders]
        elif split == "validation":
            label_file = _find_file(search_dirs, LABEL_FILES)
            if label_file is None:
                names = " or ".join(LABEL_FILES[::2])
                raise ValueError(f"{path}: no class folders and no label file; put {names} beside it")
            files[split], messages = _labeled_files(path, label_file, order, folders)
            ignored += messages
        else:
            del roots[split]  # ImageNet's test images have no labels.
    return ImageTree(folders, class_names(folders, mapping), roots, files, ignored)


def _find_splits(root: Path) -> tuple[Path, dict[str, Path]]:
    """Return the folder that contains the splits, and the folder of each; `root` may be one of these itself."""
    for base in (root, *(root / name for name in KAGGLE_SUBDIRS)):
        roots = split_folders(base)
        if "train" in roots or "validation" in roots:
            return base, roots
    root = root.absolute()
    if class_folders(root) and root.name not in SPLIT_NAMES["validation"]:
        return root, {"train": root}
    if not class_folders(root) and next(image_files(root), None) is None:
        raise ValueError(f"{root}: neither train nor val is in it, nor an image")
    return root.parent, {"validation": root}


def read_label_file(path: Path) -> list[tuple[int, str, int | str]]:
    """Read (line, image, class index or name) of each entry; ValueError with the line for another kind of file.

    - ``ILSVRC2012_val_00000001.JPEG 65``, Caffe's ``val.txt``: the class index from 0, or the class folder's name;
    - ``ILSVRC2012_val_00000001,n01751748 111 108 441 193``, Kaggle's ``LOC_val_solution.csv``: the class, then boxes.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as a list of images ({error})") from None
    # In a text file the name may contain spaces; the class is the last word.
    text_rows = ([*line.strip().rpartition(" ")[::2]] if line.strip() else [] for line in lines)
    entries: list[tuple[int, str, int | str]] = []
    for number, row in enumerate(csv.reader(lines) if path.suffix.lower() == ".csv" else text_rows, start=1):
        if not row or row == ["ImageId", "PredictionString"]:
            continue
        name, labels = (row[0].strip(), row[1].split()) if len(row) == 2 else ("", [])
        if not name or not labels:
            raise ValueError(f"{path}: line {number} is not an image and its class")
        entries.append((number, name, int(labels[0]) if labels[0].isdecimal() else labels[0]))
    if not entries:
        raise ValueError(f"{path}: lists no images")
    return entries


def _labeled_files(root: Path, label_file: Path, order: list[str], folders: tuple[str, ...]) -> tuple[Files, list[str]]:
    """List the images below `root` with their labels, in the order of `label_file`; also messages about ignored ones.

    An entry matches the image's path in the folder, else its file name, else its file name without suffix; a class
    index refers to `order`. Raises ValueError if an image is listed twice or no image is found.
    """
    images, entries = list(image_files(root)), read_label_file(label_file)
    by_name = {path.stem: path for path in images}
    by_name |= {path.name: path for path in images}
    by_name |= {path.relative_to(root).as_posix(): path for path in images}
    labels = {name: index for index, name in enumerate(folders)}
    lines: dict[Path, int] = {}
    files, missing, untrained = [], [], []
    for line, name, label in entries:
        path = by_name.get(name) or by_name.get(name.rpartition("/")[2])
        if path is None:
            missing.append(f"{name}: listed in {label_file.name}, not in {root}")
            continue
        if path in lines:
            raise ValueError(f"{label_file}: lines {lines[path]} and {line} list the same image")
        lines[path] = line
        if isinstance(label, int):
            if label >= len(order):
                raise ValueError(
                    f"{label_file}: line {line} has class {label} of {len(order)} classes, counted from 0; put "
                    f"{MAPPINGS[0]}, which lists all of them in order, beside it"
                )
            label = order[label]
        if label in labels:
            files.append((path, labels[label]))
        else:
            untrained.append(f"{printable(path)}: of class {label}, which has no training images")
    if not lines:
        raise ValueError(f"{label_file}: none of its images is in {root}; the first is {entries[0][1]}")
    unlisted = [f"{path}: not listed in {label_file.name}" for path in images if path not in lines]
    return files, [*missing, *unlisted, *untrained]


def _read_mapping(search_dirs: Sequence[Path]) -> dict[str, str]:
    """Read the names of each synset, in the order of the mapping file; empty if it does not exist."""
    path = _find_file(search_dirs, MAPPINGS)
    mapping: dict[str, str] = {}
    for number, line in enumerate(path.read_text().splitlines() if path else (), start=1):
        if not line.strip():
            continue
        synset, _, names = line.strip().partition(" ")
        if not names.strip() or synset in mapping:
            raise ValueError(
                f"{path}: line {number} is not a class folder and its name, such as n01440764 tench, Tinca tinca"
                + (f": {synset} is listed twice" if synset in mapping else "")
            )
        mapping[synset] = names.strip()
    return mapping


def _find_file(search_dirs: Sequence[Path], names: Sequence[str]) -> Path | None:
    return next((path / name for path in search_dirs for name in names if (path / name).is_file()), None)


def class_names(synsets: Sequence[str], mapping: dict[str, str]) -> tuple[str, ...]:
    """Return a unique English name for each synset: from the mapping, else from ImageNet, else the synset itself.

    Of several synonyms the first is used, or all of them if two classes share the first.
    """
    known = {} if all(synset in mapping for synset in synsets) else imagenet_synsets()
    full = [mapping.get(synset) or known.get(synset, synset) for synset in synsets]
    names = [name.partition(",")[0] for name in full]
    for longer in (full, [f"{name} ({synset})" for name, synset in zip(full, synsets, strict=True)]):
        counts = Counter(names)
        names = [more if counts[name] > 1 else name for name, more in zip(names, longer, strict=True)]
    return tuple(names)


@lru_cache
def imagenet_synsets() -> dict[str, str]:
    """Return the 1000 synsets of ILSVRC2012 in order, with the class names of published networks."""
    from timm.data.imagenet_info import ImageNetInfo
    from torchvision.models import GoogLeNet_Weights

    info: Any = ImageNetInfo()
    return dict(zip(info.label_names(), GoogLeNet_Weights.IMAGENET1K_V1.meta["categories"], strict=True))


def classes_match(data: Dataset, classes: Sequence[str]) -> bool:
    """Return whether `data` has the same classes in the same order; ImageNet's match as synsets and as names."""
    own = data.synsets or data.classes
    if len(own) != len(classes):
        return False
    if not all(map(SYNSET.fullmatch, own)) and not all(map(SYNSET.fullmatch, classes)):
        return data.classes == tuple(classes)
    known = imagenet_synsets()
    return all(
        other in (synset, name, known.get(synset)) or known.get(other) == synset
        for synset, name, other in zip(own, data.classes, classes, strict=True)
    )
