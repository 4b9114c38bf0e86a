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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...files import clean_name, missing_folder, read_text
from ..accounting import Accounting
from ..dataset import Dataset, LoadOptions
from ..decode import printable
from ..image_files import Folder, scan_folder
from .folder import Files, ImageTree, class_files, load_tree, too_few_classes
from .splits import (
    NO_CLASS_FOLDERS,
    NOT_IN_CLASS,
    SPLITS,
    choose_splits,
    class_key,
    exclude_unused,
    mark_classes,
    split_name,
)

KAGGLE_SUBDIRS = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
MAX_PARENTS = 3  # levels from the folder with the splits up to the root of Kaggle's download
MAPPINGS = ("LOC_synset_mapping.txt", "synset_words.txt", "classes.txt")
LABEL_FILES = ("val.txt", "validation.txt", "LOC_val_solution.csv")
SYNSET = re.compile(r"n\d{8}")


def load(location: str, options: LoadOptions) -> Dataset:
    """Load ImageNet or a data set in its layout, also validation images alone; ValueError for another layout."""
    tree = imagenet_tree(Path(location), options.on_error == "raise")
    return replace(load_tree(tree, f"imagenet:{location}", options), synsets=tree.folders)


def imagenet_tree(root: Path, strict: bool = False) -> ImageTree:
    """List the image files of ImageNet, without opening any; with `strict`, an unusable one raises ImageError."""
    if not root.is_dir():
        raise missing_folder(root)
    accounting, reasons, tree = Accounting(strict=strict), dict[Path, str](), scan_folder(root)
    base, splits = _find_splits(tree, reasons)
    roots = {split: folder.path for split, folder in splits.items()}
    search_dirs = [*roots.values(), base, *base.parents[:MAX_PARENTS]]
    if base.is_relative_to(root):
        search_dirs = [path for path in search_dirs if path.is_relative_to(root)]
    mapping_file = _find_file(search_dirs, MAPPINGS)
    mapping = _read_mapping(mapping_file) if mapping_file else {}
    present = {split: list(map(class_key, folder.folders)) for split, folder in splits.items()}
    train = present.get("train")
    order = list(mapping) or sorted({*(train or present.get("validation", []))}) or list(imagenet_synsets())
    folders = tuple(synset for synset in order if synset in train) if train else tuple(order)
    if len(folders) < 2:
        raise too_few_classes(root, len(folders), tree)
    files = {split: class_files(splits.get(split), folders) for split in SPLITS}
    used = mark_classes(splits.values(), folders, reasons) | ({mapping_file} if mapping_file else set())
    for split in [split for split in splits if not set(present[split]) & set(folders)]:
        if split == "validation":
            label_file = _find_file(search_dirs, LABEL_FILES)
            if label_file is None:
                names = " or ".join(LABEL_FILES[::2])
                raise ValueError(f"{roots[split]}: no class folders and no label file; put {names} beside it")
            files[split] = _labeled_files(splits[split], label_file, order, folders, accounting)
            used |= {label_file, roots[split]}
        else:
            reasons[roots.pop(split)] = NO_CLASS_FOLDERS  # ImageNet's test images have no labels.
    exclude_unused(tree, reasons, used, accounting, NOT_IN_CLASS)
    return ImageTree(folders, class_names(folders, mapping), roots, files, accounting)


def _find_splits(tree: Folder, reasons: dict[Path, str]) -> tuple[Path, dict[str, Folder]]:
    """Return the folder that contains the splits, and the folder of each; `tree` may be one of these itself."""
    for parts in ((), *(tuple(name.split("/")) for name in KAGGLE_SUBDIRS)):
        base: Folder | None = tree
        for part in parts:
            base = next((folder for folder in base.folders if folder.path.name == part), None) if base else None
        splits = choose_splits([each for each in base.folders if split_name(each.path.name)], reasons) if base else {}
        if base and ("train" in splits or "validation" in splits):
            return base.path, splits
    root = tree.path.absolute()
    if tree.folders and split_name(root.name) != "validation":
        return root, {"train": tree}
    if not tree.folders and not tree.images:
        raise ValueError(f"{root}: neither train nor val is in it, nor an image")
    return root.parent, {"validation": tree}


