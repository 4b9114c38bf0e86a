"""Preprocessing from uint8 pixels to the network's input; a value that is saved with the weights.

A model never normalizes its input, so normalization cannot be applied twice.
"""

import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .decode import DecodedImage, from_pil, to_gray_or_rgb

CropMode = Literal["center", "squash"]
Interpolation = Literal["bilinear", "bicubic"]
COLOR_NAMES = {1: "gray", 3: "RGB"}
MARGIN = 4  # An image that is reduced first, and then resized, is this many times larger than the result.
LARGE = 2**22  # pixels of an image: a float copy of larger ones is avoided
RANGE_ADVICE = "name the value that is white: max_value=1.0 for floats in 0..1, or 65535 for 16 bits"


@dataclass(frozen=True)
class Preprocess:
    """Crop, resize, and normalize to (x / 255 - mean) / std per channel.

    `mean` and `std` of the `channels` (1: gray, 3: RGB) are fractions of the pixel range. `crop_mode` makes an image
    square: center (crop) or squash (resize without keeping the aspect ratio). `crop_pct` is the side of the crop as a
    fraction of the image's shorter side, in (0, 1]. `interpolation` is antialiased when it shrinks. `max_value` is the
    value that is white in images of more than 8 bits per channel; None: that of each image, see `pixel_range`.
    """

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_mode: CropMode = "center"
    crop_pct: float = 1.0
    interpolation: Interpolation = "bilinear"
    max_value: float | None = None

    def __post_init__(self) -> None:
        if self.size < 1 or self.channels < 1:
            raise ValueError(f"size and channels must be 1 or more, not {self.size} and {self.channels}")
        if len(self.mean) != self.channels or len(self.std) != self.channels or min(self.std) <= 0:
            raise ValueError(f"mean and std need {self.channels} numbers each, std positive")
        if not 0.0 < self.crop_pct <= 1.0:
            raise ValueError(f"crop_pct must be in (0, 1], not {self.crop_pct}")
        if self.max_value is not None and not 0.0 < self.max_value < math.inf:
            raise ValueError(f"max_value must be above 0, not {self.max_value}")

    def __call__(self, images: Tensor, size: int | None = None, max_value: float | None = None) -> Tensor:
        """Preprocess (n, channels, h, w) to float32 (n, channels, size, size); `size` overrides `self.size`.

        The pixels are uint8, or of any type with the value `max_value` for white, such as 1.0 or 65535; float in 0..255
        also without. Raises ValueError for pixels of another shape or range.
        """
        check_channels(images, self.channels)
        images = self.center_crop(images)
        if max_value is None:
            check_range(images)
        else:
            images = (images.float() * (255 / max_value)).clamp_(0, 255)
        return self.normalize(self.resize(images, self.size if size is None else size))

    def min_decode_size(self, size: int | None = None) -> int:
        """Return the `min_size` of `decode_image` for this preprocessing, at `size` or `self.size`.

        It is `MARGIN` times what is needed. The pixels of photographs differ by less than 0.5 of 255 on average from a
        full decode, and by less than 3.5 with colored patterns of high contrast.
        """
        return math.ceil(MARGIN * (self.size if size is None else size) / self.crop_pct)

    def center_crop(self, images: Tensor) -> Tensor:
        """Crop (n, c, h, w) to the center square; with `crop_mode` squash, return the images unchanged."""
        height, width = images.shape[-2:]
        if self.crop_mode == "squash" or (height == width and self.crop_pct == 1.0):
            return images
        side = self._crop_side(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return images[..., top : top + side, left : left + side]

    def _crop_side(self, height: int, width: int) -> int:
        return max(1, round(min(height, width) * self.crop_pct))

    def resize(self, images: Tensor, size: int | tuple[int, int]) -> Tensor:
        """Resize uint8 or float (n, c, h, w) to float in 0..255; `size` is one side, or (height, width).

        Images of more than `LARGE` pixels are first reduced to `MARGIN` times the size with integers, to save memory;
        the result differs by about 1.
        """
        check_type(images)
        height, width = (size, size) if isinstance(size, int) else size
        pixels = images.shape[-2] * images.shape[-1]
        if images.dtype == torch.uint8 and pixels > max(LARGE, MARGIN**2 * height * width):
            shape = (min(MARGIN * height, images.shape[-2]), min(MARGIN * width, images.shape[-1]))
            images = F.interpolate(images, shape, mode=self.interpolation, antialias=True)
        images = images.float()
        if images.shape[-2:] == (height, width):
            return images
        # The antialiased bicubic filter, which is Pillow's, also differs when it enlarges. The bilinear filters then
        # agree, and the plain one is faster.
        shrinks = height < images.shape[-2] or width < images.shape[-1]
        antialias = self.interpolation == "bicubic" or shrinks
        images = F.interpolate(images, (height, width), mode=self.interpolation, antialias=antialias)
        return images.clamp_(0, 255) if self.interpolation == "bicubic" else images

    def to_uint8(self, image: Tensor) -> Tensor:
        """Crop and resize uint8 (channels, h, w) to uint8 (channels, size, size), for storage.

        Integer interpolation is several times faster than float, but rounds after each direction, so the result may
        differ from `from_pil_unnormalized` by 1.
        """
        images = self.center_crop(image.unsqueeze(0))
        shape = (self.size, self.size)
        if images.shape[-2:] == shape:
            return images[0]
        return F.interpolate(images, shape, mode=self.interpolation, antialias=True)[0]

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize uint8 or float pixels (n, channels, h, w) in 0..255 to (x / 255 - mean) / std."""
        check_channels(images, self.channels)
        check_type(images)
        # A tracer's tensors have no values and must not be cached.
        moments = _pixel_moments.__wrapped__ if torch.compiler.is_compiling() else _pixel_moments
        mean, std = moments(self.mean, self.std, images.device, torch.get_default_dtype())
        return (images - mean) / std

    def from_pil(self, image: Image.Image, size: int | None = None) -> tuple[Tensor, str]:
        """Preprocess one image; return a batch of one, and a description of the steps for the user."""
        pixels, description = self.from_pil_unnormalized(image, size)
        return self.normalize(pixels), description

    def from_pil_unnormalized(self, image: Image.Image, size: int | None = None) -> tuple[Tensor, str]:
        """Preprocess like `from_pil`, without normalization: float pixels (1, channels, size, size) in 0..255."""
        return self.from_decoded(from_pil(to_gray_or_rgb(image, self.max_value), self.channels), size)

    def from_decoded(self, image: DecodedImage, size: int | None = None) -> tuple[Tensor, str]:
        """Preprocess an image of `decode_pixels` like `from_pil_unnormalized`."""
        pixels, (width, height) = image.pixels.unsqueeze(0), image.full_size
        steps = [f"{width}x{height} {COLOR_NAMES.get(image.source_channels, f'{image.source_channels} channels')}"]
        if image.source_channels != self.channels:
            steps.append("colors to gray" if self.channels == 1 else "gray repeated to 3 channels")
        cropped = self.center_crop(pixels)
        if cropped.shape != pixels.shape:
            width = height = self._crop_side(height, width)
            steps.append(f"center {width}x{height}")
        size = self.size if size is None else size
        if (height, width) != (size, size):
            steps.append(f"resized to {size}x{size}")
        return self.resize(cropped, size), ", ".join(steps)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocess":
        """Create from the values of `to_dict`; raises TypeError for an unknown key."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


def storage_size(size: int, crop_mode: CropMode, crop_pct: float) -> int:
    """Return the size at which square images are stored, of which `Preprocess.center_crop` then returns `size`."""
    return size if crop_mode == "squash" else round(size / crop_pct)


def check_channels(images: Tensor, channels: int) -> None:
    """Raise ValueError unless the shape of `images` is (n, channels, h, w), or (n, 1, h, w): gray, to be repeated."""
    if images.ndim != 4 or images.shape[1] not in (1, channels):
        raise ValueError(
            f"images must have the shape (n, {channels}, height, width), not {tuple(images.shape)}; a single image "
            "needs images.unsqueeze(0), and the channels precede height and width"
        )


def check_type(images: Tensor) -> None:
    """Raise ValueError unless `images` are uint8 or float."""
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"images must be uint8 or float in 0..255, not {images.dtype}: {RANGE_ADVICE}")


def check_range(images: Tensor) -> None:
    """Raise ValueError unless `images` are uint8, or float in 0..255 rather than 0..1."""
    check_type(images)
    if images.dtype != torch.uint8 and images.numel():
        low, high = images.aminmax()
        if not (low >= 0 and high <= 255) or 0 < high <= 1:
            raise ValueError(f"images must be uint8 or float in 0..255, not {low:g}..{high:g}: {RANGE_ADVICE}")


@lru_cache(maxsize=16)
def _pixel_moments(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation for pixels in 0..255: (1, channels, 1, 1) each, on the device."""
    with torch.inference_mode(False):  # Tensors made in inference mode cannot be used for gradients later.
        values = (torch.tensor(values, dtype=dtype).view(1, -1, 1, 1).mul_(255.0).to(device) for values in (mean, std))
        return next(values), next(values)
