"""A picture of any size -> its place on a square canvas, by the same arithmetic in training, use and exported files.

The longer side is made so many pixels, proportions kept; the picture lies in the upper left corner of the canvas, the
rest is the mean pixel. Every picture has a canvas of its own, so that its answer does not depend on what else is
asked.

Resizing is two products of matrices (one for the rows, one for the columns), whose rows are triangles: linear
interpolation where it enlarges, and an average over what falls into a pixel where it shrinks. That is PyTorch's
bilinear resizing with antialiasing, in operations that every engine has.
"""

import torch
from torch import Tensor

from ..data.preprocess import Preprocess

# Sides of a canvas are multiples of it: then every map of a padded network lies exactly over the picture.
MULTIPLE = 32


def fitted(height: int, width: int, longer: int) -> tuple[int, int]:
    """Height and width of a picture whose longer side is made `longer` pixels; 1 at least."""
    most = max(height, width)
    # Rounded in whole numbers, which an exported file repeats exactly.
    return tuple(max(1, (2 * side * longer + most) // (2 * most)) for side in (height, width))  # type: ignore[return-value]


def canvas_side(longer: int, least: int) -> int:
    """Height and width of the canvas of pictures whose longer side is `longer`, `least` pixels at least."""
    return -(-max(longer, least) // MULTIPLE) * MULTIPLE


def resampling(before: Tensor, after: Tensor, length: int, side: int) -> Tensor:
    """The matrix (side, length) that makes `after` pixels of `before` ones; its other rows are 0.

    Both counts are in tensors (); `length` is `before` as a number.
    """
    scale = before.float() / after.float()
    places = (torch.arange(side, device=before.device).float() + 0.5) * scale
    distance = (torch.arange(length, device=before.device).float() + 0.5 - places.unsqueeze(1)).abs()
    weights = (1 - distance / scale.clamp_min(1)).clamp_min(0)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp_min(1e-6)
    there = torch.arange(side, device=before.device) < after
    return weights * there.unsqueeze(1).float()


def placed(pixels: Tensor, size: Tensor, new_size: Tensor, preprocess: Preprocess, side: int) -> Tensor:
    """Pixels 0..255 (channels, h, w) -> normalised float (channels, side, side) with the picture at `new_size`.

    `size` and `new_size` are int64 (2,): heights and widths.
    """
    rows = resampling(size[0], new_size[0], pixels.shape[1], side)
    columns = resampling(size[1], new_size[1], pixels.shape[2], side)
    canvas = rows @ pixels.float() @ columns.T
    inside = rows.sum(dim=1, keepdim=True).round() * columns.sum(dim=1).round()
    return preprocess.normalise(canvas.unsqueeze(0))[0] * inside


def on_canvas(pixels: Tensor, preprocess: Preprocess, longer: int, least: int) -> tuple[Tensor, tuple[int, int]]:
    """uint8 (channels, h, w) -> its canvas, float (channels, side, side), and its height and width there."""
    height, width = pixels.shape[1:]
    size = fitted(height, width, longer)
    side = canvas_side(longer, least)
    return placed(pixels, torch.tensor([height, width]), torch.tensor(size), preprocess, side), size
