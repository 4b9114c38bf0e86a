"""From uint8 pixels to what a network takes: a value that is saved beside the weights.

Nothing of this is hidden in a model, so nobody can normalise twice.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .pictures import to_tensor
from .transfer import send

Fit = Literal["crop", "stretch"]
Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Preprocess:
    """How pictures become a batch: geometry, then (x / 255 - mean) / std per channel.

    `size` is the height and width given to the network, in pixels. `fit` says how a picture that is not
    square becomes so: ``crop`` keeps the centre square, of `crop_share` times the shorter side; ``stretch``
    changes the proportions. `mean` and `std` are in units of the full pixel range, one number per channel.
    Resizing is anti-aliased when it shrinks.
    """

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: Fit = "crop"
    crop_share: float = 1.0
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if self.size < 1 or self.channels < 1:
            raise ValueError(f"size and channels must be 1 or more, not {self.size} and {self.channels}")
        if len(self.mean) != self.channels or len(self.std) != self.channels or min(self.std) <= 0:
            raise ValueError(f"mean and std need {self.channels} numbers each, std positive")
        if not 0.0 < self.crop_share <= 1.0:
            raise ValueError(f"crop_share must be in (0, 1], not {self.crop_share}")

    def __call__(self, pixels: Tensor, size: int | None = None) -> Tensor:
        """uint8 (n, channels, h, w) -> float32 (n, channels, size, size); `size` overrides the stored one."""
        return self.normalise(self.resize(self.square(pixels), self.size if size is None else size))

    def square(self, pixels: Tensor) -> Tensor:
        """Cut the centre square, where `fit` says so; any (n, c, h, w)."""
        height, width = pixels.shape[-2:]
        if self.fit == "stretch" or (height == width and self.crop_share == 1.0):
            return pixels
        side = max(1, round(min(height, width) * self.crop_share))
        top, left = (height - side) // 2, (width - side) // 2
        return pixels[..., top : top + side, left : left + side]

    def resize(self, pixels: Tensor, size: int) -> Tensor:
        """uint8 or float (n, c, h, w) -> float (n, c, size, size), still in 0..255."""
        return self.resize_to(pixels, size, size)

    def resize_to(self, pixels: Tensor, height: int, width: int) -> Tensor:
        """uint8 or float (n, c, h, w) -> float (n, c, height, width), still in 0..255."""
        pixels = pixels.float()
        if pixels.shape[-2:] == (height, width):
            return pixels
        # Enlarging, both bilinear filters agree and the plain one is faster; the bicubic ones differ, and the
        # anti-aliased is Pillow's.
        smaller = height < pixels.shape[-2] or width < pixels.shape[-1]
        smooth = self.interpolation == "bicubic" or smaller
        pixels = F.interpolate(
            pixels, (height, width), mode=self.interpolation, align_corners=False, antialias=smooth
        )
        return pixels.clamp_(0, 255) if self.interpolation == "bicubic" else pixels

    def keep(self, pixels: Tensor) -> Tensor:
        """uint8 (channels, h, w) -> uint8 (channels, size, size): what `read` sees, rounded, within one level.

        Bytes are resized as bytes: several times quicker than through floats, rounded after each direction.
        """
        square = self.square(pixels.unsqueeze(0))
        if square.shape[-2:] == (self.size, self.size):
            return square[0]
        shape = (self.size, self.size)
        return F.interpolate(square, shape, mode=self.interpolation, align_corners=False, antialias=True)[0]

    def normalise(self, pixels: Tensor) -> Tensor:
        """Float pixels 0..255 (n, channels, h, w) -> (x / 255 - mean) / std."""
        shape = (1, self.channels, 1, 1)
        mean = send(torch.tensor(self.mean).view(shape), pixels.device)
        std = send(torch.tensor(self.std).view(shape), pixels.device)
        return (pixels - 255.0 * mean) / (255.0 * std)

    def read(self, picture: Image.Image, size: int | None = None) -> tuple[Tensor, str]:
        """One picture -> (batch of one, a sentence that says what was done to it)."""
        pixels, did = self.pixels(picture, size)
        return self.normalise(pixels), did

    def pixels(self, picture: Image.Image, size: int | None = None) -> tuple[Tensor, str]:
        """`read` before it normalises: float pixels 0..255 (1, channels, size, size), and the sentence."""
        pixels = to_tensor(picture, self.channels).unsqueeze(0)
        had = 1 if picture.mode == "L" else 3
        steps = [f"{picture.width}x{picture.height} {'grey' if had == 1 else 'RGB'}"]
        if had != self.channels:
            steps.append("colours to grey" if self.channels == 1 else "grey repeated to 3 channels")
        squared = self.square(pixels)
        if squared.shape != pixels.shape:
            steps.append(f"centre {squared.shape[-1]}x{squared.shape[-2]}")
        target = self.size if size is None else size
        if squared.shape[-2:] != (target, target):
            steps.append(f"resized to {target}x{target}")
        return self.resize(squared, target), ", ".join(steps)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocess":
        """The inverse of `to_dict`; raises TypeError for an unknown key."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})
