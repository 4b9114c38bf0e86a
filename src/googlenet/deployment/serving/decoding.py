"""Bytes that clients sent -> pixels as a network wants them, in a few threads (Pillow decodes without the GIL)."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...data.pictures import BombError, PictureError, read_picture
from ...data.preprocess import Preprocess
from .errors import RequestError

# Pillow reads more, some of it with the help of other programs: not for strangers' files.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000")


class Decoded(NamedTuple):
    """`pixels`, float 0..255, at each size (1, channels, size, size); what was done to it; the seconds that took."""

    pixels: list[Tensor]
    did: str
    seconds: float


class Decoder:
    """A small pool of threads; `max_pixels` bounds a picture before it is decoded."""

    def __init__(self, threads: int, max_pixels: int):
        self.max_pixels = max_pixels
        # Each decodes by itself: PyTorch's resizing must not start threads of its own beside the network's.
        self._pool = ThreadPoolExecutor(threads, "decode", lambda: torch.set_num_threads(1))

    async def run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """`work` in one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    async def picture(self, data: bytes, name: str, preprocess: Preprocess, sizes: Sequence[int]) -> Decoded:
        """A file's bytes at every size. RequestError: 413 for too many pixels, 422 for what is no picture."""
        return await self.run(self._picture, data, name, preprocess, tuple(sizes))  # type: ignore[no-any-return]

    def close(self) -> None:
        """Wait for the threads to end."""
        self._pool.shutdown(wait=True)

    def _picture(self, data: bytes, name: str, preprocess: Preprocess, sizes: Sequence[int]) -> Decoded:
        started = time.perf_counter()
        try:
            picture = read_picture(data, name, max_pixels=self.max_pixels, formats=FORMATS)
            made = [preprocess.pixels(picture, size) for size in sizes]
        except PictureError as error:
            raise RequestError(413 if isinstance(error, BombError) else 422, str(error)) from None
        return Decoded([pixels for pixels, _ in made], made[0][1], time.perf_counter() - started)
