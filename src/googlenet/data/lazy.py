"""Images that are processed when a batch needs them, by worker processes ahead of time.

They stay on disk, or are in memory at their full size.
"""

import atexit
import hashlib
import itertools
import math
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .decode import ImageError, decode_to_tensor, image_error, printable
from .decoded import DecodedImages
from .preprocess import Preprocess
from .random_view import RandomView

PREFETCH_FACTOR = 2  # batches per worker that are decoded ahead
MAX_WORKERS = 16
MAX_FAILURES = 100  # images in a row that cannot be read: the disk is gone
MIN_SHARED_MEMORY = 2**20  # bytes for the semaphores of the workers
CPU = torch.device("cpu")


class ByteRanges(NamedTuple):
    """The positions of encoded images in files: bytes `start` to ``start + size`` of ``files[file]``, one per image.

    A `size` of -1 stands for the whole file. The fields are arrays because worker processes then share their memory.
    """

    files: NDArray[np.bytes_]
    file: NDArray[np.int32]
    start: NDArray[np.int64]
    size: NDArray[np.int64]

    @classmethod
    def from_files(cls, paths: list[str]) -> "ByteRanges":
        """Create the ranges of whole files, one image each."""
        count = len(paths)
        files = np.array([os.fsencode(path) for path in paths], dtype=np.bytes_)
        return cls(files, np.arange(count, dtype=np.int32), np.zeros(count, np.int64), np.full(count, -1, np.int64))

    def select(self, indices: NDArray[Any] | slice) -> "ByteRanges":
        """Return the ranges of the images of a slice, with these indices, or where a bool mask is true."""
        return ByteRanges(self.files, self.file[indices], self.start[indices], self.size[indices])

    def concatenate(self, other: "ByteRanges") -> "ByteRanges":
        """Return these ranges, followed by those of `other`."""
        files = np.concatenate((self.files, other.files))
        file = np.concatenate((self.file, other.file + np.int32(len(self.files))))
        return ByteRanges(
            files, file, np.concatenate((self.start, other.start)), np.concatenate((self.size, other.size))
        )

    def read(self, index: int, limit: int | None = None) -> bytes:
        """Read an encoded image, or its first `limit` bytes; ImageError if that is impossible."""
        path = os.fsdecode(bytes(self.files[self.file[index]]))
        try:
            # Buffered: a raw read may return fewer bytes, for example on network file systems.
            with open(path, "rb") as file:
                file.seek(int(self.start[index]))
                size = int(self.size[index])
                return file.read(size if limit is None else min(size, limit) if size >= 0 else limit)
        except OSError as error:
            raise image_error(error, path) from None

    def source(self, index: int) -> Path | bytes:
        """Return an image's path, or its bytes if the file contains several."""
        return self.read(index) if self.size[index] >= 0 else Path(os.fsdecode(bytes(self.files[self.file[index]])))

    def has_8_bits(self, index: int) -> bool:
        """Return whether the first bytes say that an image has at most 8 bits per channel: JPEG, and most PNGs."""
        with suppress(OSError), open(os.fsdecode(bytes(self.files[self.file[index]])), "rb", buffering=0) as file:
            file.seek(int(self.start[index]))
            head = file.read(25)
            return head[:2] == b"\xff\xd8" or (head[:8] == b"\x89PNG\r\n\x1a\n" and head[24:] <= b"\x08")
        return False

    def name(self, index: int) -> str:
        """Return the file of an image for messages, with the position if the file contains several."""
        path = printable(os.fsdecode(self.files[self.file[index]]))
        return path if self.size[index] < 0 else f"{path} at byte {self.start[index]}"

    def fingerprints(self) -> NDArray[np.uint64]:
        """Hash path, modification time and size of the file and position of each image: uint64 (n,)."""
        files = {}
        for file in np.unique(self.file).tolist():
            path = bytes(self.files[file])
            try:
                status = os.stat(os.fsdecode(path))
                files[file] = b"%b|%d|%d" % (path, status.st_mtime_ns, status.st_size)
            except OSError:
                files[file] = path
        rows = zip(self.file.tolist(), self.start.tolist(), self.size.tolist(), strict=True)
        keys = (b"%b|%d|%d" % (files[file], start, size) for file, start, size in rows)
        return np.frombuffer(b"".join(hashlib.blake2b(key, digest_size=8).digest() for key in keys), np.uint64)


class ImageRequest(NamedTuple):
    """The images of a batch: their int64 `indices` (n,), and the random `view` of each; None: the stored image."""

    indices: Tensor
    view: RandomView | None = None


class Failure(NamedTuple):
    """The index of an image that cannot be read, the message of its ImageError, and the index that is shown instead."""

    number: int
    message: str
    replacement: int


class ReadBatch(NamedTuple):
    """Images uint8 (n, channels, h, w), and those among them that were replaced."""

    pixels: Tensor
    failures: list[Failure]


