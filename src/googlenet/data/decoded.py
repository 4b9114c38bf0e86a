"""Decoded images of different sizes in one block of memory, which worker processes share."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class DecodedImages(NamedTuple):
    """Images uint8 (h, w, c), one after another in `pixels`: image i of `shape[i]` starts at `start[i]`."""

    pixels: Tensor
    start: NDArray[np.int64]
    shape: NDArray[np.int32]

    @classmethod
    def from_images(cls, images: Sequence[Tensor]) -> "DecodedImages":
        """Copy images uint8 (c, h, w)."""
        shape = np.array([(*image.shape[1:], image.shape[0]) for image in images], np.int32).reshape(-1, 3)
        sizes = shape.astype(np.int64).prod(1)
        start = np.cumsum(sizes) - sizes
        pixels = torch.empty(int(sizes.sum()), dtype=torch.uint8)
        for image, begin, size in zip(images, start.tolist(), sizes.tolist(), strict=True):
            pixels[begin : begin + size] = image.permute(1, 2, 0).reshape(-1)
        return cls(pixels, start, shape)

    def select(self, indices: NDArray[Any] | slice) -> "DecodedImages":
        """Return the images of a slice, with these indices, or where a bool mask is true; the pixels are shared."""
        return DecodedImages(self.pixels, self.start[indices], self.shape[indices])

    def concatenate(self, other: "DecodedImages") -> "DecodedImages":
        """Return these images, followed by those of `other`."""
        start = np.concatenate((self.start, other.start + len(self.pixels)))
        return DecodedImages(torch.cat((self.pixels, other.pixels)), start, np.concatenate((self.shape, other.shape)))

    def read(self, index: int) -> Tensor:
        """Return an image without a copy: uint8 (c, h, w)."""
        height, width, channels = self.shape[index].tolist()
        begin = int(self.start[index])
        pixels = self.pixels[begin : begin + height * width * channels]
        return pixels.view(height, width, channels).permute(2, 0, 1)
