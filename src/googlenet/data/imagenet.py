"""ImageNet as people have it: a folder per WordNet synset to train on, validation pictures in one folder with a list.

    train/n01440764/n01440764_10026.JPEG ...
    val/ILSVRC2012_val_00000001.JPEG ...        or val/n01440764/..., a folder per synset
    val.txt or LOC_val_solution.csv             where val has no folders: see `file_list`
    LOC_synset_mapping.txt                      the synsets in order, with their names, where there is one

Kaggle's download has the pictures in ``ILSVRC/Data/CLS-LOC``, which is found.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from .dataset import Dataset
from .file_list import label_files
from .folder import VALIDATION_NAMES, Files, Tree, class_files, class_folders, load_tree, printable
from .pictures import picture_files

INNER = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
MAPPINGS = ("LOC_synset_mapping.txt", "synset_words.txt", "classes.txt")
LISTS = ("val.txt", "validation.txt", "LOC_val_solution.csv")

# From the folder of the parts up to the root of Kaggle's download.
ABOVE = 3

SYNSET = re.compile(r"n\d{8}")


def load_imagenet(root: Path, **options: Any) -> Dataset:
    """Read ImageNet, or a data set laid out like it; `options` are those of `load_folder`.

    Classes are called by their English names: the mapping's where there is one, else ImageNet's. Validation pictures
    alone are enough to measure a network. ValueError for what is not laid out like this.
    """
    found = imagenet_tree(root)
    data = load_tree(found.tree, f"imagenet:{root}", found.names, **options)
    return replace(data, synsets=found.tree.classes)


class Found(NamedTuple):
    """Where the pictures of each class lie, and the classes' English names."""

    tree: Tree
    names: tuple[str, ...]


def imagenet_tree(root: Path) -> Found:
    """What `load_imagenet` reads, before any picture is opened."""
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    base, places = _places(root)
    near = [*places.values(), base, *base.parents[:ABOVE]]
    if base.is_relative_to(root):
        near = [place for place in near if place.is_relative_to(root)]
    mapping = _mapping(near)
    train = [folder.name for folder in class_folders(places["train"])] if "train" in places else []
    held = [folder.name for folder in class_folders(places["validation"])] if "validation" in places else []
    order = list(mapping) or train or held or list(known_classes())
    classes = tuple(synset for synset in order if synset in train) if train else tuple(order)
    if len(classes) < 2:
        raise ValueError(f"{root}: needs a folder per class, two classes at least; found {len(classes)}")
    files: dict[str, Files] = {split: [] for split in ("train", "validation", "test")}
    left_out = []
    for split, place in list(places.items()):
        folders = class_folders(place)
        if folders:
            files[split] = class_files(place, classes)
            reason = "not a class of the training pictures" if train else "not a class of the mapping"
            left_out += [f"{printable(folder)}: {reason}" for folder in folders if folder.name not in classes]
        elif split == "validation":
            files[split], more = _listed(place, near, order, classes)
            left_out += more
        else:
            del places[split]  # ImageNet's test pictures have no labels
    return Found(Tree(classes, places, files, left_out), names_of(classes, mapping))


def _places(root: Path) -> tuple[Path, dict[str, Path]]:
    """The folder that has the parts in it, and the part's folders by split; `root` may be such a part itself."""
    names = {"train": ("train",), "validation": VALIDATION_NAMES, "test": ("test",)}
    for base in (root, *(root / inner for inner in INNER)):
        there = {split: [base / name for name in each if (base / name).is_dir()] for split, each in names.items()}
        if there["train"] or there["validation"]:
            return base, {split: folders[0] for split, folders in there.items() if folders}
    root = root.absolute()
    if class_folders(root) and root.name not in VALIDATION_NAMES:
        return root, {"train": root}
    if not class_folders(root) and next(picture_files(root), None) is None:
        raise ValueError(f"{root}: neither train nor val is in it, nor a picture")
    return root.parent, {"validation": root}


def _listed(place: Path, near: Sequence[Path], order: list[str], classes: tuple[str, ...]) -> tuple[Files, list[str]]:
    """The pictures of a folder without class folders, by the list beside it."""
    listed = _first(near, LISTS)
    if listed is None:
        raise ValueError(
            f"{place}: no folder per class in it, and no list beside it: put {' or '.join(LISTS[::2])} there"
        )
    found = label_files(place, listed)
    numbers = {name: number for number, name in enumerate(classes)}
    files, left_out = [], found.left_out
    for path, entry in found.files:
        label = entry.label
        if isinstance(label, int):
            if label >= len(order):
                raise ValueError(
                    f"{listed}: line {entry.line} has class {label}, and there are {len(order)}, counted from 0; put "
                    f"{MAPPINGS[0]}, with all of them in order, beside it"
                )
            label = order[label]
        if label in numbers:
            files.append((path, numbers[label]))
        else:
            left_out.append(f"{printable(path)}: of class {label}, which has no training pictures")
    return files, left_out


def _mapping(near: Sequence[Path]) -> dict[str, str]:
    """Synset -> names, in the order of the file; empty without a file."""
    path = _first(near, MAPPINGS)
    if path is None:
        return {}
    found: dict[str, str] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        synset, _, names = line.strip().partition(" ")
        if not names.strip() or synset in found:
            raise ValueError(
                f"{path}: line {number} is not a class's folder and its name, such as n01440764 tench, Tinca tinca"
                + (", named for the first time" if synset in found else "")
            )
        found[synset] = names.strip()
    return found


def _first(near: Sequence[Path], names: Sequence[str]) -> Path | None:
    return next((place / name for place in near for name in names if (place / name).is_file()), None)


def names_of(synsets: Sequence[str], mapping: dict[str, str]) -> tuple[str, ...]:
    """An English name for each, no two alike: the mapping's, else ImageNet's; the synset itself where it has none.

    Of several words the first is the name, all of them where another class begins alike.
    """
    known = {} if all(synset in mapping for synset in synsets) else known_classes()
    full = [mapping.get(synset) or known.get(synset, synset) for synset in synsets]
    short = [name.partition(",")[0] for name in full]
    for longer in (full, [f"{name} ({synset})" for name, synset in zip(full, synsets, strict=True)]):
        counts = Counter(short)
        short = [more if counts[name] > 1 else name for name, more in zip(short, longer, strict=True)]
    return tuple(short)


@lru_cache
def known_classes() -> dict[str, str]:
    """The synsets of ILSVRC2012's 1000 classes, in order, with the names that published networks call them by."""
    from timm.data.imagenet_info import ImageNetInfo
    from torchvision.models import GoogLeNet_Weights

    info: Any = ImageNetInfo()
    return dict(zip(info.label_names(), GoogLeNet_Weights.IMAGENET1K_V1.meta["categories"], strict=True))


def same_classes(data: Dataset, classes: Sequence[str]) -> bool:
    """Whether `classes` are those of `data` in the same order, be they called by synset here and by name there."""
    theirs = data.synsets or data.classes
    if len(theirs) != len(classes):
        return False
    if not all(map(SYNSET.fullmatch, theirs)) and not all(map(SYNSET.fullmatch, classes)):
        return data.classes == tuple(classes)
    known = known_classes()
    return all(
        other in (synset, name, known.get(synset)) or known.get(other) == synset
        for synset, name, other in zip(theirs, data.classes, classes, strict=True)
    )