@dataclass
class LazyImages:
    """Images with the interface of a uint8 tensor (n, channels, size, size), processed when they are needed.

    `preprocess` is their crop, size and channels. The pixels are those of an image decoded in memory. `num_workers`
    processes work ahead; with 0 the calling process does everything. The pixels do not depend on their number.
    `full_size` is the shorter side, in pixels, that random views of the full images need; None: only center crops are
    needed. `decoded` has the full images if they are in memory.

    An image that cannot be read raises ImageError if the images are `strict`. Otherwise the next image that can be read
    is shown instead, which does not depend on anything else, so that every process and every resumed run does the
    same. `resolve` returns its index; `unreadable` has the messages by name.
    """

    ranges: ByteRanges
    preprocess: Preprocess
    num_workers: int = 0
    device: torch.device = CPU
    full_size: int | None = None
    decoded: DecodedImages | None = None
    strict: bool = True
    unreadable: dict[str, str] = field(default_factory=dict)
    # The images that are shown instead of others in the last batch, by index.
    _replacements: dict[int, int] = field(default_factory=dict, init=False, repr=False)
    # The batches of `fetch` that are decoded ahead, and their requests.
    _prefetched: tuple[Iterator[ReadBatch], Iterator[ImageRequest]] | None = field(default=None, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.ranges.file)

    def __getitem__(self, indices: Tensor | slice) -> "LazyImages":
        """Return the images of a slice, of int64 indices or where a bool mask is true, without reading any."""
        selected = indices if isinstance(indices, slice) else indices.cpu().numpy()
        decoded = self.decoded.select(selected) if self.decoded else None
        return replace(self, ranges=self.ranges.select(selected), decoded=decoded)

    def concatenate(self, other: "LazyImages") -> "LazyImages":
        """Return these images, followed by those of `other`, which are stored in the same way."""
        decoded = self.decoded.concatenate(other.decoded) if self.decoded and other.decoded else None
        return replace(self, ranges=self.ranges.concatenate(other.ranges), decoded=decoded)

    @property
    def shape(self) -> torch.Size:
        """Return (n, channels, size, size)."""
        return torch.Size((len(self), self.preprocess.channels, self.preprocess.size, self.preprocess.size))

    def to(self, device: torch.device) -> "LazyImages":
        """Return the same images, with batches on `device`."""
        return replace(self, device=device)

    def read(self, indices: Tensor, view: RandomView | None = None) -> Tensor:
        """Return images, or views of them, on the CPU; ImageError with the name of a missing or damaged file."""
        return self._note(self._read(ImageRequest(indices, view)))

    def _read(self, request: ImageRequest) -> ReadBatch:
        indices, view = request
        failures: list[Failure] = []
        images = (self._read_or_replace(index, failures) for index in indices.tolist())
        if view:
            return ReadBatch(view.render(images, indices), failures)
        channels, size = self.preprocess.channels, self.preprocess.size
        pixels = torch.empty(len(indices), channels, size, size, dtype=torch.uint8)
        for position, image in enumerate(images):
            pixels[position] = self.preprocess.to_uint8(image)
        return ReadBatch(pixels, failures)

    def _read_or_replace(self, index: int, failures: list[Failure]) -> Tensor:
        """Return an image, or the next one that can be read, which is added to `failures`."""
        messages = []
        for replacement in (number % len(self) for number in range(index, index + min(MAX_FAILURES, len(self)))):
            try:
                image = self.read_full(replacement)
            except ImageError as error:
                if self.strict:
                    raise
                messages.append(str(error))
            else:
                numbers = [number % len(self) for number in range(index, index + len(messages))]
                failures += [Failure(*item, replacement) for item in zip(numbers, messages, strict=True)]
                return image
        raise ImageError(f"{messages[0]}; nor can any of the {len(messages) - 1} images after it be read")

    def _note(self, batch: ReadBatch) -> Tensor:
        """Record the failures of a batch, name new ones on standard error, and return the images."""
        # An image that failed in an earlier batch, on a network file system for example, may be readable now.
        self._replacements = {failure.number: failure.replacement for failure in batch.failures}
        for failure in batch.failures:
            name = self.ranges.name(failure.number)
            if name not in self.unreadable:
                print(f"{failure.message}; shown instead: {self.ranges.name(failure.replacement)}", file=sys.stderr)
                self.unreadable[name] = failure.message.removeprefix(f"{name}: ")
        return batch.pixels

    def resolve(self, indices: Tensor) -> Tensor:
        """Return the indices of the images that were shown for `indices` (n,), which are of the last batch."""
        if not self._replacements:
            return indices
        shown = [self._replacements.get(index, index) for index in indices.tolist()]
        return torch.tensor(shown, dtype=indices.dtype, device=indices.device)

    def read_full(self, index: int) -> Tensor:
        """Return an image before it is cropped and resized: uint8 (channels, h, w)."""
        if self.decoded:
            return self.decoded.read(index).expand(self.preprocess.channels, -1, -1)
        return self.decode(index, self.preprocess.channels)

    def decode(self, index: int, channels: int | None) -> Tensor:
        """Decode a file to uint8 (channels, h, w); without `channels`, gray images have 1 and others 3."""
        min_size, reduce = self.full_size or self.preprocess.min_decode_size(), self.full_size is not None
        data, name = self.ranges.read(index), self.ranges.name(index)
        return decode_to_tensor(data, channels, name, min_size, self.preprocess.max_value, reduce=reduce)

    def batches(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the images of each tensor of indices in `batches` (which may be endless), decoded ahead."""
        return map(self._note, self._process(ImageRequest(indices) for indices in batches))

    def _process(self, requests: Iterable[ImageRequest]) -> Iterator[ReadBatch]:
        images = replace(self)  # A copy without prefetched batches: these must not refer to themselves.
        if self.num_workers and free_shared_memory() >= MIN_SHARED_MEMORY:
            return _prefetch(images, requests)
        if self.num_workers:
            _warn_of_no_workers()
        results = map(images._read, requests)
        return (result._replace(pixels=result.pixels.to(images.device)) for result in results)

    def fetch(self, request: ImageRequest, upcoming: Iterator[ImageRequest]) -> Tensor:
        """Return images on the device, and process those of `upcoming` ahead.

        If the next call requests other images than `upcoming` announced, prefetching restarts; the pixels are equal.
        """
        prefetched, self._prefetched = self._prefetched, None
        announced = next(prefetched[1], None) if prefetched else None
        if prefetched is None or announced is None or not _is_same(announced, request):
            requested, announcements = itertools.tee(itertools.chain([request], upcoming))
            prefetched = self._process(requested), announcements
            next(announcements)
        batch = next(prefetched[0])
        self._prefetched = prefetched
        return self._note(batch)


def _is_same(first: ImageRequest, second: ImageRequest) -> bool:
    return first.view == second.view and torch.equal(first.indices, second.indices)


def index_batches(count: int, batch_size: int) -> list[Tensor]:
    """Return the int64 indices 0..count-1 in batches of `batch_size`; the last may be smaller."""
    return [torch.arange(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


def default_num_workers() -> int:
    """Return this process's share of the available cores (see torchrun's LOCAL_WORLD_SIZE); 0 for a single core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return 0 if share < 2 else min(share, MAX_WORKERS)


