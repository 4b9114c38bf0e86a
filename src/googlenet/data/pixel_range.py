"""Images with more than 8 bits per channel ("deep"): the value that is white, and the conversion to 8 bits.

White is, in this order: an explicit value (`data.max_value`, or the one that was determined for a data set); the value
that the file declares; the smallest of 255, 1023, 4095 and 65535 (for floats also 1) that holds the maximum.
"""

import io
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffTags

from .array_image import ArrayImage

BIT_DEPTH_MAXIMA = (255.0, 1023.0, 4095.0, 65535.0)
FULL = 65535.0
# Pillow keeps the upper byte of these layouts; the other byte order gives the lower one.
DEEP_COLORS = ("RGB;16", "RGBX;16", "RGBA;16")
_OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_TAGS = {tag.name: number for number, tag in TiffTags.TAGS_V2.items()}


class DeepPixels(NamedTuple):
    """Values float32 (h, w), or (h, w, 2, 3 or 4) of gray and alpha, RGB or RGBA, in the units of the file.

    `declared` is the value of white that the file declares, `is_float` the type of its values, `inverted` whether zero
    is white, and `fixed` whether Pillow has scaled the values, so that no other value can be white.
    """

    values: NDArray[np.float32]
    declared: float | None = None
    is_float: bool = False
    inverted: bool = False
    fixed: bool = False

    @property
    def maximum(self) -> float:
        """Return the largest finite value of the colors, 0 or more."""
        colors = self.values[..., :1] if self.values.ndim == 3 and self.values.shape[-1] == 2 else self.values
        colors = colors[..., :3] if colors.ndim == 3 else colors
        return float(np.max(colors, initial=0.0, where=np.isfinite(colors)))


def white_value(maximum: float, is_float: bool) -> float:
    """Return the smallest bit depth's largest value that holds `maximum`; 1 for floats of at most 1."""
    if is_float and maximum <= 1.0:
        return 1.0
    fitting = (value for value in BIT_DEPTH_MAXIMA if maximum <= value)
    return next(fitting, 2.0 ** np.ceil(np.log2(maximum + 1)) - 1)


def is_deep(image: Image.Image) -> bool:
    """Return whether an opened or created image has more than 8 bits per channel that Pillow gives access to."""
    if isinstance(image, ArrayImage):
        return True
    return image.mode == "F" or image.mode.startswith("I") or _raw_mode(image).startswith((*DEEP_COLORS, "LA;16B"))


def read_deep(image: Any) -> DeepPixels:
    """Load the pixels of an image for which `is_deep` is true, with all of their bits.

    The values of more than three channels have the shape (h, w * channels).
    """
    if isinstance(image, ArrayImage):
        values = image.values().astype(np.float32)
        values = values if image.num_channels == 3 else values.reshape(image.height, -1)
        is_8bit = image.dtype == np.uint8
        return DeepPixels(values, 255.0 if is_8bit else None, image.dtype.kind == "f", fixed=is_8bit)
    raw, tags, declared, scale, fixed = _raw_mode(image), _tiff_tags(image), None, 1.0, False
    inverted = tags.get(_TAGS["PhotometricInterpretation"]) == 0 and image.mode.startswith("I;16")
    bits = _significant_bits(image) if image.format == "PNG" else 16
    if image.format == "TIFF":
        declared = _declared_by_tiff(tags)
    elif image.format == "PPM" and image.mode == "I" and image.tile and image.tile[0][0].startswith("ppm"):
        maxval = float(image.tile[0][3][1])  # (raw mode, maxval)
        declared, scale = (maxval if maxval < FULL else None), maxval / FULL  # Pillow has scaled them to 16 bits.
    elif image.format == "JPEG2000":
        declared, fixed = FULL, True
    if raw == "LA;16B":
        image.tile = [(*tile[:3], "RGBA") for tile in image.tile]  # two bytes per value
        pairs = np.asarray(image).astype(np.float32)
        values = pairs[..., ::2] * 256 + pairs[..., 1::2]
    elif image.mode in ("RGB", "RGBA"):
        with _reopened(image) as lower:
            lower.tile = [(*tile[:3], _swap_bytes(tile[3])) for tile in lower.tile]
            values = np.asarray(image).astype(np.float32)
            values *= 256
            values += np.asarray(lower)
    else:
        values = np.array(image, np.float32)
        values = np.rint(values * scale) if scale != 1.0 else values
    if bits < 16:
        declared = FULL if _fills_16_bits(values, bits) else 2.0**bits - 1
    return DeepPixels(values, declared, image.mode == "F", inverted, fixed)


