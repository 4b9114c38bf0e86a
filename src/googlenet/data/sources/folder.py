"""Class folders: ``PATH/cat/1.jpg`` is an image of class ``cat``.

If PATH has a folder ``train`` of class folders, it holds the training images, and the folders ``val`` and ``test`` hold
the other splits; `splits.split_name` lists other names of them.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from ...files import missing_folder
from ..accounting import Accounting
from ..dataset import Dataset, LoadedSplit, LoadOptions, Split, build_dataset, check_headers
from ..decode import ImageError, decode_pixels, decoded_size, is_gray, printable
from ..decoded import DecodedImages
from ..image_files import Folder, scan_folder
from ..lazy import ByteRanges, LazyImages
from ..memory import available_memory
from .splits import (
    NO_CLASS_FOLDERS,
    NOT_IN_CLASS,
    SPLITS,
    class_key,
    enter_split,
    exclude_unused,
    find_splits,
    mark_classes,
)

MAX_MEMORY_FRACTION = 0.5  # of the available memory, for decoded images; larger data sets stay on disk
Files = list[tuple[Path, int]]


class ImageTree(NamedTuple):
    """The files of a tree of class folders.

    `folders` (of the classes) and `classes` (their names) are in the order of the labels. `roots` are the folders of
    the existing splits, `files` the images of all three splits with their labels; `accounting` has all other files.
    """

    folders: tuple[str, ...]
    classes: tuple[str, ...]
    roots: dict[str, Path]
    files: dict[str, Files]
    accounting: Accounting


def load(location: str, options: LoadOptions) -> Dataset:
    """Load class folders; see `load_tree`. Raises ValueError for a missing folder or fewer than two classes."""
    return load_tree(image_tree(Path(location), options.on_error == "raise"), f"folder:{location}", options)


def image_tree(root: Path, strict: bool = False) -> ImageTree:
    """List the image files of class folders; ValueError for a missing folder or fewer than two classes.

    With `strict`, an unusable image raises ImageError.
    """
    if not root.is_dir():
        raise missing_folder(root)
    accounting, tree, reasons = Accounting(strict=strict), scan_folder(root), dict[Path, str]()
    splits = find_splits(tree, reasons, accounting)
    train = splits["train"]
    folders = tuple(sorted(set(map(class_key, train.folders))))
    if len(folders) < 2:
        raise too_few_classes(train.path, len(folders), tree)
    for split in [split for split in splits if split != "train"]:
        folder = splits.pop(split)
        if entered := enter_split(split, folder, folders, accounting):
            splits[split] = entered
        else:
            reasons[folder.path] = NO_CLASS_FOLDERS
    files = {split: class_files(splits.get(split), folders) for split in SPLITS}
    used = mark_classes(splits.values(), folders, reasons)
    exclude_unused(tree, reasons, used, accounting, NOT_IN_CLASS)
    roots = {split: folder.path for split, folder in splits.items()}
    return ImageTree(folders, tuple(map(printable, folders)), roots, files, accounting)


def too_few_classes(path: Path, count: int, tree: Folder) -> ValueError:
    """Return the error for a folder with `count` class folders, with the most frequent kinds of files below `tree`."""
    files = Accounting()
    exclude_unused(tree, {}, (), files, NOT_IN_CLASS)
    found = f"found {count}. {files.reasons()}".rstrip(". ")
    return ValueError(f"{path}: needs at least two folders, one per class; {found}")


def load_tree(tree: ImageTree, source: str, options: LoadOptions) -> Dataset:
    """Load the images of `tree`, cropped and resized, in memory or to be decoded for each batch.

    Raises ValueError for a split or class without a readable image, or if the images must fit in memory and do not.
    """
    root, accounting = source.partition(":")[2], tree.accounting
    in_memory = fits_in_memory(root, sum(map(len, tree.files.values())), options)
    ranges = (ByteRanges.from_files([str(path) for path, _ in files]) for files in tree.files.values())
    options = options.with_max_value(ranges, cached=not in_memory)
    if in_memory and options.full_size is not None:
        in_memory = full_images_fit(root, tree.files["train"], options)
    loaded = {}
    for split, files in tree.files.items():
        split_options = options.of_split(split)
        if not in_memory:
            loaded[split] = _load_lazily(files, split_options, f"{root}|{split}", accounting)
        elif split_options.full_size is None:
            loaded[split] = _load_in_memory(files, options, accounting)
        else:
            loaded[split] = _load_full(files, options, accounting)
    for split, folder in tree.roots.items():
        if not loaded[split].usable.any():
            raise ValueError(f"{folder}: no readable image. {accounting.reasons()}".rstrip(". "))
    if "train" in tree.roots:
        labels = loaded["train"].split.labels[loaded["train"].usable]
        counts = torch.bincount(labels, minlength=len(tree.classes)).tolist()
        missing = ", ".join(name for name, count in zip(tree.classes, counts, strict=True) if count == 0)
        if missing:
            reasons = accounting.reasons()
            raise ValueError(f"{tree.roots['train']}: no readable image of class {missing}. {reasons}".rstrip(". "))
    return build_dataset(source, tree.classes, loaded, accounting, options)


def fits_in_memory(root: str, num_images: int, options: LoadOptions) -> bool:
    """Return whether to keep the images in memory; ValueError if `options` require it and there is too little."""
    # For a moment there are two copies.
    required, available = 2 * num_images * options.storage.channels * options.size**2, available_memory()
    fits = required <= MAX_MEMORY_FRACTION * available
    if options.in_memory and not fits:
        raise ValueError(
            f"{root}: {num_images:,} images at {options.size} px need {required / 2**30:.1f} GiB of memory, more than "
            f"half of the {available / 2**30:.1f} GiB available; leave data.in_memory unset, or train at a smaller size"
        )
    return fits if options.in_memory is None else options.in_memory


def full_images_fit(root: str, files: Files, options: LoadOptions) -> bool:
    """Return whether to keep the full images in memory; ValueError if `options` require it and there is too little."""

    def num_bytes(path: Path) -> int:
        with suppress(ImageError):
            width, height, mode = decoded_size(path, printable(path), options.full_size)
            factor = max(1, min(width, height) // (options.full_size or 1))
            return width * height // factor**2 * (1 if mode == "L" else options.storage.channels)
        return 0

    # For a moment there are two copies.
    required, available = 2 * sum(num_bytes(path) for path, _ in files), available_memory()
    fits = required <= MAX_MEMORY_FRACTION * available
    if options.in_memory and not fits:
        raise ValueError(
            f"{root}: the full images, for random crops, need {required / 2**30:.1f} GiB of memory, more than half of "
            f"the {available / 2**30:.1f} GiB available; leave data.in_memory unset"
        )
    return fits


def _load_full(files: Files, options: LoadOptions, accounting: Accounting) -> LoadedSplit:
    """Decode all readable images at the size that random crops need."""
    images = _lazy_images(files, options)
    native = None if options.channels == 3 else options.channels  # gray images need a third of the memory

    def decode(index: int) -> torch.Tensor | ImageError:
        try:
            return images.decode(index, native)
        except ImageError as error:
            return error

    kept, decoded, damaged = list[int](), list[torch.Tensor](), list[bool]()
    with ThreadPoolExecutor() as pool:
        for index, result in enumerate(pool.map(decode, range(len(files)))):
            is_error = isinstance(result, ImageError)
            if is_error:
                accounting.exclude_unreadable("file", str(result), printable(files[index][0]))
                if not _has_readable_header(files[index][0]):
                    continue
            kept.append(index)
            damaged.append(is_error)
            decoded.append(torch.zeros(1, 1, 1, dtype=torch.uint8) if isinstance(result, ImageError) else result)
    accounting.use("file", damaged.count(False))
    images = replace(images[torch.tensor(kept, dtype=torch.int64)], decoded=DecodedImages.from_images(decoded))
    labels = torch.tensor([files[index][1] for index in kept], dtype=torch.int64)
    split = Split(images, labels, [printable(files[index][0]) for index in kept])
    all_gray = all(len(image) == 1 for image in decoded)
    return LoadedSplit(split, all_gray, damaged=torch.tensor(damaged) if any(damaged) else None)


def _has_readable_header(path: Path) -> bool:
    """Return whether the image would be found damaged only when it is decoded."""
    with suppress(ImageError):
        is_gray(path, printable(path))
        return True
    return False


def _load_in_memory(files: Files, options: LoadOptions, accounting: Accounting) -> LoadedSplit:
    """Decode all readable images to one tensor."""
    storage = options.storage
    images = torch.empty(len(files), storage.channels, storage.size, storage.size, dtype=torch.uint8)
    names, labels, damaged = list[str](), list[int](), list[bool]()
    all_gray = True

    def decode(path: Path) -> tuple[torch.Tensor, bool] | ImageError:
        try:
            min_size, max_value = storage.min_decode_size(), storage.max_value
            image = decode_pixels(path, storage.channels, printable(path), min_size, max_value=max_value)
        except ImageError as error:
            return error
        return storage.to_uint8(image.pixels), image.source_channels == 1

    # Threads are enough, because Pillow decodes without the interpreter's lock; `map` keeps the order of the files.
    pool = ThreadPoolExecutor()
    try:
        for (path, label), decoded in zip(files, pool.map(decode, [path for path, _ in files]), strict=True):
            is_error = isinstance(decoded, ImageError)
            if isinstance(decoded, ImageError):
                accounting.exclude_unreadable("file", str(decoded), printable(path))
                if not _has_readable_header(path):
                    continue
                images[len(names)] = 0
            else:
                images[len(names)], gray = decoded
                all_gray &= gray
            names.append(printable(path))
            labels.append(label)
            damaged.append(is_error)
    finally:
        pool.shutdown(cancel_futures=True)  # after an error, the other images are not decoded
    accounting.use("file", damaged.count(False))
    split = Split(images[: len(names)], torch.tensor(labels, dtype=torch.int64), names)
    return LoadedSplit(split, all_gray, damaged=torch.tensor(damaged) if any(damaged) else None)


def _load_lazily(files: Files, options: LoadOptions, cache_key: str, accounting: Accounting) -> LoadedSplit:
    """Check the headers of the images, and leave them on disk."""
    labels = torch.tensor([label for _, label in files], dtype=torch.int64)
    split = Split(_lazy_images(files, options), labels, [printable(path) for path, _ in files])
    return check_headers(split, "file", cache_key, accounting)


def _lazy_images(files: Files, options: LoadOptions) -> LazyImages:
    ranges = ByteRanges.from_files([str(path) for path, _ in files])
    return LazyImages(ranges, options.storage, options.workers, full_size=options.full_size)


def class_files(split: Folder | None, folders: tuple[str, ...]) -> Files:
    """List the images in the class folders of a split, with their labels; empty for None."""
    by_class: dict[str, list[Folder]] = {}
    for folder in split.folders if split else ():
        by_class.setdefault(class_key(folder), []).append(folder)
    return [
        (path, label)
        for label, name in enumerate(folders)
        for folder in by_class.get(name, ())
        for path in folder.walk()
    ]
