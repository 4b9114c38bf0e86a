"""Decode and resize uploaded images, and draw class activation maps as PNG images."""

import base64
import io
import time
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import numpy as np
import torch
from PIL import Image
from starlette.exceptions import HTTPException
from torch import Tensor

from ..data.decode import (
    ARRAY_MODE,
    FULL_SIZE,
    DecodeLimits,
    ImageError,
    ImageTooLargeError,
    decode_image,
    decoded_size,
    to_display,
    to_tensor,
)
from ..data.decode import decode_pixels as decode_file
from ..data.preprocess import Preprocess
from ..evaluation.predictor import round_to_uint8
from .schemas import UploadedImage

# Pillow reads more formats, some through external programs such as Ghostscript. Untrusted files must not reach those.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000", "NPY")

# Bytes per pixel that decoding and resizing need at most, by Pillow's mode (measured: 5 to 9; 7 to 17).
BYTES_PER_PIXEL, MAX_BYTES_PER_PIXEL = {"1": 10, "L": 10, "P": 10}, 18
BYTES_PER_VALUE = 21  # of an image of other channels: 8 in the file at most, two float32 copies, uint8 and resized

MIN_SIDE = 448  # smaller inputs are enlarged by an integer factor to at least this many pixels
MAX_OPACITY = 0.75  # of the heatmap at its maximum


class DecodedImage(NamedTuple):
    """Pixels 0..255 (1, channels, size, size) for each size, the preprocessing in words, and the time in s."""

    pixels: list[Tensor]
    preprocessing: str
    seconds: float


def decode_upload(
    image: UploadedImage, preprocess: Preprocess, sizes: Sequence[int], max_pixels: int, rounded: bool
) -> DecodedImage:
    """Decode an image file and resize it to each size, to float, or `rounded` to uint8.

    Raises HTTPException: 413 if the image has more than `max_pixels` pixels, 422 if it cannot be decoded.
    """
    start = time.perf_counter()
    try:
        decoded = decode_file(
            image.data, preprocess.channels, image.name, preprocess.min_decode_size(max(sizes)),
            limits=DecodeLimits(max_pixels, FORMATS), max_value=preprocess.max_value,
        )  # fmt: skip
        resized = [preprocess.from_decoded(decoded, size) for size in sizes]
    except ImageError as error:
        _reject(error)
    pixels = [round_to_uint8(pixels) if rounded else pixels for pixels, _ in resized]
    return DecodedImage(pixels, resized[0][1], time.perf_counter() - start)


class DecodedPixels(NamedTuple):
    """Pixels uint8 (channels, h, w), the height and width of the upright image in the file, and the time in s."""

    pixels: Tensor
    full_size: tuple[int, int]
    seconds: float


def decode_pixels(image: UploadedImage, preprocess: Preprocess, min_size: int | None, max_pixels: int) -> DecodedPixels:
    """Decode an image file for a detector; a JPEG may be reduced as by `decode_image`. Raises as `decode_upload`."""
    start = time.perf_counter()
    try:
        decoded = decode_image(
            image.data, image.name, min_size, max_pixels=max_pixels, formats=FORMATS, max_value=preprocess.max_value
        )
        pixels = to_tensor(decoded, preprocess.channels)
    except ImageError as error:
        _reject(error)
    width, height = decoded.info.get(FULL_SIZE, decoded.size)
    return DecodedPixels(pixels, (height, width), time.perf_counter() - start)


class ImageHeader(NamedTuple):
    """Width, height and Pillow's mode of the pixels that will be decoded."""

    width: int
    height: int
    mode: str

    @property
    def decode_memory(self) -> int:
        """An upper bound of the bytes that decoding and resizing need."""
        if self.mode.startswith(ARRAY_MODE):
            return self.width * self.height * BYTES_PER_VALUE * int(self.mode.removeprefix(ARRAY_MODE))
        return self.width * self.height * BYTES_PER_PIXEL.get(self.mode, MAX_BYTES_PER_PIXEL)


def read_header(image: UploadedImage, min_size: int | None, max_pixels: int) -> ImageHeader:
    """Read the header of an image file that is decoded with `min_size`. Raises the exceptions of `decode_upload`."""
    try:
        return ImageHeader(*decoded_size(image.data, image.name, min_size, max_pixels, FORMATS))
    except ImageError as error:
        _reject(error)


def _reject(error: ImageError) -> NoReturn:
    raise HTTPException(413 if isinstance(error, ImageTooLargeError) else 422, str(error)) from None


def heatmap_memory(size: int) -> int:
    """An upper bound of the bytes of the images that `draw_heatmap` returns for an input of `size` pixels.

    A PNG image that cannot be compressed has the size of its pixels: 10 bytes for the three images, in base64.
    """
    return _display_size(size) ** 2 * 10 * 4 // 3


def _display_size(size: int) -> int:
    return size * max(1, -(-MIN_SIDE // size))


def draw_heatmap(pixels: Tensor, values: Tensor) -> dict[str, str]:
    """Draw a class activation map (h', w') over the network's input, 0..255, (channels, h, w).

    Returns data URLs of PNG images of equal size: ``image``, the input; ``heatmap``, the map, from transparent at its
    minimum to opaque at its maximum (a constant map is transparent); ``overlay``, the map over the input.
    """
    height, width = pixels.shape[-2:]
    factor = _display_size(max(height, width)) // max(height, width)
    size = (width * factor, height * factor)
    image = to_display(pixels.round().clamp(0, 255).to(torch.uint8)).convert("RGB")
    image = image.resize(size, Image.Resampling.NEAREST)
    heatmap = _colorize(values, size)
    overlay = Image.alpha_composite(image.convert("RGBA"), heatmap).convert("RGB")
    return {"image": _to_data_url(image), "heatmap": _to_data_url(heatmap), "overlay": _to_data_url(overlay)}


def _to_data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _colorize(values: Tensor, size: tuple[int, int]) -> Image.Image:
    from matplotlib import colormaps

    low, high = float(values.min()), float(values.max())
    scaled = Image.fromarray(((values - low) / max(high - low, 1e-12)).float().numpy())
    resized = np.asarray(scaled.resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    colors = (colormaps["inferno"](resized) * 255).astype(np.uint8)
    colors[..., 3] = (resized * MAX_OPACITY * 255).astype(np.uint8)
    return Image.fromarray(colors)
