"""A class-per-folder image tree -> a data set in memory.

``PATH/cat/1.jpg`` is a picture of class ``cat``. Where PATH has a folder ``train`` of such folders, the classes are
looked for in it, and ``val`` (or ``validation``) and ``test`` beside it are used as they are.
"""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from .dataset import Dataset, Split, Unreadable, held_out, pixel_statistics
from .pictures import PictureError, picture_files, read_picture, to_tensor
from .preprocess import Fit, Preprocess

VALIDATION_NAMES = ("val", "validation")

# Pictures are held in memory, for a moment twice; beyond this many bytes the machine would rather swap.
MAX_BYTES = 8 * 2**30


def load_folder(
    root: Path,
    *,
    validation: float,
    size: int,
    fit: Fit = "crop",
    channels: int | None = None,
    unreadable: Unreadable = "skip",
    seed: int = 0,
) -> Dataset:
    """Read a tree of pictures, each made square as `fit` says and kept at `size` x `size` pixels.

    `channels` is 1 or 3; unset, the data set is grey when every picture is. `validation` (a count, or a fraction
    below 1) is drawn from the training pictures of each class in proportion by `seed`, never a class's last one,
    unless the tree has its own ``val``; a fraction holds out one at least of every class that has two. Files that
    cannot be used are listed in `Dataset.skipped`, or raise PictureError with ``unreadable="refuse"``. Raises
    ValueError for a missing or empty tree, for fewer than two classes, and for more pictures than fit into memory.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    split_up = bool(_folders(root / "train"))
    train_root = root / "train" if split_up else root
    own = {
        "validation": next((root / name for name in VALIDATION_NAMES if split_up and (root / name).is_dir()), None),
        "test": root / "test" if split_up and (root / "test").is_dir() else None,
    }
    folders = _folders(train_root)
    if len(folders) < 2:
        raise ValueError(f"{train_root}: needs a folder per class, two classes at least; found {len(folders)}")
    read = _Reader(tuple(folder.name for folder in folders), size, fit, channels, unreadable)
    train = read(train_root)
    splits = {name: read(folder) if folder else read.nothing() for name, folder in own.items()}

    counts = torch.bincount(train.labels, minlength=len(folders)).tolist()
    if missing := [folder.name for folder, count in zip(folders, counts, strict=True) if count == 0]:
        reasons = "; ".join(read.skipped[:3])
        raise ValueError(f"{train_root}: no readable picture of class {', '.join(missing)}. {reasons}".rstrip(". "))
    if channels is None and read.all_grey:
        train, *rest = (split._replace(images=split.images[:, :1].clone()) for split in (train, *splits.values()))
        splits = dict(zip(splits, rest, strict=True))
    if own["validation"] is None and validation:
        held = held_out(len(train.labels), validation)
        if validation < 1:
            held = max(held, sum(count > 1 for count in counts))
        chosen = _stratified(train.labels, held, seed)
        splits["validation"], train = _select(train, chosen), _select(train, ~chosen)
    mean, std = pixel_statistics(train.images)
    classes = tuple(_printable(folder.name) for folder in folders)
    return Dataset(
        f"folder:{root}", classes, train, splits["validation"], splits["test"], mean, std, tuple(read.skipped)
    )


class _Reader:
    """Decodes the pictures of one tree after another, and remembers what it met."""

    def __init__(self, classes: tuple[str, ...], size: int, fit: Fit, channels: int | None, unreadable: Unreadable):
        self.classes, self.unreadable = classes, unreadable
        # Grey pictures are kept as RGB until all are known to be grey.
        kept = channels or 3
        self.geometry = Preprocess(size, kept, (0.0,) * kept, (1.0,) * kept, fit=fit)
        self.all_grey = True
        self.skipped: list[str] = []

    def nothing(self) -> Split:
        """A split without pictures."""
        side, channels = self.geometry.size, self.geometry.channels
        return Split(torch.empty(0, channels, side, side, dtype=torch.uint8), torch.empty(0, dtype=torch.int64), [])

    def __call__(self, root: Path) -> Split:
        """The pictures of `root`'s class folders that can be used."""
        files = [
            (path, label)
            for label, name in enumerate(self.classes)
            if (root / name).is_dir()
            for path in picture_files(root / name)
        ]
        for folder in _folders(root):
            if folder.name not in self.classes:
                self._leave_out(PictureError(f"{_printable(folder)}: not a class of the training pictures"))
        shape = (len(files), self.geometry.channels, self.geometry.size, self.geometry.size)
        needed = 2 * math.prod(shape)
        if needed > MAX_BYTES:
            raise ValueError(
                f"{root}: {len(files)} pictures at {self.geometry.size} px need {needed / 2**30:.0f} GiB of memory, "
                f"more than {MAX_BYTES >> 30}; train at a smaller size"
            )
        images = torch.empty(shape, dtype=torch.uint8)
        used: list[tuple[str, int]] = []
        # Pillow decodes without the interpreter's lock, so threads are enough; `map` keeps the files' order.
        with ThreadPoolExecutor() as pool:
            for (path, label), pixels in zip(files, pool.map(self._decode, [path for path, _ in files]), strict=True):
                if isinstance(pixels, PictureError):
                    self._leave_out(pixels)
                    continue
                images[len(used)] = pixels
                used.append((_printable(path), label))
        if not used:
            raise ValueError(f"{root}: no picture that can be read. {'; '.join(self.skipped[:3])}".rstrip(". "))
        labels = torch.tensor([label for _, label in used])
        return Split(images[: len(used)], labels, [name for name, _ in used])

    def _decode(self, path: Path) -> Tensor | PictureError:
        """One picture as it is kept: through the same geometry as prediction, rounded to uint8."""
        try:
            picture = read_picture(path)
        except PictureError as error:
            return error
        self.all_grey &= picture.mode == "L"
        pixels = to_tensor(picture, self.geometry.channels).unsqueeze(0)
        kept = self.geometry.resize(self.geometry.square(pixels), self.geometry.size)
        return kept.round().to(torch.uint8).squeeze(0)

    def _leave_out(self, reason: PictureError) -> None:
        if self.unreadable == "refuse":
            raise reason
        self.skipped.append(str(reason))


def _folders(root: Path) -> list[Path]:
    """The folders in `root` that are not hidden, by name; none where it is no folder."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _printable(path: Path | str) -> str:
    """A file name as text that can be written anywhere, whatever bytes it is made of."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _stratified(labels: Tensor, count: int, seed: int) -> Tensor:
    """A mask that holds out `count` pictures, of each class in proportion and never its last one."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    # Rank each picture within its class as a share of the class, and take the smallest shares.
    share = torch.ones(len(labels))
    for label in range(int(labels.max()) + 1):
        members = order[labels[order] == label]
        share[members] = (torch.arange(len(members)) + 0.5) / len(members)
        share[members[0]] = 0.0  # so that small classes are in both parts too
        share[members[-1]] = 2.0
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[share.argsort(stable=True)[:count]] = True
    return mask & (share < 2.0)


def _select(split: Split, mask: Tensor) -> Split:
    names: Sequence[str] = [name for name, chosen in zip(split.names, mask.tolist(), strict=True) if chosen]
    return Split(split.images[mask], split.labels[mask], names)
