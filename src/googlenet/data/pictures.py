"""Picture files -> uint8 tensors: every format and mode that Pillow reads, in one place.

The rest of the package sees grey or RGB only. What a file had more than that (transparency, a palette, 16
bits, a camera's rotation) is resolved here, the same way in training and in prediction.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

# A picture above this is refused before it is decoded: a few kilobytes of PNG can ask for gigabytes.
MAX_PIXELS = 100_000_000

JPEG = (".jpg", ".jpeg", ".jpe", ".jfif", ".jp2")
OTHERS = (".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".tga", ".ico", ".ppm", ".pgm", ".pbm", ".pnm")
SUFFIXES = frozenset((*JPEG, *OTHERS))

ORIENTATION = 0x0112  # the EXIF tag


class PictureError(ValueError):
    """A picture that cannot be used; the message names the file and the reason."""


class BombError(PictureError):
    """A picture of more pixels than are allowed; it was not decoded."""


class Pixels(NamedTuple):
    """A decoded picture: `values` uint8 (channels, h, w), and whether the file was `grey`."""

    values: Tensor
    grey: bool


def read_picture(
    source: Path | bytes,
    name: str | None = None,
    least: int | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] | None = None,
) -> Image.Image:
    """Decode a file, or its bytes, to a Pillow image of mode ``L`` (grey) or ``RGB``.

    Applies the EXIF orientation, lays transparency over white, scales 16-bit grey to 8 bits, takes the first
    frame of an animation. With `least`, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, which is quicker, as
    long as no side falls under so many pixels. `formats` are Pillow's names of those that may be read (unset: all).
    Raises PictureError for what is missing, not a picture, damaged, or larger than `max_pixels`: BombError then, and
    before anything is decoded.
    """
    label = name or (str(source) if isinstance(source, Path) else "the picture")
    with _opened(source, label, max_pixels, formats) as picture:
        if least is not None:
            picture.draft(None, (least, least))
        return _loaded(picture)


def read_pixels(data: bytes, channels: int, name: str, least: int) -> Pixels:
    """The bytes of a file -> its pixels, as `read_picture` with `least` decodes it, for 1 or 3 channels.

    A JPEG that needs nothing but decoding goes through simplejpeg where it is installed: the same pixels, sooner.
    Raises PictureError like `read_picture`.
    """
    with _opened(data, name) as picture:
        full = picture.size
        picture.draft(None, (least, least))
        plain = picture.format == "JPEG" and picture.size == full and picture.getexif().get(ORIENTATION, 1) == 1
        if simplejpeg and plain and picture.mode == ("L" if channels == 1 else "RGB"):
            with suppress(ValueError):  # Pillow tells better what is wrong.
                array = simplejpeg.decode_jpeg(data, "GRAY" if channels == 1 else "RGB")
                return Pixels(torch.from_numpy(array).permute(2, 0, 1), channels == 1)
        loaded = _loaded(picture)
        return Pixels(to_tensor(loaded, channels), loaded.mode == "L")


def read_bytes(path: str, start: int = 0, size: int | None = None) -> bytes:
    """`size` bytes of a file from `start` on, or all; PictureError, naming it, where they cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(start)
            return file.read() if size is None else file.read(size)
    except OSError as error:
        raise _reason(error, path) from None


@contextmanager
def _opened(
    source: Path | bytes, label: str, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] | None = None
) -> Iterator[Image.Image]:
    """The picture with its header read; PictureError for whatever goes wrong with it from then on."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats) as opened:
                _refuse_bomb(opened, label, max_pixels)
                yield opened
    except PictureError:
        raise
    # Pillow's decoders raise many kinds for a damaged file, struct.error and SyntaxError among them.
    except Exception as error:
        raise _reason(error, label, max_pixels) from error


def _loaded(opened: Image.Image) -> Image.Image:
    opened.load()
    return _grey_or_rgb(ImageOps.exif_transpose(opened))


def _reason(error: Exception, label: str, max_pixels: int = MAX_PIXELS) -> PictureError:
    known = {
        FileNotFoundError: "no such file",
        IsADirectoryError: "a folder without pictures",
        PermissionError: "no permission to read it",
        Image.DecompressionBombError: f"more than {max_pixels:,} pixels; make it smaller first",
        UnidentifiedImageError: "not a picture in a format that Pillow reads",
    }
    kind = BombError if isinstance(error, Image.DecompressionBombError) else PictureError
    return kind(f"{label}: {known.get(type(error), f'damaged picture ({error})')}")


def to_tensor(picture: Image.Image, channels: int) -> Tensor:
    """Pillow image -> uint8 (channels, height, width), for 1 (grey) or 3 (RGB) channels."""
    if channels not in (1, 3):
        raise PictureError(f"the network takes {channels} channels; a picture gives 1 (grey) or 3 (RGB)")
    array = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    return torch.from_numpy(array.reshape(*array.shape[:2], channels).copy()).permute(2, 0, 1).contiguous()


def picture_files(folder: Path) -> Iterator[Path]:
    """The picture files under `folder` by suffix, at any depth, in a fixed order, hidden ones left out."""
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in SUFFIXES and not hidden and not path.is_dir():
            yield path


def _refuse_bomb(picture: Image.Image, label: str, max_pixels: int) -> None:
    width, height = picture.size
    if width * height > max_pixels:
        raise BombError(
            f"{label}: {width}x{height} pixels are more than the {max_pixels:,} allowed; make it smaller first"
        )


def _grey_or_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in ("L", "RGB") and not picture.has_transparency_data:
        return picture
    if picture.mode.startswith("I") or picture.mode == "F":
        return _eight_bit(picture)
    if picture.mode == "1":
        return picture.convert("L")
    if picture.has_transparency_data:
        grey = picture.mode in ("L", "LA", "La")
        picture = picture.convert("RGBA")
        paper = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(paper, picture).convert("L" if grey else "RGB")
    return picture.convert("RGB")


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Deep grey to 8 bits: 16-bit integers by 257, floats in [0, 1] by 255, what already fits as it is.

    32-bit integers are taken for 16-bit ones where any is above 255; brighter than 65,535 is white.
    """
    values = np.asarray(picture).astype(np.float64)
    top = float(np.nanmax(values, initial=0.0))
    if picture.mode == "F":
        scale = 255.0 if top <= 1.0 else 1.0
    else:
        scale = 1.0 / 257.0 if picture.mode != "I" or top > 255 else 1.0
    return Image.fromarray(np.clip(np.rint(np.nan_to_num(values) * scale), 0, 255).astype(np.uint8))
