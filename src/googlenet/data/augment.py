"""Random changes of a training batch, on the whole tensor at once. Pure functions of a generator.

`rows` says which part of a step's batch the pictures are; left out, they are all of it.
"""

from typing import Literal

import torch
from torch import Tensor

from .rows import Rows, whole
from .transfer import send

Flip = Literal["none", "random", "alternating"]


def flip(
    images: Tensor,
    kind: Flip,
    indices: Tensor,
    epoch: int,
    seed: int,
    generator: torch.Generator,
    rows: Rows | None = None,
) -> Tensor:
    """Mirror some of (n, c, h, w) left to right.

    ``random`` mirrors each with probability 1/2. ``alternating`` decides by chance in the first epoch and
    mirrors exactly the others in the next, so that two epochs show both sides of every picture (Jordan 2024,
    "94% on CIFAR-10 in 3.29 Seconds", section 3.6); `indices` are the pictures' numbers in the data set.
    """
    if kind == "none":
        return images
    if kind == "random":
        rows = rows or whole(len(images))
        mirrored = rows.of(torch.rand(rows.total, generator=generator)) < 0.5
    else:
        mirrored = (_coin(indices, seed) + epoch) % 2 == 1
    return torch.where(send(mirrored.view(-1, 1, 1, 1), images.device), images.flip(-1), images)


def shift(images: Tensor, pixels: int, generator: torch.Generator, rows: Rows | None = None) -> Tensor:
    """Move each picture of (n, c, h, w) by up to `pixels` up, down, left and right; the border is zero."""
    if pixels == 0:
        return images
    count, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (pixels,) * 4)
    rows = rows or whole(count)
    drawn = torch.randint(0, 2 * pixels + 1, (2, rows.total, 1), generator=generator)
    offsets = send(rows.of(drawn, dim=1), images.device)
    lines = offsets[0] + torch.arange(height, device=images.device)
    columns = offsets[1] + torch.arange(width, device=images.device)
    picture = torch.arange(count, device=images.device).view(-1, 1, 1)
    return padded.movedim(1, -1)[picture, lines.unsqueeze(2), columns.unsqueeze(1)].movedim(-1, 1)


def erase(images: Tensor, side: int, generator: torch.Generator, rows: Rows | None = None) -> Tensor:
    """Blank a random square of `side` pixels in each of (n, c, h, w) (cutout, DeVries & Taylor 2017)."""
    if side == 0:
        return images
    count, _, height, width = images.shape
    device, rows = images.device, rows or whole(count)
    top = send(rows.of(torch.randint(0, height, (rows.total, 1), generator=generator)), device) - side // 2
    left = send(rows.of(torch.randint(0, width, (rows.total, 1), generator=generator)), device) - side // 2
    lines, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    inside = ((lines >= top) & (lines < top + side)).unsqueeze(2) & (
        (columns >= left) & (columns < left + side)
    ).unsqueeze(1)
    return images.masked_fill(inside.unsqueeze(1), 0)


def _coin(indices: Tensor, seed: int) -> Tensor:
    """0 or 1 for each picture's number, as good as random, without a table: a multiplicative hash."""
    mixed = (indices.long() + 1) * 0x9E3779B1 + seed * 0x85EBCA6B
    mixed = (mixed ^ (mixed >> 15)) * 0x2C1B3C6D & 0xFFFFFFFF
    return (mixed >> 17) & 1