def read_label_file(path: Path) -> list[tuple[int, str, int | str]]:
    """Read (line, image, class index or name) of each entry; ValueError with the line for another kind of file.

    - ``ILSVRC2012_val_00000001.JPEG 65``, Caffe's ``val.txt``: the class index from 0, or the class folder's name;
    - ``ILSVRC2012_val_00000001,n01751748 111 108 441 193``, Kaggle's ``LOC_val_solution.csv``: the class, then boxes.
    """
    lines = read_text(path).split("\n")
    # In a text file the name may contain spaces; the class is the last word.
    text_rows = (line.strip().rsplit(maxsplit=1) for line in lines)
    entries: list[tuple[int, str, int | str]] = []
    for number, row in enumerate(csv.reader(lines) if path.suffix.lower() == ".csv" else text_rows, start=1):
        if not row or row == ["ImageId", "PredictionString"]:
            continue
        name, labels = (row[0].strip(), row[1].split()) if len(row) == 2 else ("", [])
        if not name or not labels:
            raise ValueError(f"{path}: line {number} is not an image and its class")
        entries.append((number, name, int(labels[0]) if re.fullmatch(r"\d{1,9}", labels[0]) else labels[0]))
    if not entries:
        raise ValueError(f"{path}: lists no images")
    return entries


def _labeled_files(
    folder: Folder, label_file: Path, order: list[str], folders: tuple[str, ...], accounting: Accounting
) -> Files:
    """List the images in `folder` with their labels, in the order of `label_file`; others are excluded.

    An entry matches the image's path in the folder, else its file name, else its file name without suffix; a class
    index refers to `order`. Raises ValueError if an image is listed twice or no image is found.
    """
    root, images, entries = folder.path, list(folder.walk()), read_label_file(label_file)
    by_name = {path.stem: path for path in images}
    by_name |= {path.name: path for path in images}
    by_name |= {path.relative_to(root).as_posix(): path for path in images}
    labels = {name: index for index, name in enumerate(folders)}
    lines: dict[Path, int] = {}
    files = []
    for line, name, label in entries:
        path = _match(name, by_name)
        entry = f"{label_file}, line {line}: {name}"
        if path is None:
            accounting.exclude("entry", f"listed in {label_file.name}, but not an image in {root}", entry, invalid=True)
            continue
        if path in lines:
            raise ValueError(f"{label_file}: lines {lines[path]} and {line} list the same image")
        lines[path] = line
        synset = _class_of(label, order, f"{label_file}: line {line}")
        if synset in labels:
            files.append((path, labels[synset]))
            accounting.use("entry")
        else:
            reason = "of a class without training images"
            accounting.exclude("entry", reason, f"{entry} {synset}", invalid=True)
            accounting.exclude("file", reason, printable(path))
    if not lines:
        raise ValueError(f"{label_file}: none of its images is in {root}; the first is {entries[0][1]}")
    for path in images:
        if path not in lines:
            accounting.exclude("file", f"not listed in {label_file.name}", printable(path), invalid=True)
    return files


def _match(name: str, by_name: Mapping[str, Path]) -> Path | None:
    """Return the image of an entry; Windows separates its path with backslashes."""
    names = (name, name.rpartition("/")[2], name.replace("\\", "/"), re.split(r"[/\\]", name)[-1])
    return next((by_name[each] for each in names if each in by_name), None)


def _class_of(label: int | str, order: Sequence[str], where: str) -> str:
    """Return the class folder of a label; ValueError for an index out of range or a number that is no index."""
    if isinstance(label, str):
        name = clean_name(label)
        if name not in order and re.fullmatch(r"[-+.]?\d[\d.,]*(e[-+]?\d+)?|nan|[-+]?inf", name, re.IGNORECASE):
            raise ValueError(f"{where} has the class {label!r}: neither a class folder nor an index from 0")
        return name
    if label >= len(order):
        raise ValueError(
            f"{where} has class {label} of {len(order)} classes, counted from 0; put {MAPPINGS[0]}, which lists all of "
            "them in order, beside it"
        )
    return order[label]


def _read_mapping(path: Path) -> dict[str, str]:
    """Read the names of each synset, in the order of the mapping file."""
    mapping: dict[str, str] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        synset, *names = clean_name(line).split(maxsplit=1)
        if not names or synset in mapping:
            raise ValueError(
                f"{path}: line {number} is not a class folder and its name, such as n01440764 tench, Tinca tinca"
                + (f": {synset} is listed twice" if synset in mapping else "")
            )
        mapping[synset] = names[0]
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
        # Names on a disk and in a checkpoint may be in different Unicode forms.
        return [clean_name(name) for name in data.classes] == [clean_name(name) for name in classes]
    known = imagenet_synsets()
    return all(
        other in (synset, name, known.get(synset)) or known.get(other) == synset
        for synset, name, other in zip(own, data.classes, classes, strict=True)
    )