def to_8bit(pixels: DeepPixels, max_value: float | None = None) -> Image.Image:
    """Scale deep pixels to 8 bits: 0 to 0 and white to 255. Values outside are clipped, and NaN becomes 0.

    White is `max_value` if given, else what the file declares, else `white_value` of the image. Returns mode L, LA, RGB
    or RGBA.
    """
    white = None if pixels.fixed else max_value
    white = white or pixels.declared or white_value(pixels.maximum, pixels.is_float)
    values = pixels.values
    scales = np.full(values.shape[-1] if values.ndim == 3 else 1, 255 / white, np.float32)
    if values.ndim == 3 and values.shape[-1] in (2, 4):
        scales[-1] = 255 / FULL  # alpha
    scaled = np.nan_to_num(values * scales, copy=False, nan=0.0)
    np.clip(np.rint(scaled, out=scaled), 0, 255, out=scaled)
    if pixels.inverted:
        np.subtract(255, scaled, out=scaled)
    modes = {2: "LA", 3: "RGB", 4: "RGBA"}
    return Image.fromarray(scaled.astype(np.uint8), modes[values.shape[-1]] if values.ndim == 3 else "L")


def to_8bit_array(values: NDArray[Any], max_value: float) -> NDArray[np.uint8]:
    """Scale numbers to uint8: 0 to 0 and `max_value` to 255. Values outside are clipped, and NaN becomes 0."""
    if values.dtype == np.uint8 and max_value == 255:
        return values
    out = np.empty(values.shape, np.uint8)
    for index in range(len(values)):  # one at a time: a float copy of all needs four times the memory
        scaled = np.nan_to_num(values[index].astype(np.float32) * np.float32(255 / max_value), nan=0.0)
        out[index] = np.clip(np.rint(scaled), 0, 255)
    return out


def white_of(values: NDArray[Any]) -> float:
    """Return the value that is white in an array of numbers, as in images with more than 8 bits; see `pixel_range`."""
    if values.dtype == np.uint8 or not values.size:
        return 255.0
    is_float = values.dtype.kind == "f"
    finite = values[np.isfinite(values)] if is_float else values
    return white_value(float(finite.max(initial=0)), is_float)


def _raw_mode(image: Image.Image) -> str:
    """Return the layout in the file of an image that is not loaded yet; otherwise ""."""
    tiles = getattr(image, "tile", None)
    args: Any = tiles[0][3] if tiles else ""
    return str(args if isinstance(args, str) else args[0] if args else "")


def _swap_bytes(args: Any) -> Any:
    if isinstance(args, str):
        return args[:-1] + _OTHER_BYTE[args[-1]]
    return (_swap_bytes(args[0]), *args[1:])


@contextmanager
def _reopened(image: Any) -> Iterator[Any]:
    """Open the file of an image again, which is not loaded yet."""
    file = image.fp
    position = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(position)
    with Image.open(io.BytesIO(content), formats=(str(image.format),)) as other:
        yield other


def _tiff_tags(image: Image.Image) -> Any:
    return getattr(image, "tag_v2", {})


def _declared_by_tiff(tags: Any) -> float | None:
    """Return SMaxSampleValue, or the maximum of a number of bits that is not that of a container."""
    declared, bits = tags.get(_TAGS["SMaxSampleValue"]), tags.get(_TAGS["BitsPerSample"], (16,))
    if declared:
        return float(np.max(declared)) or None
    return None if bits[0] % 8 == 0 else 2.0 ** bits[0] - 1


def _significant_bits(image: Any) -> int:
    """Return the significant bits of a PNG file's first channel (chunk sBIT), or 16."""
    file = image.fp
    position, bits = file.tell(), 16
    file.seek(8)
    while len(header := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", header)
        if name == b"sBIT" and length:
            bits = file.read(1)[0]
        if name in (b"sBIT", b"IDAT", b"IEND"):
            break
        file.seek(length + 4, io.SEEK_CUR)
    file.seek(position)
    return bits if 8 < bits < 16 else 16


def _fills_16_bits(values: NDArray[np.float32], bits: int) -> bool:
    """Return whether values of `bits` bits are scaled to 16 bits: filled up with zeros, or by repeating the first bits.

    The PNG specification requires this, but cameras write the values as they are.
    """
    integers = values.astype(np.uint16)
    rest = integers & ((1 << (16 - bits)) - 1)
    return bool(integers.max() >= 1 << bits or not rest.any() or np.array_equal(rest, integers >> bits))
