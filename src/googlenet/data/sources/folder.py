"""Class folders: ``PATH/cat/1.jpg`` is an image of class ``cat``.

If PATH has a folder ``train`` of class folders, it holds the training images, and the folders ``val`` (or
``validation``) and ``test`` hold the other splits.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from ..dataset import Dataset, LoadedSplit, LoadOptions, Split, build_dataset, validate_split
from ..decode import ImageError, decode_image, image_files, printable, to_tensor
from ..lazy import ByteRanges, LazyImages

SPLIT_NAMES = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}
MAX_BYTES = 8 * 2**30  # of images in memory, of which two copies exist for a moment; larger data sets stay on disk
Files = list[tuple[Path, int]]


class ImageTree(NamedTuple):
    """The files of a tree of class folders.

    `folders` (of the classes) and `classes` (their names) are in the order of the labels. `roots` are the folders of
    the existing splits, `files` the images of all three splits with their labels; `ignored` are messages.
    """

    folders: tuple[str, ...]
    classes: tuple[str, ...]
    roots: dict[str, Path]
    files: dict[str, Files]
    ignored: list[str]


def load(location: str, options: LoadOptions) -> Dataset:
    """Load class folders; see `load_tree`. Raises ValueError for a missing folder or fewer than two classes."""
    return load_tree(image_tree(Path(location)), f"folder:{location}", options)


def image_tree(root: Path) -> ImageTree:
    """List the image files of class folders; ValueError for a missing folder or fewer than two classes."""
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    roots = split_folders(root) if class_folders(root / "train") else {"train": root}
    present = {split: class_folders(path) for split, path in roots.items()}
    folders = tuple(folder.name for folder in present["train"])
    if len(folders) < 2:
        raise ValueError(f"{roots['train']}: needs at least two folders, one per class; found {len(folders)}")
    extra = [folder for split in present.values() for folder in split if folder.name not in folders]
    ignored = [f"{printable(folder)}: not a class of the training images" for folder in extra]
    files = {split: class_files(roots[split], folders) if split in roots else [] for split in SPLIT_NAMES}
    return ImageTree(folders, tuple(map(printable, folders)), roots, files, ignored)


def load_tree(tree: ImageTree, source: str, options: LoadOptions) -> Dataset:
    """Load the images of `tree`, cropped and resized, in memory or to be decoded for each batch.

    Raises ValueError for a split or class without a readable image, or if the images must fit in memory and do not.
    """
    root, size = source.partition(":")[2], options.size
    if tree.ignored and options.on_error == "raise":
        raise ImageError(tree.ignored[0])
    num_images = sum(map(len, tree.files.values()))
    num_bytes = 2 * num_images * options.storage.channels * size**2
    if options.in_memory and num_bytes > MAX_BYTES:
        raise ValueError(
            f"{root}: {num_images} images at {size} px need {num_bytes / 2**30:.0f} GiB of memory, "
            f"more than {MAX_BYTES >> 30}; leave data.in_memory unset, or train at a smaller size"
        )
    in_memory = options.in_memory or (options.in_memory is None and num_bytes <= MAX_BYTES)
    ranges = (ByteRanges.from_files([str(path) for path, _ in files]) for files in tree.files.values())
    options = options.with_max_value(ranges, cached=not in_memory)
    if in_memory:
        loaded = {split: _load_in_memory(files, options) for split, files in tree.files.items()}
    else:
        loaded = {split: _load_lazily(files, options, f"{root}|{split}") for split, files in tree.files.items()}
    skipped = [*(reason for item in loaded.values() for reason in item.skipped), *tree.ignored]
    reasons = "; ".join(skipped[:3])
    for split, folder in tree.roots.items():
        if not loaded[split].split:
            raise ValueError(f"{folder}: no readable image. {reasons}".rstrip(". "))
    if "train" in tree.roots:
        counts = torch.bincount(loaded["train"].split.labels, minlength=len(tree.classes)).tolist()
        missing = ", ".join(name for name, count in zip(tree.classes, counts, strict=True) if count == 0)
        if missing:
            raise ValueError(f"{tree.roots['train']}: no readable image of class {missing}. {reasons}".rstrip(". "))
    return build_dataset(source, tree.classes, loaded, skipped, options)


def _load_in_memory(files: Files, options: LoadOptions) -> LoadedSplit:
    """Decode all readable images to one tensor."""
    storage = options.storage
    images = torch.empty(len(files), storage.channels, storage.size, storage.size, dtype=torch.uint8)
    names: list[str] = []
    labels: list[int] = []
    skipped, all_gray = [], True

    def decode(path: Path) -> tuple[torch.Tensor, bool] | ImageError:
        try:
            image = decode_image(path, min_size=storage.min_decode_size(), max_value=storage.max_value)
        except ImageError as error:
            return error
        return storage.to_uint8(to_tensor(image, storage.channels)), image.mode == "L"

    # Threads are enough, because Pillow decodes without the interpreter's lock; `map` keeps the order of the files.
    with ThreadPoolExecutor() as pool:
        for (path, label), decoded in zip(files, pool.map(decode, [path for path, _ in files]), strict=True):
            if isinstance(decoded, ImageError):
                if options.on_error == "raise":
                    raise decoded
                skipped.append(str(decoded))
                continue
            images[len(names)], gray = decoded
            names.append(printable(path))
            labels.append(label)
            all_gray &= gray
    split = Split(images[: len(names)], torch.tensor(labels, dtype=torch.int64), names)
    return LoadedSplit(split, all_gray, skipped)


def _load_lazily(files: Files, options: LoadOptions, cache_key: str) -> LoadedSplit:
    """Validate the images, and leave them on disk."""
    images = LazyImages(ByteRanges.from_files([str(path) for path, _ in files]), options.storage, options.workers)
    labels = torch.tensor([label for _, label in files], dtype=torch.int64)
    return validate_split(Split(images, labels, [printable(path) for path, _ in files]), options.on_error, cache_key)


def split_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each split that exists in `root`."""
    folders = {split: [root / name for name in names] for split, names in SPLIT_NAMES.items()}
    existing = {split: [path for path in paths if path.is_dir()] for split, paths in folders.items()}
    return {split: paths[0] for split, paths in existing.items() if paths}


def class_files(root: Path, folders: tuple[str, ...]) -> Files:
    """List the image files in the class folders of `root`, with their labels."""
    return [(path, label) for label, name in enumerate(folders) for path in image_files(root / name)]


def class_folders(root: Path) -> list[Path]:
    """List the folders in `root` that are not hidden, by name; empty if `root` is not a folder."""
    paths = root.iterdir() if root.is_dir() else ()
    return sorted(path for path in paths if path.is_dir() and not path.name.startswith("."))
