"""Sets of images: a folder, a data source, a tensor; listed, identified by content, decoded and resized ahead."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.accounting import Accounting
from ..data.dataset import LoadOptions, Split
from ..data.decode import open_image, printable, transpose_method
from ..data.image_files import image_files
from ..data.lazy import ByteRanges, LazyImages, default_num_workers
from ..data.pixel_range import is_deep
from ..data.preprocess import RANGE_ADVICE, check_channels, check_range
from ..data.sources import SOURCES, load_dataset
from ..files import missing_folder
from .modes import Mode

READ_AHEAD = 3  # batches that are decoded or waiting
SPLIT_SEPARATOR = "@"
SPLIT_NAMES = ("train", "validation", "test")
EXPECTED = "name a folder of images, an .npz file, or a data source such as fashion-mnist@test"


class ImageInfo(NamedTuple):
    """What is known of an image without decoding it: a digest of its file, size in pixels, format, ignored properties.

    `ignored` is what the tools' ``convert("RGB")`` does not apply: transparency, orientation or more than 8 bits.
    """

    digest: bytes
    width: int
    height: int
    format: str
    ignored: str = ""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A set of images: `read(index, channels)` returns pixels uint8 (h, w, channels); thread-safe.

    `labels` int64 (n,) are indices of `classes`, None if the images are not labeled. `notes` are lines for the user.
    """

    name: str
    names: Sequence[str]
    infos: Sequence[ImageInfo]
    read: Callable[[int, int], np.ndarray]
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.infos)

    @property
    def digest(self) -> str:
        """Return a digest of the contents, in order; names are not a part of it."""
        return hashlib.sha256(b"".join(info.digest for info in self.infos)).hexdigest()


def open_image_set(source: str, mode: Mode) -> ImageSet:
    """List the images of a folder, as `mode`'s tool does, or of a data source with an optional ``@SPLIT``.

    Reads all files once. Raises ValueError for a source without images, or with a file that is damaged.
    """
    path = Path(source.removeprefix("folder:"))
    if source.startswith("folder:") or path.is_dir():
        return _folder(path, mode)
    name, split = _separate_split(source)
    if name.partition(":")[0] not in SOURCES:
        raise ValueError(f"{source}: {'a file' if path.exists() else 'no such folder'}; {EXPECTED}")
    data = load_dataset(name, LoadOptions(validation=0, in_memory=False, on_error="raise"))
    chosen: Split = getattr(data, split or "train")
    if not len(chosen):
        raise ValueError(f"{source}: no {split or 'train'} images; choose another split with {name}@SPLIT")
    if isinstance(chosen.images, LazyImages):
        images = _encoded(source, chosen.images.ranges, chosen.names)
    else:
        images = image_set_of_tensor(source, chosen.images)
    return ImageSet(source, chosen.names, images.infos, images.read, chosen.labels, data.classes)


def _separate_split(source: str) -> tuple[str, str]:
    """Return the source and the split of ``SOURCE@SPLIT``; the split is empty if none is named."""
    name, separator, split = source.rpartition(SPLIT_SEPARATOR)
    if split in SPLIT_NAMES and separator:
        return name, split
    if separator and ":" not in source:  # a location may contain the separator
        raise ValueError(f"{source}: no split {split!r}; choose from {', '.join(SPLIT_NAMES)}")
    return source, ""


def _folder(folder: Path, mode: Mode) -> ImageSet:
    if not folder.is_dir():
        raise missing_folder(folder)
    accounting, paths = Accounting(), list[Path]()
    for path in image_files(folder, accounting):
        if mode.selects(path.relative_to(folder)):
            paths.append(path)
        else:
            accounting.exclude("file", f"not read by {mode.tool}", printable(path))
    if not paths:
        where = "" if mode.recursive else ", directly in it"
        files = f"{', '.join(sorted({suffix.lower() for suffix in mode.suffixes}))} files{where}"
        reasons = f" ({accounting.reasons()})" if accounting.reasons() else ""
        raise ValueError(f"{folder}: no images{reasons}; name a folder with {files}")
    paths.sort(key=str)
    names = [printable(path) for path in paths]
    images = _encoded(str(folder), ByteRanges.from_files([str(path) for path in paths]), names)
    labels, classes = _labels_by_folder([path.relative_to(folder) for path in paths])
    return ImageSet(images.name, names, images.infos, images.read, labels, classes, tuple(accounting.lines()))


