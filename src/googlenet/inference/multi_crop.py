"""Multi-crop prediction as in ILSVRC14: average the probabilities of 10 or 144 crops of an image.

"Going Deeper with Convolutions", section 7: resize the image to four scales, shorter side 256, 288, 320 and 352; take
the left, center and right square of each (top, center and bottom of portrait images); of each square the four corners
and the center at 224, and the square resized to 224; and the horizontal flips: 4 x 3 x 6 x 2 = 144 crops. All sizes are
scaled in proportion to the network's input size.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ..data.loader import eval_batch_pixels
from ..data.preprocess import Preprocess
from ..evaluation.predictor import Predictor, predictor_device

NumCrops = Literal[1, 10, 144]
NUM_CROPS: tuple[NumCrops, ...] = get_args(NumCrops)

# The paper's scales: the shorter side in pixels for an input of BASE.
SCALES, BASE = (256, 288, 320, 352), 224


def crop_scales(base: int, num_crops: NumCrops) -> tuple[int, ...]:
    """Return the scales (shorter sides) for an input of `base` pixels: 256, 288, 320, 352 at 224."""
    return tuple(round(base * scale / BASE) for scale in (SCALES if num_crops == 144 else SCALES[:1]))


def scaled_shape(height: int, width: int, scale: int) -> tuple[int, int]:
    """Return height and width after resizing the shorter side to `scale`."""
    shorter = min(height, width)
    return max(scale, round(height * scale / shorter)), max(scale, round(width * scale / shorter))


def square_offsets(height: int, width: int, num_crops: NumCrops) -> list[tuple[int, int]]:
    """Return (top, left) of the squares along the longer side: center; with 144 crops start, center, end."""
    side = min(height, width)
    rest = max(height, width) - side
    starts = [0, rest // 2, rest] if num_crops == 144 else [rest // 2]
    return [(start, 0) if height > width else (0, start) for start in starts]


class CropBatch(NamedTuple):
    """Crops of the same n images: `pixels` float 0..255 (crops * n, channels, base, base), crop by crop.

    `weight` is how often each counts in the average: the three squares of a square image are computed once.
    """

    pixels: Tensor
    weight: int


def iter_crops(images: Tensor, preprocess: Preprocess, base: int, num_crops: NumCrops) -> Iterator[CropBatch]:
    """Yield the crops of images, uint8 (n, channels, h, w), one batch for each square of each scale.

    One crop is the center of the first scale (but ``evaluate --crops 1`` uses the run's own preprocessing); ten are the
    corners and the center of the first scale's center square, and their flips (Krizhevsky et al., 2012).
    """
    for scale in crop_scales(base, num_crops):
        height, width = scaled_shape(images.shape[-2], images.shape[-1], scale)
        scaled = preprocess.resize(images, (height, width))
        offsets = square_offsets(height, width, num_crops)
        for top, left in dict.fromkeys(offsets):
            square = scaled[..., top : top + scale, left : left + scale]
            yield CropBatch(torch.cat(_square_crops(square, preprocess, base, num_crops)), offsets.count((top, left)))


def _square_crops(square: Tensor, preprocess: Preprocess, base: int, num_crops: NumCrops) -> list[Tensor]:
    """Return the crops of a square: corners, center, the resized square; then the flips of all."""
    side = square.shape[-1]
    middle = (side - base) // 2
    crops = [square[..., middle : middle + base, middle : middle + base]]
    if num_crops > 1:
        # Both corners of each direction in one operation: (n, c, 2, 2, base, base) -> four crops of n images.
        corners = square.unfold(2, base, max(1, side - base)).unfold(3, base, max(1, side - base))
        corners = corners.permute(2, 3, 0, 1, 4, 5).flatten(0, 2)
        crops.insert(0, corners.expand(4 * len(square), *corners.shape[1:]) if side == base else corners)
    if num_crops == 144:
        crops.append(preprocess.resize(square, base))
    return crops + [crop.flip(-1) for crop in crops] if num_crops > 1 else crops


def predict_multi_crop(predictor: Predictor, images: Tensor, base: int, num_crops: NumCrops) -> Tensor:
    """Return log mean probabilities, float64 (n, classes), over the crops of images, uint8 (n, channels, h, w)."""
    total = torch.zeros(())
    batch_size = max(1, eval_batch_pixels(predictor_device(predictor)) // base**2)
    for batch in iter_crops(images, predictor.preprocess, base, num_crops):
        logits = torch.cat([predictor.predict(pixels) for pixels in torch.split(batch.pixels, batch_size)])
        probabilities = logits.double().view(-1, len(images), logits.shape[-1]).softmax(-1)
        total = total + probabilities.sum(0) * batch.weight
    return (total / total.sum(-1, keepdim=True)).log()
