"""Decoding of image files to gray or RGB uint8 pixels, in every format and mode that Pillow reads.

Transparency, palettes, 16-bit values and EXIF orientation are resolved in the same way for training and prediction.
"""

import io
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base
from torch import Tensor

from ..files import HEAD_BYTES, describe_placeholder
from .array_image import NPY_MAGIC, TIFF_MAGIC, ArrayImage, ChannelsError, open_npy, open_tiff
from .pixel_range import DeepPixels, is_deep, read_deep, to_8bit, to_8bit_array, white_of

try:
    import simplejpeg
except ImportError:
    simplejpeg = None
try:
    import pillow_heif
except ImportError:  # not installed, or its library cannot be loaded
    READS_HEIF = False
else:
    READS_HEIF = True
    pillow_heif.register_heif_opener()

MAX_PIXELS = 100_000_000  # larger images are not decoded: a few kilobytes of PNG can decode to gigabytes
# Raster formats that Pillow decodes by itself: not those that run an interpreter (EPS, PDF) or that it only displays.
SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".png", ".apng", ".webp",
    ".avif", ".avifs", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".tga", ".icb", ".vda", ".vst", ".ico", ".cur", ".icns",
    ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".pcx", ".dcx", ".dds", ".sgi", ".rgb", ".rgba", ".bw", ".xbm", ".xpm",
    ".qoi", ".psd", ".ras", ".msp", ".blp", ".npy",
    *((".heic", ".heif", ".hif") if READS_HEIF else ()),
))  # fmt: skip
# What makes an image with an EXIF orientation upright.
TRANSPOSE_METHODS: dict[Any, Image.Transpose] = dict(enumerate(
    (
        Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM,
        Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90,
    ),
    start=2,
))  # fmt: skip
SWAPPING_METHODS = [TRANSPOSE_METHODS[orientation] for orientation in range(5, 9)]  # These swap width and height.
FULL_SIZE = "full_size"
ARRAY_MODE = "channels:"
GRAY_MODES = ("1", "L", "LA", "La", "F")  # and those that start with I
HEIF_ADVICE = "HEIF image: convert it to JPEG or PNG, or pip install 'googlenet[heif]'"
HEIF_HEADER = re.compile(rb"....ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)", re.DOTALL)
PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

# Pixels that are composited at a time.
COMPOSITE_PIXELS = 1 << 19


class ImageError(ValueError):
    """An unusable image; the message contains the file and the reason."""


class ImageTooLargeError(ImageError):
    """An image with more pixels than allowed; it was not decoded."""


class DecodedImage(NamedTuple):
    """Upright pixels uint8 (channels, h, w), the number of channels in the file, and its width and height."""

    pixels: Tensor
    source_channels: int
    full_size: tuple[int, int]


class DecodeLimits(NamedTuple):
    """What is not decoded: images of more than `max_pixels`, and of other `formats` than these (None: all)."""

    max_pixels: int = MAX_PIXELS
    formats: tuple[str, ...] | None = None


DEFAULT_LIMITS = DecodeLimits()


def decode_pixels(
    source: Path | bytes,
    channels: int,
    name: str | None = None,
    min_size: int | None = None,
    *,
    limits: DecodeLimits = DEFAULT_LIMITS,
    max_value: float | None = None,
) -> DecodedImage:
    """Decode a file, or its bytes, for a network of `channels`: like `decode_image` to 1 (gray) or 3 (RGB).

    For other numbers, the file must have as many channels: values of .npy files, samples or pages of TIFF files, or
    the color and alpha channels of other formats as they are. Raises the exceptions of `decode_image`.
    """
    max_pixels, formats = limits
    if channels in (1, 3):
        image = decode_image(source, name, min_size, max_pixels=max_pixels, formats=formats, max_value=max_value)
        return from_pil(image, channels)
    label = name or (str(source) if isinstance(source, Path) else "the image")
    with open_image(source, label, max_pixels, formats) as image:
        native = _native_channels(image, source)
        found = native.num_channels if isinstance(native, ArrayImage) else len(native.getbands())
        if found != channels:  # before anything is decoded
            raise ImageError(f"{label}: {found} channels, and the network takes {channels}")
        values = native.values() if isinstance(native, ArrayImage) else np.array(native)
        white = 255.0 if values.dtype == np.uint8 else max_value or white_of(values)
        pixels = torch.from_numpy(to_8bit_array(values, white)).permute(2, 0, 1).contiguous()
    return DecodedImage(pixels, channels, (pixels.shape[2], pixels.shape[1]))


