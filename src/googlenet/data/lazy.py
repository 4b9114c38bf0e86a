"""Images that stay on disk: decoded when a batch needs them, by worker processes ahead of time."""

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
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .decode import ImageError, decode_to_tensor, image_error, printable
from .preprocess import Preprocess

PREFETCH_FACTOR = 2  # batches per worker that are decoded ahead
MAX_WORKERS = 16
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

    def read(self, index: int) -> bytes:
        """Read an encoded image; ImageError if that is impossible."""
        path = os.fsdecode(bytes(self.files[self.file[index]]))
        try:
            # Buffered: a raw read may return fewer bytes, for example on network file systems.
            with open(path, "rb") as file:
                file.seek(int(self.start[index]))
                return file.read(int(self.size[index]))
        except OSError as error:
            raise image_error(error, path) from None

    def source(self, index: int) -> Path | bytes:
        """Return an image's path, or its bytes if the file contains several."""
        return self.read(index) if self.size[index] >= 0 else Path(os.fsdecode(bytes(self.files[self.file[index]])))

    def is_jpeg(self, index: int) -> bool:
        """Return whether the first bytes are those of a JPEG."""
        with suppress(OSError), open(os.fsdecode(bytes(self.files[self.file[index]])), "rb", buffering=0) as file:
            file.seek(int(self.start[index]))
            return file.read(2) == b"\xff\xd8"
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


@dataclass
class LazyImages:
    """Images on disk with the interface of a uint8 tensor (n, channels, size, size).

    `preprocess` is their crop, size and channels. The pixels are those of an image decoded in memory. `num_workers`
    processes decode ahead; with 0 the calling process decodes. The pixels do not depend on their number.
    """

    ranges: ByteRanges
    preprocess: Preprocess
    num_workers: int = 0
    device: torch.device = CPU
    # The batches of `fetch` that are decoded ahead, and their indices.
    _prefetched: tuple[Iterator[Tensor], Iterator[Tensor]] | None = field(default=None, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.ranges.file)

    def __getitem__(self, indices: Tensor | slice) -> "LazyImages":
        """Return the images of a slice, of int64 indices or where a bool mask is true, without reading any."""
        selected = indices if isinstance(indices, slice) else indices.cpu().numpy()
        return replace(self, ranges=self.ranges.select(selected))

    @property
    def shape(self) -> torch.Size:
        """Return (n, channels, size, size)."""
        return torch.Size((len(self), self.preprocess.channels, self.preprocess.size, self.preprocess.size))

    def to(self, device: torch.device) -> "LazyImages":
        """Return the same images, with batches on `device`."""
        return replace(self, device=device)

    def read(self, indices: Tensor) -> Tensor:
        """Decode images in this process, to the CPU; ImageError with the name of a missing or damaged file."""
        preprocess = self.preprocess
        channels, size, min_size = preprocess.channels, preprocess.size, preprocess.min_decode_size()
        pixels = torch.empty(len(indices), channels, size, size, dtype=torch.uint8)
        for position, index in enumerate(indices.tolist()):
            data, name = self.ranges.read(index), self.ranges.name(index)
            pixels[position] = preprocess.to_uint8(
                decode_to_tensor(data, channels, name, min_size, preprocess.max_value)
            )
        return pixels

    def batches(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the images of each tensor of indices in `batches` (which may be endless), decoded ahead."""
        images = replace(self)  # A copy without prefetched batches: these must not refer to themselves.
        if self.num_workers and free_shared_memory() >= MIN_SHARED_MEMORY:
            return _prefetch(images, batches)
        if self.num_workers:
            _warn_of_no_workers()
        return (images.read(indices).to(images.device) for indices in batches)

    def fetch(self, indices: Tensor, upcoming: Iterator[Tensor]) -> Tensor:
        """Return images on the device, and decode those of `upcoming` ahead.

        If the next call requests other images than `upcoming` announced, prefetching restarts; the pixels are equal.
        """
        prefetched, self._prefetched = self._prefetched, None
        announced = next(prefetched[1], None) if prefetched else None
        if prefetched is None or announced is None or not torch.equal(announced, indices):
            requested, announcements = itertools.tee(itertools.chain([indices], upcoming))
            prefetched = self.batches(requested), announcements
            next(announcements)
        pixels = next(prefetched[0])
        self._prefetched = prefetched
        return pixels


def index_batches(count: int, batch_size: int) -> list[Tensor]:
    """Return the int64 indices 0..count-1 in batches of `batch_size`; the last may be smaller."""
    return [torch.arange(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


def default_num_workers() -> int:
    """Return this process's share of the available cores (see torchrun's LOCAL_WORLD_SIZE); 0 for a single core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return 0 if share < 2 else min(share, MAX_WORKERS)


def _read_or_message(images: LazyImages, indices: list[int]) -> Tensor | NDArray[np.uint8] | str:
    # The message is returned: an exception would arrive with the worker's traceback in its message.
    try:
        pixels = images.read(torch.tensor(indices))
    except ImageError as error:
        return str(error)
    # PyTorch sends tensors in shared memory. If it is full, the batch is lost and training waits forever; arrays are
    # sent through a pipe. All workers may have checked the free space before one of them uses it.
    enough = free_shared_memory() > (images.num_workers + 1) * pixels.nbytes
    return pixels if enough else pixels.numpy()


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


def _prefetch(images: LazyImages, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    pinned, dataset = images.device.type == "cuda", cast("Dataset[int]", range(len(images)))
    loader = DataLoader(
        dataset,
        batch_sampler=(indices.tolist() for indices in batches),
        collate_fn=partial(_read_or_message, images),
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
        for pixels in iterator:
            if isinstance(pixels, str):
                raise ImageError(pixels)
            yield torch.as_tensor(pixels).to(images.device, non_blocking=pinned)
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


def _ignore_signals(_: int) -> None:
    # Signals reach the whole process group, but the training process ends the workers after it has saved.
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, signal.SIG_IGN)
