"""Pictures that stay on the disk: decoded when a batch asks for them, by worker processes ahead of time."""

import atexit
import itertools
import os
import signal
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .pictures import PictureError, read_bytes, read_pixels
from .preprocess import Preprocess

# Batches that each worker has ready or under way.
AHEAD = 2
MOST_WORKERS = 16

CPU = torch.device("cpu")


class Places(NamedTuple):
    """Where encoded pictures lie: of each the number of its file, and the part of it, `size` -1 for the whole file.

    Arrays, not lists of paths: worker processes share their memory, whatever the number of pictures.
    """

    files: NDArray[np.bytes_]
    file: NDArray[np.int32]
    start: NDArray[np.int64]
    size: NDArray[np.int64]

    @classmethod
    def whole(cls, paths: list[str]) -> "Places":
        """One picture per file."""
        count = len(paths)
        files = np.array([os.fsencode(path) for path in paths], dtype=np.bytes_)
        return cls(files, np.arange(count, dtype=np.int32), np.zeros(count, np.int64), np.full(count, -1, np.int64))

    def select(self, rows: NDArray[Any]) -> "Places":
        """The places of pictures `rows`, numbers or a mask."""
        return Places(self.files, self.file[rows], self.start[rows], self.size[rows])

    def read(self, row: int) -> bytes:
        """The encoded picture; PictureError where it cannot be read."""
        path, size = os.fsdecode(bytes(self.files[self.file[row]])), int(self.size[row])
        return read_bytes(path, int(self.start[row]), None if size < 0 else size)

    def name(self, row: int) -> str:
        """The file, for messages; with the place in it where the file holds several."""
        path = os.fsencode(self.files[self.file[row]]).decode(errors="backslashreplace")
        return path if self.size[row] < 0 else f"{path} at byte {self.start[row]}"


@dataclass
class Stream:
    """Pictures on the disk, used where resident ones are a tensor (n, channels, size, size) of uint8.

    `geometry` says how each is made square, at which size and with how many channels it is given out: the resident
    form's pixels, but for JPEGs of twice the size or more, which are decoded at a fraction of it. `workers` processes
    read ahead; with 0 the caller's own reads. What is read does not depend on their number.
    """

    places: Places
    geometry: Preprocess
    workers: int = 0
    device: torch.device = CPU

    def __post_init__(self) -> None:
        self._running: _Running | None = None

    def __len__(self) -> int:
        return len(self.places.file)

    @property
    def shape(self) -> torch.Size:
        """(n, channels, size, size), as if resident."""
        return torch.Size((len(self), self.geometry.channels, self.geometry.size, self.geometry.size))

    def to(self, device: torch.device) -> "Stream":
        """The same pictures, given out on `device`."""
        return Stream(self.places, self.geometry, self.workers, device)

    def select(self, rows: Tensor) -> "Stream":
        """The pictures `rows`, int64 numbers or a mask, without reading any."""
        return Stream(self.places.select(rows.cpu().numpy()), self.geometry, self.workers, self.device)

    def with_channels(self, channels: int) -> "Stream":
        """The same pictures, given out with 1 (grey) or 3 (RGB) channels."""
        plain = replace(self.geometry, channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels)
        return Stream(self.places, plain, self.workers, self.device)

    def read(self, rows: Tensor) -> Tensor:
        """Pictures `rows` -> uint8 (len(rows), channels, size, size), decoded here and now, on the CPU.

        Raises PictureError that names a file which can no longer be used.
        """
        return _Reader(self.places, self.geometry).read(rows.tolist())

    def batches(self, plan: Iterable[Tensor]) -> Iterator[Tensor]:
        """For each tensor of rows in `plan` (which may be endless) its pictures on the device, read ahead."""
        reader, device = _Reader(self.places, self.geometry), self.device
        if not self.workers:
            return (reader.read(rows.tolist()).to(device) for rows in plan)
        batches = _read_ahead(reader, plan, self.workers, device)
        _RUNNING.add(batches)
        return batches

    def take(self, rows: Tensor, then: Iterator[Tensor]) -> Tensor:
        """The pictures `rows`, on the device; those that `then` names, in that order, are read ahead meanwhile.

        What comes next is a guess, which decides about the time alone: where it was wrong, reading starts anew.
        """
        running, self._running = self._running, None
        if running is None or not running.expects(rows):
            running = _Running(self, itertools.chain([rows], then))
        pixels = running.next()
        self._running = running
        return pixels


