"""Resize and pad images to a square (letterbox), with the same arithmetic in training, inference and exported files.

The aspect ratio is kept, the image is in the upper left corner, and the padding is the mean pixel. An image is resized
by two matrix products, for the rows and the columns, with triangle filters: linear interpolation to enlarge, a weighted
average to shrink. This is PyTorch's anti-aliased bilinear resizing, in operations that every inference engine has.
"""

import torch
from torch import Tensor

from ..data.preprocess import Preprocess

# Padded sides are multiples of the coarsest stride, so the feature maps of a padded network cover the image exactly.
SIDE_MULTIPLE = 32


def scaled_size(height: int, width: int, max_side: int) -> tuple[int, int]:
    """Return (height, width), each at least 1, of an image whose longer side is resized to `max_side` pixels."""
    longer = max(height, width)
    # Integer rounding, which an exported file repeats exactly.
    return tuple(max(1, (2 * side * max_side + longer) // (2 * longer)) for side in (height, width))  # type: ignore[return-value]


def padded_side(max_side: int, min_side: int) -> int:
    """Return the side of the padded square for images with a longer side of `max_side`, at least `min_side` pixels."""
    return -(-max(max_side, min_side) // SIDE_MULTIPLE) * SIDE_MULTIPLE


def resize_matrix(length: Tensor, new_length: Tensor, num_pixels: int, side: int) -> Tensor:
    """Return the matrix (side, num_pixels) that resizes `length` pixels to `new_length`; the other rows are 0.

    The lengths are tensors (), because they are variables in an exported file; `num_pixels` is `length` as an integer.
    """
    # Positions are integers, in units of half a pixel divided by `new_length`: engines that compute in bfloat16, with
    # eight bits, keep integers exact.
    rows, columns = torch.arange(side, device=length.device), torch.arange(num_pixels, device=length.device)
    distances = ((2 * columns + 1) * new_length - ((2 * rows + 1) * length).unsqueeze(1)).abs()
    weights = (2 * torch.maximum(length, new_length) - distances).clamp_min(0)
    weights = weights * (rows < new_length).unsqueeze(1)
    return weights.float() / weights.sum(dim=1, keepdim=True).clamp_min(1).float()


def letterbox(image: Tensor, size: Tensor, new_size: Tensor, preprocess: Preprocess, side: int) -> Tensor:
    """Resize an image to `new_size`, normalize it and pad it to a square.

    `image` is (channels, h, w) with values 0..255, `size` its height and width and `new_size` those after resizing,
    both int64 (2,). Returns float (channels, side, side).
    """
    rows = resize_matrix(size[0], new_size[0], image.shape[1], side)
    columns = resize_matrix(size[1], new_size[1], image.shape[2], side)
    resized = rows @ image.float() @ columns.T
    inside = rows.sum(dim=1, keepdim=True).round() * columns.sum(dim=1).round()
    return preprocess.normalize(resized.unsqueeze(0))[0] * inside


def letterbox_image(
    image: Tensor, preprocess: Preprocess, max_side: int, min_side: int
) -> tuple[Tensor, tuple[int, int]]:
    """Letterbox uint8 (channels, h, w); return float (channels, side, side) and the image's (height, width) in it."""
    size, side = scaled_size(image.shape[1], image.shape[2], max_side), padded_side(max_side, min_side)
    return letterbox(image, torch.tensor(image.shape[1:]), torch.tensor(size), preprocess, side), size
