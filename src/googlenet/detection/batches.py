"""Bounds of the memory that decoded images occupy, in bytes rather than in numbers of images."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from torch import Tensor

# Largest size of the decoded images that are in memory at a time, unless a single one is larger.
MAX_DECODED_BYTES = 256 * 2**20
# Largest number of images in a chunk, however small they are.
MAX_CHUNK = 500

T = TypeVar("T")
R = TypeVar("R")


def chunks_by_bytes(
    items: Sequence[T], num_bytes: Callable[[T], int], max_bytes: int = MAX_DECODED_BYTES
) -> Iterator[list[T]]:
    """Yield the items in order in lists of at most `max_bytes` in total, or of one larger item."""
    chunk, total = list[T](), 0
    for item in items:
        size = num_bytes(item)
        if chunk and (total + size > max_bytes or len(chunk) == MAX_CHUNK):
            yield chunk
            chunk, total = [], 0
        chunk.append(item)
        total += size
    if chunk:
        yield chunk


def map_bounded(
    function: Callable[[Tensor], R], images: Iterable[Tensor], num_workers: int, max_bytes: int = MAX_DECODED_BYTES
) -> Iterator[R]:
    """Apply `function` to each image in threads, in order.

    The images that are being processed have at most `max_bytes`; `images` is consumed only as far.
    """
    pending: deque[tuple[Future[R], int]] = deque()
    with ThreadPoolExecutor(num_workers) as pool:
        for image in images:
            while pending and (
                sum(size for _, size in pending) + image.nbytes > max_bytes or len(pending) >= 2 * num_workers
            ):
                yield pending.popleft()[0].result()
            pending.append((pool.submit(function, image), image.nbytes))
            del image
        while pending:
            yield pending.popleft()[0].result()