class _Running:
    """Batches under way, and which rows they are of."""

    def __init__(self, stream: Stream, plan: Iterator[Tensor]):
        self.asked: deque[Tensor] = deque()
        self.batches = stream.batches(self._noted(plan, self.asked))

    @staticmethod
    def _noted(plan: Iterator[Tensor], asked: deque[Tensor]) -> Iterator[Tensor]:
        for rows in plan:
            asked.append(rows)
            yield rows

    def expects(self, rows: Tensor) -> bool:
        """Whether the next batch is that of `rows`; nobody knows where none was asked for yet."""
        return bool(self.asked) and torch.equal(self.asked[0], rows)

    def next(self) -> Tensor:
        pixels = next(self.batches)
        self.asked.popleft()
        return pixels


def rows_in_parts(count: int, size: int) -> list[Tensor]:
    """0..count-1 in order, `size` at a time: int64 tensors, the last one perhaps shorter."""
    return [torch.arange(start, min(start + size, count)) for start in range(0, count, size)]


def default_workers() -> int:
    """The cores that this process may use, shared with the others of its kind on the machine; 0 for a single one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return 0 if share < 2 else min(share, MOST_WORKERS)


class _Reader(Dataset[Any]):
    """Decodes pictures of `places`: what workers do, and `Stream.read` too."""

    def __init__(self, places: Places, geometry: Preprocess):
        self.places, self.geometry = places, geometry

    def read(self, rows: list[int]) -> Tensor:
        """uint8 (len(rows), channels, size, size)."""
        channels, size = self.geometry.channels, self.geometry.size
        pixels = torch.empty(len(rows), channels, size, size, dtype=torch.uint8)
        for position, row in enumerate(rows):
            found = read_pixels(self.places.read(row), channels, self.places.name(row), size)
            pixels[position] = self.geometry.keep(found.values)
        return pixels

    def __getitem__(self, rows: list[int]) -> Tensor | str:
        # The reason as a value: an exception would cross the processes with a traceback in its message.
        try:
            return self.read(rows)
        except PictureError as error:
            return str(error)


def _read_ahead(
    reader: _Reader, plan: Iterable[Tensor], workers: int, device: torch.device
) -> Generator[Tensor, None, None]:
    pinned = device.type == "cuda"
    loader = DataLoader(
        reader,
        batch_size=None,
        sampler=(rows.tolist() for rows in plan),
        num_workers=workers,
        prefetch_factor=AHEAD,
        worker_init_fn=_start_worker,
        pin_memory=pinned,
        # The loader draws a seed; taken from the global generator it would change what dropout draws.
        generator=torch.Generator(),
    )
    running: Any = iter(loader)
    # Last in is first out: before the hooks of the workers that have just been started.
    atexit.unregister(_end_all)
    atexit.register(_end_all)
    try:
        for pixels in running:
            if isinstance(pixels, str):
                raise PictureError(pixels)
            yield pixels.to(device, non_blocking=pinned)
    except RuntimeError as error:
        if "worker" not in str(error):
            raise
        raise ValueError(
            f"a process that reads pictures died ({str(error).splitlines()[0]}); "
            "give it more shared memory, or read without processes: --data.workers 0"
        ) from error
    finally:
        # At once, not when the garbage is collected: a worker that was not told to end is waited for at our exit.
        running._shutdown_workers()


# Batches that are read ahead: whoever leaves the process ends these first, or waits for their workers for ever.
_RUNNING: weakref.WeakSet[Generator[Tensor, None, None]] = weakref.WeakSet()


def _end_all() -> None:
    for batches in list(_RUNNING):
        batches.close()


def _start_worker(_: int) -> None:
    # Signals go to the whole group; it is the training process that finishes its step and saves, and ends us.
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, signal.SIG_IGN)