def from_pil(image: Image.Image, channels: int) -> DecodedImage:
    """Convert an image of `decode_image` to 1 or 3 channels."""
    size = image.info.get(FULL_SIZE, image.size)
    return DecodedImage(to_tensor(image, channels), 1 if image.mode == "L" else 3, size)


def _native_channels(image: Image.Image, source: Path | bytes) -> Image.Image:
    """Return an opened image whose channels are those of the file, upright; a palette becomes RGBA."""
    if isinstance(image, ArrayImage):
        return image
    if image.format == "TIFF":
        return open_tiff(io.BytesIO(source.read_bytes() if isinstance(source, Path) else source))
    upright = image if (method := transpose_method(image)) is None else image.transpose(method)
    return upright.convert("RGBA") if image.mode in ("P", "PA") else upright


def decode_image(
    source: Path | bytes,
    name: str | None = None,
    min_size: int | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] | None = None,
    max_value: float | None = None,
) -> Image.Image:
    """Decode a file, or its bytes, to a Pillow image of mode ``L`` (gray) or ``RGB``.

    The EXIF orientation is applied, transparency is composited over white, more than 8 bits per channel are scaled to 8
    bits (see `pixel_range`; `max_value` is white), and an animation becomes its first frame. `name` is the file's name
    in error messages. With `min_size`, a JPEG may be decoded, faster and in less memory, at 1/2, 1/4 or 1/8 of its size
    if no side becomes smaller than that; see `Preprocess.min_decode_size`. `formats` are Pillow's names of the allowed
    formats; by default all. Metadata that cannot be read are ignored. ``info[FULL_SIZE]`` of a reduced image is its
    width and height in the file, upright.

    Raises ImageError if the file is missing, damaged, truncated or not an image, and ImageTooLargeError, before
    decoding, if it has more than `max_pixels` pixels.
    """
    label = name or (str(source) if isinstance(source, Path) else "the image")
    with open_image(source, label, max_pixels, formats) as image:
        if min_size is not None:
            full_size = image.size
            image.draft(None, (min_size, min_size))
            if image.size != full_size:
                image.info[FULL_SIZE] = full_size
        return _upright_gray_or_rgb(image, max_value)


def read_deep_pixels(source: Path | bytes, name: str) -> DeepPixels | None:
    """Read an image with more than 8 bits per channel; None for other images, of which only the header is read."""
    with open_image(source, name) as image:
        return read_deep(image) if is_deep(image) else None


def decode_to_tensor(
    data: bytes, channels: int | None, name: str, min_size: int, max_value: float | None = None, *, reduce: bool = False
) -> Tensor:
    """Decode the bytes of a file like `decode_pixels` with `min_size`, to uint8 (channels, h, w).

    Without `channels`, gray images have 1 and others 3. With `reduce`, images of all formats are reduced by the largest
    integer that leaves `min_size` pixels of the shorter side.
    """
    if channels not in (None, 1, 3):
        return decode_pixels(data, channels, name, max_value=max_value).pixels
    with open_image(data, name) as image:
        full_size = image.size
        image.draft(None, (min_size, min_size))
        upright = image.format == "JPEG" and image.size == full_size and transpose_method(image) is None
        # simplejpeg decodes JPEGs that need no further processing: faster, to the same pixels.
        if simplejpeg and upright and image.mode in (("L", "RGB") if channels is None else (_mode(channels),)):
            with suppress(ValueError):  # Pillow then reports a clearer error.
                array = simplejpeg.decode_jpeg(data, "GRAY" if image.mode == "L" else "RGB")
                return torch.from_numpy(array).permute(2, 0, 1)
        decoded = _upright_gray_or_rgb(image, max_value)
        if reduce and (factor := min(decoded.size) // min_size) > 1:
            decoded = decoded.reduce(factor)
        mode = decoded.mode if channels is None else _mode(channels)
        array = np.array(decoded if decoded.mode == mode else decoded.convert(mode))
        return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)


