"""Many crops of a picture, answered and averaged, as in ILSVRC14.

"Going Deeper with Convolutions", section 7: the picture at four scales, shorter side 256, 288, 320 and 352; of each
the left, centre and right square (top, centre and bottom of an upright picture); of each square the four corners and
the centre at 224, and the whole square resized to 224; and all of these mirrored: 4 x 3 x 6 x 2 = 144. For a network
of another input size everything is scaled with it.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from ..data.loader import PIXELS_AT_ONCE
from ..data.preprocess import Preprocess

Crops = Literal[1, 10, 144]
CROPS: tuple[Crops, ...] = get_args(Crops)

# The paper's scales, in pixels of the shorter side for an input of BASE.
SCALES, BASE = (256, 288, 320, 352), 224


class Box(NamedTuple):
    """A square part of the picture whose shorter side was resized to `scale`: all in pixels of the resized one.

    A `side` larger than the network's input is resized to it.
    """

    scale: int
    top: int
    left: int
    side: int
    mirrored: bool


def scales(base: int, crops: Crops) -> tuple[int, ...]:
    """The shorter sides that `crops` are cut from, for an input of `base` pixels; at 224: 256, 288, 320, 352."""
    return tuple(round(base * scale / BASE) for scale in (SCALES if crops == 144 else SCALES[:1]))


def resized(height: int, width: int, scale: int) -> tuple[int, int]:
    """Height and width of a picture whose shorter side becomes `scale`."""
    shorter = min(height, width)
    return max(scale, round(height * scale / shorter)), max(scale, round(width * scale / shorter))


def squares(height: int, width: int, crops: Crops) -> list[tuple[int, int]]:
    """Top and left of the squares of a picture: first, centre, last along the longer side; 10 crops: centre."""
    side = min(height, width)
    spare = max(height, width) - side
    starts = [0, spare // 2, spare] if crops == 144 else [spare // 2]
    return [(start, 0) if height > width else (0, start) for start in starts]


def boxes(height: int, width: int, base: int, crops: Crops) -> list[Box]:
    """Every crop of a picture of that size, in the order in which `views` gives them.

    One crop is the centre one of the first scale; ten are the corners and the centre of the first scale's centre
    square, and their mirror images (Krizhevsky et al., 2012).
    """
    found = []
    for scale in scales(base, crops):
        tall, wide = resized(height, width, scale)
        end, middle = scale - base, (scale - base) // 2
        corners = [(0, 0), (0, end), (end, 0), (end, end)] if crops > 1 else []
        for top, left in squares(tall, wide, crops):
            inside = [Box(scale, top + y, left + x, base, False) for y, x in [*corners, (middle, middle)]]
            if crops == 144:
                inside.append(Box(scale, top, left, scale, False))
            found += inside
            if crops > 1:
                found += [box._replace(mirrored=True) for box in inside]
    return found


class View(NamedTuple):
    """Some crops of the same pictures: `pixels` (crops * n, channels, base, base), crop by crop, normalised.

    Each counts `weight` times in the average: of a square picture the three squares are one, computed once.
    """

    pixels: Tensor
    weight: int


def views(pictures: Tensor, preprocess: Preprocess, base: int, crops: Crops) -> Iterator[View]:
    """The crops of pictures of one size, uint8 (n, channels, h, w): a few operations for all that share a square."""
    height, width = pictures.shape[-2:]
    for scale in scales(base, crops):
        tall, wide = resized(height, width, scale)
        scaled = preprocess.resize_to(pictures, tall, wide)
        places = squares(tall, wide, crops)
        for top, left in dict.fromkeys(places):
            square = scaled[..., top : top + scale, left : left + scale]
            found = torch.cat(_of_square(square, preprocess, base, crops))
            yield View(preprocess.normalise(found), places.count((top, left)))


def _of_square(square: Tensor, preprocess: Preprocess, base: int, crops: Crops) -> list[Tensor]:
    """The crops of a square, corners first, then the centre, then the whole; then all of them mirrored."""
    side = square.shape[-1]
    middle = (side - base) // 2
    parts = [square[..., middle : middle + base, middle : middle + base]]
    if crops > 1:
        # Both corners of each direction at once: (n, c, 2, 2, base, base) -> four crops of n.
        corners = square.unfold(2, base, max(1, side - base)).unfold(3, base, max(1, side - base))
        corners = corners.permute(2, 3, 0, 1, 4, 5).flatten(0, 2)
        parts.insert(0, corners.expand(4 * len(square), *corners.shape[1:]) if side == base else corners)
    if crops == 144:
        parts.append(preprocess.resize_to(square, base, base))
    return parts + [part.flip(-1) for part in parts] if crops > 1 else parts


How = Literal["probability", "logit", "max"]


def answer(
    model: nn.Module, pictures: Tensor, preprocess: Preprocess, base: int, crops: Crops, how: How = "probability"
) -> Tensor:
    """One answer for each of pictures of one size, uint8 (n, channels, h, w): logarithms (n, classes), float64.

    ``probability`` is the mean of the crops' probabilities (the paper's); ``logit`` the mean of their logits; ``max``
    each class's highest probability, made to sum to 1.
    """
    total: Tensor | None = None
    count = 0
    for view in views(pictures, preprocess, base, crops):
        logits = torch.cat([model(part) for part in torch.split(view.pixels, max(1, PIXELS_AT_ONCE // base**2))])
        each = logits.double().view(-1, len(pictures), logits.shape[-1])
        count += len(each) * view.weight
        if how == "max":
            best = each.softmax(-1).amax(0)
            total = best if total is None else torch.maximum(total, best)
        else:
            part = (each.softmax(-1) if how == "probability" else each).sum(0) * view.weight
            total = part if total is None else total + part
    assert total is not None
    if how == "logit":
        return (total / count).log_softmax(-1)
    return (total / total.sum(-1, keepdim=True)).log()
