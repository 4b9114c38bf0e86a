"""A class-per-folder image tree -> a data set, in memory where it fits, else read from the disk as it is used.

``PATH/cat/1.jpg`` is a picture of class ``cat``. Where PATH has a folder ``train`` of such folders, the classes are
looked for in it, and ``val`` (or ``validation``) and ``test`` beside it are used as they are.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from .assembly import assemble
from .checked import Read, checked_split
from .dataset import Dataset, Split, Unreadable
from .pictures import PictureError, Pixels, picture_files, read_picture, to_tensor
from .preprocess import Fit, Preprocess
from .stream import Places, Stream

SPLITS = ("train", "validation", "test")
VALIDATION_NAMES = ("val", "validation")

# What pictures may take of the memory, twice as they do for a moment; beyond it they are streamed.
MAX_BYTES = 8 * 2**30

Files = list[tuple[Path, int]]


class Tree(NamedTuple):
    """What lies where: the `classes`, the root of each split there is, its `files` (all three splits have a list)
    with their labels, and the folders that were `left_out`, with the reason."""

    classes: tuple[str, ...]
    roots: dict[str, Path]
    files: dict[str, Files]
    left_out: list[str]


def picture_tree(root: Path) -> Tree:
    """The picture files of a class-per-folder tree; ValueError where it is missing or has under two classes."""
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    roots = {"train": root}
    if class_folders(root / "train"):
        places = {"train": ("train",), "validation": VALIDATION_NAMES, "test": ("test",)}
        there = {split: [root / name for name in names if (root / name).is_dir()] for split, names in places.items()}
        roots = {split: folders[0] for split, folders in there.items() if folders}
    classes = tuple(folder.name for folder in class_folders(roots["train"]))
    if len(classes) < 2:
        raise ValueError(f"{roots['train']}: needs a folder per class, two classes at least; found {len(classes)}")
    left_out = [
        f"{printable(folder)}: not a class of the training pictures"
        for place in roots.values()
        for folder in class_folders(place)
        if folder.name not in classes
    ]
    files = {split: class_files(roots[split], classes) if split in roots else [] for split in SPLITS}
    return Tree(classes, roots, files, left_out)


def load_folder(
    root: Path,
    *,
    validation: float,
    size: int,
    fit: Fit = "crop",
    channels: int | None = None,
    unreadable: Unreadable = "skip",
    seed: int = 0,
    resident: bool | None = None,
    workers: int = 0,
) -> Dataset:
    """Read a tree of pictures, each made square as `fit` says and kept at `size` x `size` pixels.

    `channels` is 1 or 3; unset, the data set is grey when every picture is. `validation` (a count, or a fraction
    below 1) is drawn from the training pictures by `hold_out`, unless the tree has its own ``val``. Files that cannot
    be used are listed in `Dataset.skipped`, or raise PictureError with ``unreadable="refuse"``. `resident` pictures
    are kept in memory, others decoded each time by `workers` processes; unset, it is those that fit that are kept.
    Raises ValueError for a missing or empty tree, for fewer than two classes, and for more pictures than fit into
    memory where they shall be resident.
    """
    tree = picture_tree(root)
    return load_tree(
        tree, f"folder:{root}", tuple(map(printable, tree.classes)),
        validation=validation, size=size, fit=fit, channels=channels, unreadable=unreadable, seed=seed,
        resident=resident, workers=workers,
    )  # fmt: skip


def load_tree(
    tree: Tree,
    source: str,
    names: tuple[str, ...],
    *,
    validation: float,
    size: int,
    fit: Fit = "crop",
    channels: int | None = None,
    unreadable: Unreadable = "skip",
    seed: int = 0,
    resident: bool | None = None,
    workers: int = 0,
) -> Dataset:
    """The pictures of `tree`, whose classes are called `names`, as the data set `source`; see `load_folder`."""
    files, root = tree.files, source.partition(":")[2]
    if tree.left_out and unreadable == "refuse":
        raise PictureError(tree.left_out[0])
    needed = 2 * sum(map(len, files.values())) * (channels or 3) * size**2
    if resident and needed > MAX_BYTES:
        raise ValueError(
            f"{root}: {sum(map(len, files.values()))} pictures at {size} px need {needed / 2**30:.0f} GiB of memory, "
            f"more than {MAX_BYTES >> 30}; leave data.resident unset, or train at a smaller size"
        )
    # Grey pictures are read as RGB until all are known to be grey.
    kept = channels or 3
    geometry = Preprocess(size, kept, (0.0,) * kept, (1.0,) * kept, fit=fit)
    if resident or (resident is None and needed <= MAX_BYTES):
        read = {name: _read_resident(part, geometry, unreadable) for name, part in files.items()}
    else:
        read = {
            name: _streamed(part, geometry, unreadable, workers, f"{root}|{name}") for name, part in files.items()
        }
    skipped = (*(reason for found in read.values() for reason in found.skipped), *tree.left_out)
    for name, folder in tree.roots.items():
        if not read[name].split:
            raise ValueError(f"{folder}: no picture that can be read. {'; '.join(skipped[:3])}".rstrip(". "))

    counts = torch.bincount(read["train"].split.labels, minlength=len(names)).tolist()
    if "train" in tree.roots and 0 in counts:
        missing = [name for name, count in zip(names, counts, strict=True) if count == 0]
        reasons = "; ".join(skipped[:3])
        raise ValueError(
            f"{tree.roots['train']}: no readable picture of class {', '.join(missing)}. {reasons}".rstrip(". ")
        )
    return assemble(source, names, read, skipped, channels=channels, validation=validation, seed=seed)


def _read_resident(files: Files, geometry: Preprocess, unreadable: Unreadable) -> Read:
    """The pictures that can be used, decoded, as a tensor."""
    images = torch.empty(len(files), geometry.channels, geometry.size, geometry.size, dtype=torch.uint8)
    used: list[tuple[str, int]] = []
    skipped, all_grey = [], True

    def decode(path: Path) -> Pixels | PictureError:
        try:
            picture = read_picture(path)
        except PictureError as error:
            return error
        return Pixels(geometry.keep(to_tensor(picture, geometry.channels)), picture.mode == "L")

    # Pillow decodes without the interpreter's lock, so threads are enough; `map` keeps the files' order.
    with ThreadPoolExecutor() as pool:
        for (path, label), decoded in zip(files, pool.map(decode, [path for path, _ in files]), strict=True):
            if isinstance(decoded, PictureError):
                if unreadable == "refuse":
                    raise decoded
                skipped.append(str(decoded))
                continue
            images[len(used)] = decoded.values
            used.append((printable(path), label))
            all_grey &= decoded.grey
    labels = torch.tensor([label for _, label in used], dtype=torch.int64)
    return Read(Split(images[: len(used)], labels, [name for name, _ in used]), all_grey, skipped)


def _streamed(files: Files, geometry: Preprocess, unreadable: Unreadable, workers: int, source: str) -> Read:
    """The pictures that can be used, left where they are."""
    stream = Stream(Places.whole([str(path) for path, _ in files]), geometry, workers)
    labels = torch.tensor([label for _, label in files], dtype=torch.int64)
    return checked_split(Split(stream, labels, [printable(path) for path, _ in files]), unreadable, source)


def class_files(root: Path, classes: tuple[str, ...]) -> Files:
    """The picture files of `root`'s class folders, with their labels."""
    return [
        (path, label)
        for label, name in enumerate(classes)
        if (root / name).is_dir()
        for path in picture_files(root / name)
    ]


def class_folders(root: Path) -> list[Path]:
    """The folders in `root` that are not hidden, by name; none where it is no folder."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def printable(path: Path | str) -> str:
    """A file name as text that can be written anywhere, whatever bytes it is made of."""
    return os.fsencode(path).decode(errors="backslashreplace")
