"""Class activation maps: where on the last map a class's logit comes from.

"Learning Deep Features for Discriminative Localization" (Zhou et al., 2016). A network that ends in pooling and one
linear layer gives them for free: both are linear, so a logit is a sum over the last map's positions, term by term.
Nothing is estimated, and no gradient is taken.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.network import Network


class ClassMaps(NamedTuple):
    """`maps` (n, chosen classes, h, w), in logits; `logits` (n, all classes).

    The mean of a map plus the classifier's bias is the class's logit, to rounding.
    """

    maps: Tensor
    logits: Tensor


def class_maps(model: Network, pixels: Tensor, classes: Sequence[int]) -> ClassMaps:
    """The maps of `classes` for normalised pixels (n, channels, height, width), by a network in evaluation mode.

    With global average pooling a map is the sum of the last map's channels, each times the class's weight of it;
    with a pyramid of pools a position has the weights of every cell it lies in. ValueError for a network without
    classifier.
    """
    with torch.no_grad():
        last = model.forward_features(pixels)
        weights = position_weights(model, classes, *last.shape[-2:])
        return ClassMaps(torch.einsum("nchw,kchw->nkhw", last, weights), model.forward_head(last))


def position_weights(model: Network, classes: Sequence[int], height: int, width: int) -> Tensor:
    """What one unit of each channel at each position of a last map adds to a logit, times the map's positions.

    (classes, channels, height, width). ValueError for a network without classifier.
    """
    if not isinstance(model.classifier, nn.Linear) or not model.pooled:
        raise ValueError("class activation maps need a network that ends in pooling and a classifier")
    rows = model.classifier.weight[list(classes)]
    channels = rows.shape[1] // sum(level * level for level in model.pyramid)
    found = rows.new_zeros(len(rows), channels, height, width)
    start = 0
    for level in model.pyramid:
        stop = start + channels * level * level
        part = rows[:, start:stop].reshape(-1, channels, level, level)
        down, across = (cells(length, level).to(rows) for length in (height, width))
        found += torch.einsum("kcij,ih,jw->kchw", part, down, across)
        start = stop
    return found * (height * width)


def cells(length: int, count: int) -> Tensor:
    """How adaptive average pooling takes `length` positions to `count` cells: a matrix (count, length)."""
    matrix = torch.zeros(count, length)
    for cell in range(count):
        start, stop = cell * length // count, -(-(cell + 1) * length // count)
        matrix[cell, start:stop] = 1 / (stop - start)
    return matrix


def enlarged(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps (n, k, h, w) over a picture's pixels: (n, k, height, width), bicubic.

    So a peak may lie between positions; bilinear interpolation has its peaks at their centres, up to half a stride
    beside a narrow object.
    """
    return F.interpolate(maps, (height, width), mode="bicubic", align_corners=False)


def peaks(maps: Tensor, height: int, width: int) -> Tensor:
    """Row and column, in pixels, of each map's highest point over a picture: (n, k, 2).

    Where several are equal to rounding (all are, of a map of one position) the mean of their places.
    """
    over = enlarged(maps, height, width)
    most = over.amax((-2, -1), keepdim=True)
    highest = (over >= most - 1e-5 * most.abs()).to(over)
    share = highest / highest.sum((-2, -1), keepdim=True)
    down, across = (torch.arange(length).to(over) for length in (height, width))
    return torch.stack((share.sum(-1) @ down, share.sum(-2) @ across), dim=-1)
