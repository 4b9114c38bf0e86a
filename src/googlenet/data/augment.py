"""Random augmentation of a training batch, as pure functions of a generator on the full tensor.

`part` is the slice of the step's batch that the images are. timm's augmentations (RandAugment and others, random
erasing, mixup, CutMix) draw from the global random states of Python and NumPy: `seeded_global_rng` seeds and restores
these, so other random numbers do not change. Each image has seeds of its own, and mixup and CutMix one for the batch,
so the result does not depend on how the batch is split.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .batch_slice import BatchSlice
from .preprocess import Preprocess

Flip = Literal["none", "random", "alternating"]


class Augment(NamedTuple):
    """The augmentation of a training batch: the recipe's `augment` options and the number of classes for mixup."""

    flip: Flip = "none"
    translate: int = 0
    cutout: int = 0
    min_crop_scale: float = 1.0
    auto_augment: str | None = None
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    num_classes: int = 0
    random_interpolation: bool = False
    vertical_flip: bool = False
    rotate90: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    lighting: float = 0.0

    @property
    def mixes(self) -> bool:
        """Return whether images are mixed with others of the batch."""
        return bool(self.mixup or self.cutmix)


def random_flip(images: Tensor, generator: torch.Generator, part: BatchSlice) -> Tensor:
    """Flip each image of (n, c, h, w) horizontally with probability 1/2."""
    return _flip_where(images, part.slice(torch.rand(part.total, generator=generator)) < 0.5)


def alternating_flip(images: Tensor, indices: Tensor, epoch: int, seed: int) -> Tensor:
    """Flip a random half of the images (n, c, h, w) horizontally, and in the next epoch the other half.

    Every two epochs then show both orientations of every image (Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds",
    section 3.6). `indices` (n,) are the images' indices in the data set.
    """
    # A multiplicative hash of each index, which needs no table, gives a pseudo-random bit.
    mixed = (indices.long() + 1) * 0x9E3779B1 + seed * 0x85EBCA6B
    mixed = (mixed ^ (mixed >> 15)) * 0x2C1B3C6D & 0xFFFFFFFF
    return _flip_where(images, (((mixed >> 17) & 1) + epoch) % 2 == 1)


def _flip_where(images: Tensor, flipped: Tensor, dim: int = -1) -> Tensor:
    return torch.where(copy_to(images.device, flipped.view(-1, 1, 1, 1)), images.flip(dim), images)


def vertical_flip(images: Tensor, uniform: Tensor) -> Tensor:
    """Flip images (n, c, h, w) vertically where a uniform number in [0, 1) (n, 1) is below 1/2."""
    return _flip_where(images, uniform < 0.5, dim=-2)


def rotate90(images: Tensor, uniform: Tensor) -> Tensor:
    """Rotate square images (n, c, h, h) by 0, 90, 180 or 270 degrees, as uniform numbers in [0, 1) (n, 1) say."""
    turns = copy_to(images.device, (4 * uniform).long().view(-1, 1, 1, 1))
    rotated = images
    for count in (1, 2, 3):
        rotated = torch.where(turns == count, images.rot90(count, (-2, -1)), rotated)
    return rotated


def translate(images: Tensor, pixels: int, generator: torch.Generator, part: BatchSlice) -> Tensor:
    """Shift each image of (n, c, h, w) by up to `pixels` in each direction; the border is filled with zeros."""
    if pixels == 0:
        return images
    device = images.device
    padded = F.pad(images, (pixels,) * 4)
    drawn = part.slice(torch.randint(0, 2 * pixels + 1, (2, part.total, 1), generator=generator), dim=1)
    top, left = copy_to(device, drawn)
    rows = top + torch.arange(images.shape[2], device=device)
    columns = left + torch.arange(images.shape[3], device=device)
    image = torch.arange(len(images), device=device).view(-1, 1, 1)
    return padded.movedim(1, -1)[image, rows.unsqueeze(2), columns.unsqueeze(1)].movedim(-1, 1)


def cutout(images: Tensor, side: int, generator: torch.Generator, part: BatchSlice) -> Tensor:
    """Blank a random square of `side` pixels in each image of (n, c, h, w) (cutout, DeVries & Taylor 2017)."""
    if side == 0:
        return images
    inside = []
    for length in images.shape[2:]:
        drawn = part.slice(torch.randint(0, length, (part.total, 1), generator=generator))
        start = copy_to(images.device, drawn) - side // 2
        pixels = torch.arange(length, device=images.device)
        inside.append((pixels >= start) & (pixels < start + side))
    return images.masked_fill((inside[0].unsqueeze(2) & inside[1].unsqueeze(1)).unsqueeze(1), 0)


