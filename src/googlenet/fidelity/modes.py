"""How the tools that compute FID prepare an image: one row of a table per tool.

``--like TOOL`` selects a row. The formulas of the metrics are the same in all of them: the tools differ in the image
files that they read, in resizing and in the scale of the pixels.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import nearest

# From uint8 pixels (h, w, channels) and a side in pixels to float32 (channels, side, side) in 0..255.
Resize = Callable[[np.ndarray, int], Tensor]


def resize_pil_bicubic(pixels: np.ndarray, side: int) -> Tensor:
    """Resize each channel as float with Pillow's antialiased bicubic filter, clipped and not rounded."""
    channels = [
        np.asarray(Image.fromarray(plane).resize((side, side), Image.Resampling.BICUBIC))
        for plane in np.moveaxis(pixels, 2, 0).astype(np.float32)
    ]
    return torch.from_numpy(np.stack(channels)).clamp_(0, 255)


def resize_bilinear(pixels: np.ndarray, side: int) -> Tensor:
    """Resize with PyTorch's bilinear interpolation: without antialiasing, with half-pixel centers, not rounded."""
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    return F.interpolate(images, (side, side), mode="bilinear", align_corners=False)[0]


def resize_tf1_bilinear(pixels: np.ndarray, side: int) -> Tensor:
    """Resize as TensorFlow 1 did: bilinear without antialiasing; output pixel i is at i * size / side of the input."""
    image = torch.from_numpy(pixels).permute(2, 0, 1).float()
    low, high, weight = _tf1_positions(image.shape[2], side)
    left = image[:, :, low]
    rows = left + (image[:, :, high] - left) * weight
    low, high, weight = _tf1_positions(image.shape[1], side)
    top = rows[:, low]
    return top + (rows[:, high] - top) * weight[:, None]


@lru_cache(maxsize=64)
def _tf1_positions(size: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two input pixels of each output pixel, and the weight of the second."""
    positions = torch.arange(side, dtype=torch.float32) * torch.tensor(size / side, dtype=torch.float32)
    low = positions.long()
    return low, (low + 1).clamp_max(size - 1), positions - low.float()


class Mode(NamedTuple):
    """A tool's preparation of images.

    `resizing` describes `resize`. The network takes (x - `center`) / `scale` of pixels in 0..255. A folder is searched
    `recursive`-ly for files with one of the `suffixes`, in lower case only unless `any_case`; None: every image format.
    """

    tool: str
    resizing: str
    resize: Resize
    center: float
    scale: float
    recursive: bool
    suffixes: frozenset[str]
    any_case: bool = False

    def selects(self, relative: Path) -> bool:
        """Return whether the tool reads a file with this path in the folder."""
        suffix = relative.suffix[1:]
        known = suffix.lower() in self.suffixes if self.any_case else suffix in self.suffixes
        return known and (self.recursive or len(relative.parts) == 1)


_SUFFIXES = frozenset(("bmp", "jpg", "jpeg", "pgm", "png", "ppm", "tif", "tiff", "webp"))
DEFAULT_MODE = "clean-fid"
MODES: dict[str, Mode] = {
    "clean-fid": Mode(
        "clean-fid 0.1.35", "Pillow's bicubic filter with antialiasing, not rounded", resize_pil_bicubic, 128.0, 128.0,
        recursive=True, suffixes=_SUFFIXES | {"JPEG", "JPG", "PNG"},
    ),
    "pytorch-fid": Mode(
        "pytorch-fid 0.3.0", "PyTorch's bilinear interpolation without antialiasing", resize_bilinear, 127.5, 127.5,
        recursive=False, suffixes=_SUFFIXES,
    ),
    "torch-fidelity": Mode(
        "torch-fidelity 0.4.0", "TensorFlow 1's bilinear interpolation without antialiasing", resize_tf1_bilinear,
        128.0, 128.0, recursive=False, suffixes=frozenset(("png", "jpg", "jpeg")), any_case=True,
    ),
}  # fmt: skip


def get_mode(name: str) -> Mode:
    """Return the mode of a tool; ValueError for an unknown name."""
    if name not in MODES:
        raise ValueError(f"unknown mode {name!r}{nearest(name, MODES)}; choose from {', '.join(MODES)}")
    return MODES[name]
