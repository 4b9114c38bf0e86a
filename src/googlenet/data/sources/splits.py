"""Find the splits and the class folders in a folder of images."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from ...files import clean_name
from ..accounting import Accounting
from ..decode import printable
from ..image_files import Folder, exclude_rejected

SPLITS = ("train", "validation", "test")
PREFERRED = ("train", "val", "validation", "test")
SPLIT_KEYWORDS = {
    "train": "train", "training": "train", "trainset": "train",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation", "valset": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test", "testset": "test",
}  # fmt: skip
# Words that may accompany a keyword: seg_train, train_set, test-images.
SPLIT_FILLERS = frozenset(("seg", "set", "data", "dataset", "images", "image", "imgs", "img", "split", "files"))
NOT_IN_CLASS = "not in a class folder"
NO_CLASS_FOLDERS = "in a split without class folders"
NEXT_TO_SPLITS = "in a folder next to the splits"
SAME_SPLIT = "in a second folder of the same split"
UNKNOWN_CLASS = "in a folder that is not a class of the training images"


def split_name(name: str) -> str | None:
    """Return the split of a folder such as Training, seg_train, test1 or val2017; None for another name."""
    words = [word for word in re.split(r"[\W\d_]+", clean_name(name).lower()) if word]
    keywords = [word for word in words if word not in SPLIT_FILLERS]
    return SPLIT_KEYWORDS.get(keywords[0]) if len(keywords) == 1 else None


def class_key(folder: Folder) -> str:
    """Return the class of a folder: its name without outer spaces, in the composed Unicode form (NFC)."""
    return clean_name(folder.path.name) or folder.path.name


def class_keys(folder: Folder) -> set[str]:
    """Return the classes of a folder's subfolders that contain images."""
    return {class_key(inner) for inner in folder.folders if inner.has_images()}


def find_splits(root: Folder, reasons: dict[Path, str], accounting: Accounting) -> dict[str, Folder]:
    """Return the folder of each split below `root`; all images are for training if there are no splits.

    Wrapper folders, which contain nothing else than one folder, are entered. `reasons` receives why other folders are
    excluded. Raises ValueError if there are splits without training images.
    """
    base = unwrap(root, accounting)
    named = [folder for folder in base.folders if split_name(folder.path.name)]
    others = [folder for folder in base.folders if folder not in named and folder.has_images()]
    if not named:
        return {"train": base}
    if len(named) == 1:
        name, classes = printable(named[0].path.name), class_keys(unwrap(named[0]))
        has_same_classes = bool(classes & set(map(class_key, others)))
        if not has_same_classes and (len(others) >= 2 or (others and not classes)):
            accounting.notes.append(f"{printable(named[0].path)}: a class, because its siblings are no splits")
            return {"train": base}
        if has_same_classes and split_name(name) != "train":
            return {"train": base._replace(folders=others), str(split_name(name)): named[0]}
    splits = choose_splits(named, reasons)
    reasons |= dict.fromkeys((folder.path for folder in base.folders if folder not in named), NEXT_TO_SPLITS)
    if "train" not in splits:
        names = ", ".join(printable(folder.path.name) for folder in named)
        raise ValueError(
            f"{base.path}: {names} and no training folder; name one of them train, or give the path of one of them"
        )
    splits["train"] = unwrap(splits["train"], accounting)
    if not splits["train"].folders:
        siblings = ", ".join(printable(folder.path.name) for folder in named if folder.path != splits["train"].path)
        beside = f" (the folders {siblings} beside it are splits, not classes)" if siblings else ""
        raise ValueError(
            f"{splits['train'].path}: no class folders{beside}; move the images into one folder per class, such as "
            f"{splits['train'].path.name}/cat"
        )
    return splits


def choose_splits(named: Sequence[Folder], reasons: dict[Path, str]) -> dict[str, Folder]:
    """Return one folder per split, and add the others to `reasons`; ValueError for several training folders."""
    splits: dict[str, Folder] = {}
    order = sorted(named, key=lambda f: (f.path.name.lower() not in PREFERRED, len(f.path.name), f.path.name))
    for folder in order:
        split = str(split_name(folder.path.name))
        if split not in splits:
            splits[split] = folder
        elif split == "train":
            names = f"{printable(splits[split].path.name)} and {printable(folder.path.name)}"
            raise ValueError(f"{folder.path.parent}: {names} are both training folders; merge them or move one away")
        else:
            reasons[folder.path] = SAME_SPLIT
    return splits


def unwrap(folder: Folder, accounting: Accounting | None = None, classes: Collection[str] = ()) -> Folder:
    """Enter folders that contain a single folder of folders, unless it is one of `classes`; a note names the result."""
    start = folder
    while True:
        inner = [each for each in folder.folders if each.has_images()]
        if len(inner) != 1 or class_key(inner[0]) in classes or not class_keys(inner[0]):
            break
        folder = inner[0]
    if accounting is not None and folder is not start and (split_name(folder.path.name) != "train"):
        accounting.notes.append(f"{printable(start.path)}: its classes are in {printable(folder.path)}")
    return folder


def enter_split(split: str, folder: Folder, classes: Collection[str], accounting: Accounting) -> Folder | None:
    """Return the folder with the class folders of a validation or test split; None, with a note, if it has none."""
    folder = unwrap(folder, accounting, classes)
    if folder.folders:
        return folder
    accounting.notes.append(f"{printable(folder.path)}: no class folders, so it is not used as the {split} split")
    return None


def mark_classes(splits: Iterable[Folder], classes: Collection[str], reasons: dict[Path, str]) -> set[Path]:
    """Return the folders of `classes` in the splits, and add the other folders to `reasons`."""
    folders = [folder for split in splits for folder in split.folders]
    reasons |= {folder.path: UNKNOWN_CLASS for folder in folders if class_key(folder) not in classes}
    return {folder.path for folder in folders if class_key(folder) in classes}


def exclude_unused(
    folder: Folder, reasons: Mapping[Path, str], used: Collection[Path], accounting: Accounting, reason: str | None
) -> None:
    """Exclude the images that are in no folder of `used`, and all rejected files that are not in `used`.

    The reason is that of the nearest folder in `reasons`, else `reason`; None if the images are used.
    """
    reason = None if reason is None or folder.path in used else reasons.get(folder.path, reason)
    for path in folder.images if reason else ():
        accounting.exclude("file", str(reason), printable(path), invalid=reason == UNKNOWN_CLASS)
    for item in folder.rejected:
        if item.path in used:
            accounting.use("file")
        else:
            exclude_rejected(item, accounting)
    for inner in folder.folders:
        exclude_unused(inner, reasons, used, accounting, reason)