class _Requested(Dataset[tuple[Tensor | NDArray[np.uint8], list[Failure]] | str]):
    """What a worker process returns for a request: pixels and failures, or the message of an ImageError."""

    def __init__(self, images: LazyImages):
        self.images = images

    def __getitem__(self, request: ImageRequest) -> tuple[Tensor | NDArray[np.uint8], list[Failure]] | str:
        # An exception would arrive with the worker's traceback in its message.
        try:
            pixels, failures = self.images._read(request)
        except ImageError as error:
            return str(error)
        # PyTorch sends tensors in shared memory. If it is full, the batch is lost and training waits forever; arrays
        # are sent through a pipe. All workers may have checked the free space before one of them uses it.
        enough = free_shared_memory() > (self.images.num_workers + 1) * pixels.nbytes
        return (pixels if enough else pixels.numpy()), failures


@cache
def _warn_of_no_workers() -> None:
    print("decoding without worker processes: too little shared memory (/dev/shm)", file=sys.stderr)


def free_shared_memory() -> float:
    """Return the free shared memory in bytes: 0 without any, infinite on systems that do not limit it."""
    if sys.platform != "linux":
        return math.inf
    if not os.access("/dev/shm", os.W_OK):
        return 0
    status = os.statvfs("/dev/shm")
    return status.f_bavail * status.f_frsize


def _prefetch(images: LazyImages, requests: Iterable[ImageRequest]) -> Iterator[ReadBatch]:
    pinned = images.device.type == "cuda"
    loader = DataLoader(
        _Requested(images),
        batch_size=None,
        sampler=requests,
        collate_fn=_identity,
        num_workers=images.num_workers,
        prefetch_factor=PREFETCH_FACTOR,
        worker_init_fn=_ignore_signals,
        pin_memory=pinned,
        # The loader draws a seed. From the global generator, it would change the random numbers of dropout.
        generator=torch.Generator(),
    )
    iterator: Any = iter(loader)
    # At exit, Python would wait forever for workers that were not shut down. Hooks run in reverse order: this first.
    atexit.register(iterator._shutdown_workers)
    try:
        for result in iterator:
            if isinstance(result, str):
                raise ImageError(result)
            pixels, failures = result
            yield ReadBatch(torch.as_tensor(pixels).to(images.device, non_blocking=pinned), failures)
    except RuntimeError as error:
        if "worker" not in str(error):
            raise
        raise ValueError(
            f"a data loading worker died ({str(error).splitlines()[0]}); "
            "increase the shared memory (/dev/shm), or decode without workers: --data.num_workers 0"
        ) from error
    finally:
        atexit.unregister(iterator._shutdown_workers)
        iterator._shutdown_workers()


def _identity(item: Any) -> Any:
    return item


def _ignore_signals(_: int) -> None:
    # Signals reach the whole process group, but the training process ends the workers after it has saved.
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, signal.SIG_IGN)