def decoded_size(
    source: Path | bytes,
    name: str,
    min_size: int | None,
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] | None = None,
) -> tuple[int, int, str]:
    """Return width, height and Pillow's mode of the pixels that `decode_image` decodes, from the file's header.

    The mode of an `ArrayImage` is `ARRAY_MODE` and its number of channels.
    Raises the exceptions of `decode_image`.
    """
    with open_image(source, name, max_pixels, formats) as image:
        if min_size is not None:
            image.draft(None, (min_size, min_size))
        mode = f"{ARRAY_MODE}{image.num_channels}" if isinstance(image, ArrayImage) else image.mode
        return image.width, image.height, mode


def is_gray(source: Path | bytes, name: str) -> bool:
    """Return whether `decode_image` decodes a file to gray, from its header; raises the exceptions of `open_image`."""
    with open_image(source, name) as image:
        check_gray_or_rgb(image)
        return image.mode in GRAY_MODES or image.mode.startswith("I")


@contextmanager
def open_image(
    source: Path | bytes, label: str, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] | None = None
) -> Iterator[Image.Image]:
    """Read an image's header; errors inside the context become ImageError with the `label`; see `decode_image`."""
    # Pillow's warnings (about metadata, such as EXIF) do not contain the file. `catch_warnings` is not thread-safe.
    if warnings.filters[:1] != [PILLOW_WARNINGS]:
        warnings.filterwarnings("ignore", module=PILLOW_WARNINGS[3].pattern)
    head = b""
    try:
        # Not by path: Pillow then maps uncompressed TIFF files to memory, with the sides of rotated ones swapped.
        file = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
        # Peeking does not seek, which a pipe does not support.
        head = file.getvalue() if isinstance(file, io.BytesIO) else file.peek(HEAD_BYTES)
        with file, _identify(file, head, formats) as image:
            width, height = image.size
            # An image of many channels has as many values as one of more pixels.
            values = width * height * (max(1, image.num_channels // 4) if isinstance(image, ArrayImage) else 1)
            if values > max_pixels:
                raise ImageTooLargeError(
                    f"{label}: {width}x{height} pixels are more than the {max_pixels:,} allowed; resize it first"
                )
            yield image
    except ImageError:
        raise
    except ChannelsError as error:
        raise ImageError(f"{label}: {error}") from None
    # For a damaged file, Pillow's decoders raise many types, such as struct.error and SyntaxError.
    except Exception as error:
        raise image_error(error, label, max_pixels, head) from error


def _identify(file: BinaryIO, head: bytes, formats: tuple[str, ...] | None) -> Image.Image:
    """Open an image without decoding it, and a PNG whose metadata Pillow rejects for their size without these.

    Files that Pillow cannot open are opened as `ArrayImage` if they are arrays or TIFF files with many channels.
    """
    if head.startswith(NPY_MAGIC) and (formats is None or "NPY" in formats):
        return open_npy(file)
    formats = None if formats is None else tuple(name for name in formats if name != "NPY")  # unknown to Pillow
    try:
        return Image.open(file, formats=formats)
    except UnidentifiedImageError:
        if head[:4] not in TIFF_MAGIC or (formats is not None and "TIFF" not in formats):
            raise
        file.seek(0)
        try:
            return open_tiff(file)
        except ChannelsError:
            raise
        except Exception:  # tifffile's parser raises many types for a damaged file
            error = UnidentifiedImageError()
        raise error from None
    except ValueError as error:
        if "decompressed data too large" not in str(error).lower():
            raise
        file.seek(0)
        return Image.open(io.BytesIO(_strip_png_metadata(file.read())), formats=formats)


def _strip_png_metadata(data: bytes) -> bytes:
    """Remove the texts and the color profile of a PNG."""
    kept, start = [data[:8]], 8  # the signature
    while start < len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if data[start + 4 : start + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(data[start:end])
        start = end
    return b"".join(kept)


def image_error(error: Exception, label: str, max_pixels: int = MAX_PIXELS, head: bytes = b"?") -> ImageError:
    """Convert an error of reading or decoding the file `label`, which starts with the bytes `head`."""
    known = {
        FileNotFoundError: "no such file",
        IsADirectoryError: "a folder without images",
        PermissionError: "permission denied",
        Image.DecompressionBombError: f"its pixels are more than the {max_pixels:,} allowed; resize it first",
        UnidentifiedImageError: describe_placeholder(head)
        or (
            HEIF_ADVICE if not READS_HEIF and HEIF_HEADER.match(head) else "not an image in a format that Pillow reads"
        ),
    }
    # Pillow's own OSErrors have no number: those that have one come from the file system.
    failed = isinstance(error, OSError) and error.errno
    reason = f"cannot be read ({error.strerror})" if failed else f"damaged image ({error})"  # type: ignore[attr-defined]
    kind = ImageTooLargeError if isinstance(error, Image.DecompressionBombError) else ImageError
    return kind(f"{label}: {known.get(type(error), reason)}")


def to_tensor(image: Image.Image, channels: int) -> Tensor:
    """Convert a Pillow image to uint8 (channels, height, width), for 1 (gray) or 3 (RGB) channels."""
    mode = _mode(channels)
    array = np.array(image if image.mode == mode else image.convert(mode))
    return torch.from_numpy(array.reshape(*array.shape[:2], channels)).permute(2, 0, 1).contiguous()


def _mode(channels: int) -> str:
    if channels not in (1, 3):
        raise ImageError(f"the network takes {channels} channels; an image gives 1 (gray) or 3 (RGB)")
    return "L" if channels == 1 else "RGB"


def to_display(pixels: Tensor) -> Image.Image:
    """Convert uint8 (channels, h, w) to an image to look at: the first of 2 channels, the first three of more."""
    shown = pixels[: 3 if len(pixels) >= 3 else 1].permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(shown[..., 0] if shown.shape[-1] == 1 else np.ascontiguousarray(shown))


def printable(path: Path | str) -> str:
    """Return a file name as one line of valid text, with undecodable bytes and control characters escaped."""
    text = os.fsencode(path).decode(errors="backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda match: match[0].encode("unicode_escape").decode(), text)


def check_gray_or_rgb(image: Image.Image) -> None:
    """Raise ChannelsError for an opened image of other than 1 or 3 channels that is not converted to these."""
    if isinstance(image, ArrayImage) and image.num_channels not in (1, 3):
        raise ChannelsError(f"{image.num_channels} channels: set data.channels to {image.num_channels}")


def to_gray_or_rgb(image: Image.Image, max_value: float | None = None) -> Image.Image:
    """Convert an image of any mode to mode ``L`` or ``RGB``, without its orientation; see `decode_image`."""
    check_gray_or_rgb(image)
    if is_deep(image):
        image = to_8bit(read_deep(image), max_value)
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.mode != "1" and image.has_transparency_data:
        return _over_white(image, mode)
    return image if image.mode == mode else image.convert(mode)


def _over_white(image: Image.Image, mode: str) -> Image.Image:
    """Composite a transparent image over white, some rows at a time.

    Of the whole image this would need two more copies with four channels, and stop all other threads meanwhile.
    """
    out, step = Image.new(mode, image.size), max(1, COMPOSITE_PIXELS // image.width)
    for top in range(0, image.height, step):
        rows = image.crop((0, top, image.width, min(top + step, image.height))).convert("RGBA")
        out.paste(Image.alpha_composite(Image.new("RGBA", rows.size, "white"), rows).convert(mode), (0, top))
    out.info = image.info.copy()
    return out


def _upright_gray_or_rgb(image: Image.Image, max_value: float | None) -> Image.Image:
    """Load an opened image, convert it to mode ``L`` or ``RGB``, and apply its orientation."""
    converted = to_gray_or_rgb(image, max_value)
    image.load()
    # Of some formats, Pillow applies the orientation when it loads the pixels, and then removes the tag.
    method = transpose_method(image)
    if method is None:
        return converted
    if FULL_SIZE in converted.info and method in SWAPPING_METHODS:
        converted.info[FULL_SIZE] = converted.info[FULL_SIZE][::-1]
    return converted.transpose(method)


def transpose_method(image: Image.Image) -> Image.Transpose | None:
    """Return how to make an image upright by its EXIF orientation; None if it is, or if the tag cannot be read."""
    # Damaged EXIF blocks make Pillow raise many types. The pixels are intact.
    with suppress(Exception):
        return TRANSPOSE_METHODS.get(image.getexif().get(Base.Orientation))
    return None
