"""Photometric distortions of training images: brightness, contrast, saturation, hue and lighting, in random order.

Each is an affine map of an image's colors, so all of them together are one matrix and one offset per image. Unlike with
torchvision's ColorJitter, values are clipped once, at the end, and hue is rotated in the YIQ color space.
"""

import math

import torch
from torch import Tensor

from .augment import Augment, copy_to

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
RGB_TO_YIQ = (LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))
# Principal components of ImageNet's colors in [0, 1] (Krizhevsky, Sutskever & Hinton 2012, section 4.1; the values of
# the public Torch implementation of ResNet): eigenvectors in columns, each times its eigenvalue.
LIGHTING = (
    (-0.5675 * 0.2175, 0.7192 * 0.0188, 0.4009 * 0.0045),
    (-0.5808 * 0.2175, -0.0045 * 0.0188, -0.8140 * 0.0045),
    (-0.5836 * 0.2175, -0.6948 * 0.0188, 0.4203 * 0.0045),
)
NUM_DRAWS = 11  # per image: a strength and a position in the order of four distortions, and three of the lighting
DISTORTIONS = ("brightness", "contrast", "saturation", "hue")


def distorts_colors(augment: Augment) -> bool:
    """Return whether any photometric distortion is on."""
    return any(getattr(augment, name) for name in (*DISTORTIONS, "lighting"))


def distort_colors(images: Tensor, augment: Augment, uniform: Tensor) -> Tensor:
    """Distort images float (n, 1 or 3, h, w) in 0..255 by uniform numbers in [0, 1) (n, `NUM_DRAWS`).

    Gray images are distorted like color images with equal channels.
    """
    device, dtype, channels = images.device, images.dtype, images.shape[1]
    uniform = copy_to(device, uniform.to(dtype))
    luma = torch.tensor(LUMA, dtype=dtype, device=device)
    means = images.mean((2, 3)).expand(-1, 3)
    matrix, offset = _color_maps(augment, uniform, means, luma)
    if channels == 1:
        matrix, offset = (matrix.sum(2) @ luma).view(-1, 1, 1), (offset @ luma).view(-1, 1)
    distorted = torch.baddbmm(offset.unsqueeze(2), matrix, images.flatten(2))
    return distorted.clamp_(0, 255).view_as(images)


def _color_maps(augment: Augment, uniform: Tensor, means: Tensor, luma: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maps (n, 3, 3) and offsets (n, 3) of colors in 0..255 for images with the `means` (n, 3)."""
    count, num = len(means), len(DISTORTIONS)
    identity = torch.eye(3, dtype=means.dtype, device=means.device).expand(count, 3, 3)
    matrix, offset = identity, torch.zeros_like(means)
    strengths = torch.tensor([getattr(augment, name) for name in DISTORTIONS], dtype=means.dtype, device=means.device)
    changes = strengths * (2 * uniform[:, :num] - 1)
    factors = (1 + changes).view(count, num, 1, 1)
    order = uniform[:, num : 2 * num].argsort(1)
    gray = luma.expand(3, 3)
    # Contrast changes the distance to the mean brightness, whose value depends on the distortions before it.
    steps = torch.stack(
        (
            factors[:, 0] * identity,
            factors[:, 1] * identity,
            factors[:, 2] * identity + (1 - factors[:, 2]) * gray,
            _hue_rotation(changes[:, 3]),
        ),
        dim=1,
    )
    for position in range(num):
        kind = order[:, position]
        step = steps[torch.arange(count, device=means.device), kind]
        brightness = ((matrix @ means.unsqueeze(2)).squeeze(2) + offset) @ luma
        shift = torch.where(kind == 1, (1 - factors[:, 1].flatten()) * brightness, 0.0)
        matrix, offset = step @ matrix, (step @ offset.unsqueeze(2)).squeeze(2) + shift.unsqueeze(1)
    if augment.lighting:
        normal = torch.special.ndtri(uniform[:, 2 * num :].clamp(2**-25, 1 - 2**-24)) * augment.lighting
        components = torch.tensor(LIGHTING, dtype=means.dtype, device=means.device)
        offset = offset + 255 * normal @ components.T
    return matrix, offset


def _hue_rotation(turns: Tensor) -> Tensor:
    """Return the map (n, 3, 3) that rotates the hue by a fraction of the color circle (n,) and keeps the luma."""
    to_yiq = torch.tensor(RGB_TO_YIQ, dtype=turns.dtype, device=turns.device)
    cos, sin = torch.cos(2 * math.pi * turns), torch.sin(2 * math.pi * turns)
    zero, one = torch.zeros_like(turns), torch.ones_like(turns)
    rows = ((one, zero, zero), (zero, cos, -sin), (zero, sin, cos))
    rotation = torch.stack([torch.stack(row, 1) for row in rows], 1)
    result: Tensor = torch.linalg.inv(to_yiq) @ rotation @ to_yiq
    return result