def _labels_by_folder(paths: Sequence[Path]) -> tuple[Tensor | None, tuple[str, ...]]:
    """Return labels and class names by the first folder of each path; None if an image is in no folder."""
    if any(len(path.parts) == 1 for path in paths):
        return None, ()
    classes = tuple(sorted({path.parts[0] for path in paths}))
    number = {name: index for index, name in enumerate(classes)}
    return torch.tensor([number[path.parts[0]] for path in paths]), classes


def _encoded(name: str, ranges: ByteRanges, names: Sequence[str]) -> ImageSet:
    """Return a set of encoded images."""

    def identify(index: int) -> ImageInfo:
        data = ranges.read(index)
        with open_image(data, names[index]) as image:
            return ImageInfo(_digest(data), *image.size, str(image.format), _ignored(image))
        raise AssertionError  # open_image suppresses no exception

    def read(index: int, channels: int) -> np.ndarray:
        with open_image(ranges.read(index), names[index]) as image:
            return _to_array(image, channels)
        raise AssertionError  # open_image suppresses no exception

    with ThreadPoolExecutor() as pool:
        infos = list(pool.map(identify, range(len(names))))
    return ImageSet(name, names, infos, read)


def _ignored(image: Image.Image) -> str:
    if is_deep(image):
        return "more than 8 bits"
    if image.mode != "1" and image.has_transparency_data:
        return "transparency"
    return "orientation" if transpose_method(image) is not None else ""


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _to_array(image: Image.Image, channels: int) -> np.ndarray:
    """Convert as all three tools do, with Pillow's ``convert``: uint8 (h, w, channels)."""
    array = np.array(image.convert("L" if channels == 1 else "RGB"))
    return array.reshape(*array.shape[:2], channels)


def image_set_of_tensor(name: str, images: Tensor, max_value: float | None = None) -> ImageSet:
    """Return the set of a tensor (n, 1 or 3, h, w): uint8, or of another type with the value `max_value` for white.

    Floats are rounded to 8 bits, as a file would be. Raises ValueError for another shape or range.
    """
    pixels = to_uint8(images, max_value)

    def read(index: int, channels: int) -> np.ndarray:
        array = pixels[index].permute(1, 2, 0).numpy()
        return _to_array(Image.fromarray(array[..., 0] if array.shape[2] == 1 else array), channels)

    height, width = pixels.shape[2:]
    infos = [ImageInfo(_digest(image.numpy().tobytes()), width, height, "pixels") for image in pixels]
    return ImageSet(name, [f"{name}[{index}]" for index in range(len(pixels))], infos, read)


def to_uint8(images: Tensor, max_value: float | None = None) -> Tensor:
    """Return a batch (n, 1 or 3, h, w) as uint8 on the CPU; see `image_set_of_tensor`."""
    if not isinstance(images, Tensor):
        raise ValueError(f"batches must be tensors (n, channels, height, width), not {type(images).__name__}")
    check_channels(images, 3)
    images = images.detach().cpu()
    if not len(images):
        raise ValueError("no images")
    if max_value is not None:
        images = images.float() * (255 / max_value)
        if images.min() < -0.5 or images.max() > 255.5:
            raise ValueError(f"images have values above {max_value:g} or below 0; {RANGE_ADVICE}")
    else:
        check_range(images)
    return images if images.dtype == torch.uint8 else images.round().clamp(0, 255).to(torch.uint8)


class Preparation(NamedTuple):
    """How pixels become the input of a network: the tool's resizing, and the network's side and channels."""

    mode: Mode
    side: int
    channels: int

    def load(self, images: ImageSet, index: int) -> Tensor:
        """Return float32 (channels, side, side) in 0..255."""
        return self.mode.resize(images.read(index, self.channels), self.side)


def pixel_batches(images: ImageSet, prepare: Preparation, batch_size: int, start: int = 0) -> Iterator[Tensor]:
    """Yield float32 (n, channels, side, side) of the images from `start`, decoded and resized ahead in threads."""
    pool = ThreadPoolExecutor(max(1, default_num_workers()))
    remaining = iter(range(start, len(images)))
    pending: deque[Future[Any]] = deque()

    def submit(count: int) -> None:
        pending.extend(pool.submit(prepare.load, images, index) for index in islice(remaining, count))

    try:
        submit(READ_AHEAD * batch_size)
        while pending:
            batch = [pending.popleft().result() for _ in range(min(batch_size, len(pending)))]
            submit(batch_size)
            yield torch.stack(batch)
    finally:
        pool.shutdown(cancel_futures=True)


def thumbnail(images: ImageSet, index: int, side: int = 96) -> Tensor:
    """Return an image for a report, reduced to `side` pixels: uint8 (3, h, w)."""
    image = Image.fromarray(images.read(index, 3))
    image.thumbnail((side, side))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