def copy_to(device: torch.device, values: Tensor) -> Tensor:
    """Copy `values` to `device` without waiting for the device."""
    return values.to(device, non_blocking=device.type == "cuda")


@contextmanager
def seeded_global_rng(seed: int) -> Iterator[None]:
    """Seed the global random states of Python and NumPy, and restore them at the end."""
    before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


@lru_cache(maxsize=64)
def build_auto_augment(policy: str, size: int, mean: tuple[float, ...]) -> Callable[[Image.Image], Image.Image]:
    """Build timm's transform for a policy such as ``rand-m7-mstd0.5`` and images of `size` pixels.

    Empty regions are filled with `mean` (RGB, as fractions). Raises ValueError for a policy unknown to timm.
    """
    from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform

    factories: dict[str, Any] = {"rand": rand_augment_transform, "augmix": augment_and_mix_transform}
    factory = factories.get(policy.partition("-")[0], auto_augment_transform)
    fill = tuple(min(255, round(255 * value)) for value in mean)
    options = {"translate_const": int(size * 0.45), "img_mean": fill}
    try:
        transform: Callable[[Image.Image], Image.Image] = factory(policy, options)
    except (AssertionError, ValueError, KeyError, IndexError) as error:
        reason = f" ({error})" if str(error) else ""
        raise ValueError(f"augment.auto_augment: unknown timm policy {policy!r}{reason}; try rand-m7-mstd0.5") from None
    return transform


def draw_seeds(generator: torch.Generator, part: BatchSlice) -> list[int]:
    """Draw a seed for each image."""
    seeds: list[int] = part.slice(torch.randint(2**31, (part.total,), generator=generator)).tolist()
    return seeds


def apply_policy(policy: str, image: Tensor, preprocess: Preprocess, seed: int) -> Tensor:
    """Apply a policy to an image uint8 (c, h, w) with its own seed; return uint8 (c, h, w)."""
    mean = preprocess.mean if preprocess.channels == 3 else preprocess.mean * 3
    transform = build_auto_augment(policy, image.shape[-1], mean)
    # timm's policies take RGB images.
    rgb = Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
    with seeded_global_rng(seed):
        augmented = transform(rgb)
    if preprocess.channels == 1:
        augmented = augmented.convert("L")
    return torch.from_numpy(np.array(augmented).reshape(*image.shape[-2:], -1)).movedim(2, 0)


def random_erasing(images: Tensor, probability: float, seeds: Sequence[int]) -> Tensor:
    """Blank a rectangle in some normalized images (n, c, h, w), in place, each with its own seed."""
    from timm.data.random_erasing import RandomErasing

    erase = RandomErasing(probability, device=str(images.device))  # type: ignore[no-untyped-call]
    for image, seed in zip(images, seeds, strict=True):
        with seeded_global_rng(seed):
            erase(image)
    return images


def mixing_partners(part: BatchSlice) -> BatchSlice:
    """Return the slice of the partners of the images of `part`, in reverse order.

    timm mixes the first image of a batch with the last, the second with the last but one, and so on; the last one of
    an odd number is not mixed.
    """
    even = part.total // 2 * 2
    start, stop = min(part.start, even), min(part.stop, even)
    return BatchSlice(even - stop, even - start, part.total)


def mixup_cutmix(
    images: Tensor, labels: Tensor, partners: tuple[Tensor, Tensor], augment: Augment
) -> tuple[Tensor, Tensor]:
    """Mix images and their labels with their `partners`; return images and class probabilities (n, num_classes).

    `partners` are images and labels in the order of `mixing_partners`; images without one come last and are unchanged.
    `augment.mixup` and `augment.cutmix` are the parameters of the Beta distribution of the mixing ratio. If both are
    above 0, each batch uses one of them at random. Call it within `seeded_global_rng`.
    """
    from timm.data.mixup import Mixup

    count, probabilities = len(partners[1]), F.one_hot(labels, augment.num_classes).to(images.dtype)
    if not count:
        return images, probabilities
    mixer = Mixup(augment.mixup, augment.cutmix, label_smoothing=0.0, num_classes=augment.num_classes)  # type: ignore[no-untyped-call]
    # timm mixes a batch with itself in reverse order. Of images and partners, the first half are the images.
    pixels, classes = torch.cat((images[:count], partners[0])), torch.cat((labels[:count], partners[1]))
    mixed, mixed_probabilities = mixer(pixels, classes)
    mixed_images = torch.cat((mixed[:count], images[count:]))
    return mixed_images, torch.cat((mixed_probabilities[:count].to(images.dtype), probabilities[count:]))
