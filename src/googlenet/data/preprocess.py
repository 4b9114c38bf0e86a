"""Preprocessing from uint8 pixels to the network's input; a value that is saved with the weights.

A model never normalizes its input, so normalization cannot be applied twice.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .decode import to_tensor

CropMode = Literal["center", "squash"]
Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Preprocess:
    """Crop, resize, and normalize to (x / 255 - mean) / std per channel.

    `mean` and `std` of the 1 (gray) or 3 (RGB) `channels` are fractions of the pixel range. `crop_mode` makes an image
    square: center (crop) or squash (resize without keeping the aspect ratio). `crop_pct` is the side of the crop as a
    fraction of the image's shorter side, in (0, 1]. `interpolation` is antialiased when it shrinks.
    """

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_mode: CropMode = "center"
    crop_pct: float = 1.0
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if self.size < 1 or self.channels < 1:
            raise ValueError(f"size and channels must be 1 or more, not {self.size} and {self.channels}")
        if len(self.mean) != self.channels or len(self.std) != self.channels or min(self.std) <= 0:
            raise ValueError(f"mean and std need {self.channels} numbers each, std positive")
        if not 0.0 < self.crop_pct <= 1.0:
            raise ValueError(f"crop_pct must be in (0, 1], not {self.crop_pct}")

    def __call__(self, images: Tensor, size: int | None = None) -> Tensor:
        """Preprocess uint8 (n, channels, h, w) to float32 (n, channels, size, size); `size` overrides `self.size`."""
        return self.normalize(self.resize(self.center_crop(images), self.size if size is None else size))

    def center_crop(self, images: Tensor) -> Tensor:
        """Crop (n, c, h, w) to the center square; with `crop_mode` squash, return the images unchanged."""
        height, width = images.shape[-2:]
        if self.crop_mode == "squash" or (height == width and self.crop_pct == 1.0):
            return images
        side = max(1, round(min(height, width) * self.crop_pct))
        top, left = (height - side) // 2, (width - side) // 2
        return images[..., top : top + side, left : left + side]

    def resize(self, images: Tensor, size: int | tuple[int, int]) -> Tensor:
        """Resize uint8 or float (n, c, h, w) to float in 0..255; `size` is one side, or (height, width)."""
        height, width = (size, size) if isinstance(size, int) else size
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
        """Normalize float pixels (n, channels, h, w) in 0..255 to (x / 255 - mean) / std."""
        # A non-blocking copy: CUDA need not finish its queued work first.
        mean, std = (
            torch.tensor(values).view(1, self.channels, 1, 1).to(images.device, non_blocking=images.is_cuda)
            for values in (self.mean, self.std)
        )
        return (images - 255.0 * mean) / (255.0 * std)

    def from_pil(self, image: Image.Image, size: int | None = None) -> tuple[Tensor, str]:
        """Preprocess one image; return a batch of one, and a description of the steps for the user."""
        pixels, description = self.from_pil_unnormalized(image, size)
        return self.normalize(pixels), description

    def from_pil_unnormalized(self, image: Image.Image, size: int | None = None) -> tuple[Tensor, str]:
        """Preprocess like `from_pil`, without normalization: float pixels (1, channels, size, size) in 0..255."""
        pixels = to_tensor(image, self.channels).unsqueeze(0)
        source_channels = 1 if image.mode == "L" else 3
        steps = [f"{image.width}x{image.height} {'gray' if source_channels == 1 else 'RGB'}"]
        if source_channels != self.channels:
            steps.append("colors to gray" if self.channels == 1 else "gray repeated to 3 channels")
        cropped = self.center_crop(pixels)
        if cropped.shape != pixels.shape:
            steps.append(f"center {cropped.shape[-1]}x{cropped.shape[-2]}")
        size = self.size if size is None else size
        if cropped.shape[-2:] != (size, size):
            steps.append(f"resized to {size}x{size}")
        return self.resize(cropped, size), ", ".join(steps)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocess":
        """Create from the values of `to_dict`; raises TypeError for an unknown key."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})
