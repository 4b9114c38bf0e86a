"""What a server takes on: bounds on each request, and on all of them together."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .errors import RequestError

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Limits:
    """Bounds of a server; every one of them is checked before the work that it bounds.

    `max_batch` pictures of one model and size are computed together, joined for at most `max_wait` seconds. `queue`
    pictures may be accepted and not yet answered, and `memory` bytes of them; what comes on top is answered 429.
    A request has `max_bytes`, `max_pictures` and `max_sizes` at most; a picture has `max_pixels`, seen before it is
    decoded, and no size asked for is above `max_size` pixels. All is answered within `timeout` seconds, or 504.
    """

    max_batch: int = 32
    max_wait: float = 0.005
    queue: int = 256
    memory: int = 1024 * MEGABYTE
    max_bytes: int = 20 * MEGABYTE
    max_pictures: int = 32
    max_sizes: int = 8
    max_pixels: int = 25_000_000
    max_size: int = 1024
    timeout: float = 30.0

    def __post_init__(self) -> None:
        for name in ("max_batch", "queue", "memory", "max_bytes", "max_pictures", "max_sizes", "max_pixels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, not {getattr(self, name)}")
        if self.max_wait < 0 or self.timeout <= 0 or not math.isfinite(self.max_wait + self.timeout):
            raise ValueError("max_wait must be 0 s or more, timeout above 0 s")


class Stay:
    """What one request has taken of a `Room`."""

    def __init__(self, room: "Room"):
        self.room = room
        self.pictures = 0
        self.memory = 0

    def take(self, pictures: int = 0, memory: int = 0) -> None:
        """So many pictures and bytes more.

        RequestError: 429 (come back later) where others have them, 413 where they are more than all of the room.
        """
        room = self.room
        if self.pictures + pictures > room.most_pictures or self.memory + memory > room.most_memory:
            raise RequestError(413, "this request alone is more than the server holds; send fewer pictures or sizes")
        if room.pictures + pictures > room.most_pictures or room.memory + memory > room.most_memory:
            raise RequestError(429, "the server is busy; come back in a moment", {"Retry-After": "1"})
        room.pictures += pictures
        room.memory += memory
        self.pictures += pictures
        self.memory += memory


class Room:
    """What is accepted and not yet answered, in pictures and in bytes; used from the event loop only."""

    def __init__(self, pictures: int, memory: int):
        self.most_pictures, self.most_memory = pictures, memory
        self.pictures = 0
        self.memory = 0

    @contextmanager
    def stay(self) -> Iterator[Stay]:
        """Take within; all of it is given back at the end."""
        taken = Stay(self)
        try:
            yield taken
        finally:
            self.pictures -= taken.pictures
            self.memory -= taken.memory
