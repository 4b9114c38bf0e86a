"""A class-per-folder image tree -> a data set in memory.

``PATH/cat/1.jpg`` is a picture of class ``cat``. Where PATH has a folder ``train``, the classes are looked
for in it, and ``val`` (or ``validation``) and ``test`` beside it are used as they are.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .dataset import Dataset, Split, Unreadable, held_out, pixel_statistics
from .pictures import PictureError, picture_files, read_picture, to_tensor

VALIDATION_NAMES = ("val", "validation")

# Pictures are held in memory; beyond this many bytes the machine would rather swap.
MAX_BYTES = 8 * 2**30


def load_folder(
    place: str, *, validation: float, size: int, unreadable: Unreadable = "skip", seed: int = 0
) -> Dataset:
    """Read a tree of pictures, each reduced to its centre square of `size` x `size` pixels.

    The data set is grey when every picture is. `validation` (a count, or a fraction below 1) is drawn from
    the training pictures of each class in proportion by `seed`, unless the tree has its own ``val``.
    Files that cannot be read are listed in `Dataset.skipped`, or raise PictureError with
    ``unreadable="refuse"``. Raises ValueError for a missing or empty tree and for fewer than two classes.
    """
    root = Path(place).expanduser()
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    train_root = root / "train" if (root / "train").is_dir() else root
    validation_root = next((root / name for name in VALIDATION_NAMES if (root / name).is_dir()), None)
    own_validation = validation_root if train_root != root else None
    own_test = root / "test" if train_root != root and (root / "test").is_dir() else None

    classes = tuple(sorted(p.name for p in train_root.iterdir() if p.is_dir() and not p.name.startswith(".")))
    if len(classes) < 2:
        raise ValueError(f"{train_root}: needs a folder per class, two classes at least; found {len(classes)}")
    read = _Reader(classes, size, unreadable)
    parts = {
        name: read(folder) if folder else None
        for name, folder in (("train", train_root), ("validation", own_validation), ("test", own_test))
    }
    channels = 1 if read.all_grey else 3
    splits = {name: _stack(found, channels, size) for name, found in parts.items()}
    train = splits["train"]
    counts = torch.bincount(train.labels, minlength=len(classes)).tolist()
    if missing := [name for name, count in zip(classes, counts, strict=True) if count == 0]:
        raise ValueError(f"{train_root}: no readable picture of class {', '.join(missing)}")
    if own_validation is None and validation:
        chosen = _stratified(train.labels, held_out(len(train.labels), validation), seed)
        splits["validation"], train = _select(train, chosen), _select(train, ~chosen)
    mean, std = pixel_statistics(train.images)
    return Dataset(
        f"folder:{root}",
        classes,
        train,
        splits["validation"],
        splits["test"],
        mean,
        std,
        tuple(read.skipped),
    )


class _Reader:
    """Decodes the pictures of one tree after another, and remembers what it met."""

    def __init__(self, classes: tuple[str, ...], size: int, unreadable: Unreadable):
        self.classes, self.size, self.unreadable = classes, size, unreadable
        self.all_grey = True
        self.skipped: list[str] = []

    def __call__(self, folder: Path) -> list[tuple[str, int, Image.Image]]:
        files = []
        for label, name in enumerate(self.classes):
            if (folder / name).is_dir():
                files += [(path, label) for path in picture_files(folder / name)]
        if len(files) * self.size**2 * 3 > MAX_BYTES:
            raise ValueError(
                f"{folder}: {len(files)} pictures at {self.size} px exceed {MAX_BYTES >> 30} GiB of memory; "
                "train at a smaller size"
            )
        # Pillow decodes and resizes without the interpreter's lock, so threads are enough.
        with ThreadPoolExecutor() as pool:
            results = list(pool.map(self._decode, [path for path, _ in files]))
        found = []
        for (path, label), picture in zip(files, results, strict=True):
            if isinstance(picture, PictureError):
                if self.unreadable == "refuse":
                    raise picture
                self.skipped.append(str(picture))
                continue
            self.all_grey &= picture.mode == "L"
            found.append((str(path), label, picture))
        if not found:
            raise ValueError(f"{folder}: no picture that can be read")
        return found

    def _decode(self, path: Path) -> Image.Image | PictureError:
        try:
            picture = read_picture(path)
        except PictureError as error:
            return error
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        box = (left, top, left + side, top + side)
        return picture.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)


def _stack(found: list[tuple[str, int, Image.Image]] | None, channels: int, size: int) -> Split:
    images: Tensor = torch.empty(len(found or ()), channels, size, size, dtype=torch.uint8)
    for row, (_, _, picture) in enumerate(found or ()):
        images[row] = to_tensor(picture, channels)
    labels = torch.tensor([label for _, label, _ in found or ()], dtype=torch.int64)
    return Split(images, labels, [path for path, _, _ in found or ()])


def _stratified(labels: Tensor, count: int, seed: int) -> Tensor:
    """A mask that holds out `count` pictures, of each class in proportion and never its last one."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    # Rank each picture within its class as a share of the class, and take the smallest shares.
    share = torch.ones(len(labels))
    for label in range(int(labels.max()) + 1):
        members = order[labels[order] == label]
        share[members] = (torch.arange(len(members)) + 0.5) / len(members)
        share[members[-1]] = 2.0
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[share.argsort(stable=True)[:count]] = True
    return mask & (share < 2.0)


def _select(split: Split, mask: Tensor) -> Split:
    names: Sequence[str] = [name for name, chosen in zip(split.names, mask.tolist(), strict=True) if chosen]
    return Split(split.images[mask], split.labels[mask], names)
