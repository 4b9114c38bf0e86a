"""Random views of images for training: a random resized crop and a policy of timm, computed image by image.

Worker processes render those of images on disk and of full images in memory. A view depends on the seed, the epoch and
the index of its image alone.
"""

import math
import random
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .augment import Augment, apply_policy
from .image_seeds import VIEW, image_seeds
from .preprocess import Preprocess

ASPECT_RATIOS = (3 / 4, 4 / 3)  # of random crops: "Going Deeper with Convolutions", section 6
INTERPOLATIONS = ("bilinear", "area", "nearest", "bicubic")  # "Going Deeper with Convolutions", the same section
ATTEMPTS = 10  # to draw a region that is inside the image, as in torchvision
Box = tuple[int, int, int, int]


class RandomView(NamedTuple):
    """How the images of a batch are shown: at `size` pixels, augmented as in `epoch` of a run with `seed`."""

    augment: Augment
    preprocess: Preprocess
    size: int
    seed: int
    epoch: int

    def render(self, images: Iterable[Tensor], indices: Tensor) -> Tensor:
        """Return the views of full images uint8 (c, h, w) with int64 `indices` (n,): uint8 (n, c, size, size)."""
        shape = (len(indices), self.preprocess.channels, self.size, self.size)
        views, seeds = torch.empty(shape, dtype=torch.uint8), image_seeds(indices, self.epoch, self.seed, VIEW)
        for position, (image, seed) in enumerate(zip(images, seeds.tolist(), strict=True)):
            views[position] = self._render(image, random.Random(seed))
        return views

    def _render(self, image: Tensor, rng: random.Random) -> Tensor:
        mode = rng.choice(INTERPOLATIONS) if self.augment.random_interpolation else self.preprocess.interpolation
        if self.augment.min_crop_scale < 1:
            top, left, height, width = crop_box(image.shape[-2], image.shape[-1], self.augment.min_crop_scale, rng)
            image = image[:, top : top + height, left : left + width]
        else:
            image = self.preprocess.center_crop(image)
        view = resize(image, self.size, mode)
        if self.augment.auto_augment:
            view = apply_policy(self.augment.auto_augment, view, self.preprocess, rng.getrandbits(31))
        return view


def uses_views(augment: Augment) -> bool:
    """Return whether training images are shown as random views."""
    return augment.min_crop_scale < 1 or augment.auto_augment is not None


def full_image_size(size: int, min_crop_scale: float) -> int:
    """Return the shorter side, in pixels, below which full images are not reduced before they are cropped to `size`.

    The smallest crops of larger images are then not enlarged.
    """
    return math.ceil(size / math.sqrt(min_crop_scale))


def crop_box(height: int, width: int, min_scale: float, rng: random.Random) -> Box:
    """Draw (top, left, height, width) of a region, distributed as in torchvision's RandomResizedCrop.

    It has a fraction in [min_scale, 1] of the image's area and an aspect ratio in `ASPECT_RATIOS`, uniform in its
    logarithm. If no such region fits, it is the largest centered one with the nearest aspect ratio.
    """
    low, high = map(math.log, ASPECT_RATIOS)
    for _ in range(ATTEMPTS):
        area, aspect = height * width * rng.uniform(min_scale, 1.0), math.exp(rng.uniform(low, high))
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            return rng.randint(0, height - h), rng.randint(0, width - w), h, w
    h = min(height, max(1, round(width / ASPECT_RATIOS[0])))
    w = min(width, max(1, round(height * ASPECT_RATIOS[1])))
    return (height - h) // 2, (width - w) // 2, h, w


def resize(image: Tensor, size: int, mode: str) -> Tensor:
    """Resize uint8 (c, h, w) to uint8 (c, size, size); `mode` is one of `INTERPOLATIONS`, antialiased if it can be."""
    images, shape = image.unsqueeze(0), (size, size)
    if images.shape[-2:] == shape:
        return image
    if mode == "area":
        return F.interpolate(images.float(), shape, mode="area").round().to(image.dtype)[0]
    if mode == "nearest":
        return F.interpolate(images, shape, mode="nearest-exact")[0]
    return F.interpolate(images, shape, mode=mode, antialias=True)[0]
