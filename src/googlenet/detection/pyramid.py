"""A feature pyramid over any network of the family: fine geometry from shallow maps, meaning from deep ones.

"Feature Pyramid Networks for Object Detection" (Lin et al., 2017): each map is brought to the same number of channels
by a 1x1 convolution, the coarser map is laid over the finer one, a 3x3 convolution smooths the sum. The coarser map
is resized to the finer one's size and not by a factor 2, so that maps of any size fit: odd ones, and those of
networks whose convolutions take off the rim.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.layers import Stage
from ..models.network import Network

# The strides of the maps that are fused; of a network with a finer stem, its own deepest three.
STRIDES = (8, 16, 32)


class Level(NamedTuple):
    """A map of the pyramid: `features` (n, channels, h, w), and the pixels from one of its columns to the next."""

    features: Tensor
    stride: int


def fused_stages(network: Network, deepest_only: bool = False) -> tuple[Stage, ...]:
    """The stages whose maps are fused, fine to coarse: the deepest three strides, or the deepest alone."""
    stages = network.feature_info[-len(STRIDES) :]
    return tuple(Stage(*stage) for stage in (stages[-1:] if deepest_only else stages))


class Pyramid(nn.Module):
    """Maps of `stages`, fine to coarse -> as many maps of `channels` each, and of the same sizes."""

    def __init__(self, stages: Sequence[Stage], channels: int):
        super().__init__()
        self.stages = tuple(stages)
        self.lateral = nn.ModuleList(nn.Conv2d(stage.channels, channels, 1) for stage in stages)
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in stages)

    def forward(self, maps: dict[str, Tensor]) -> list[Level]:
        """The maps of `Network.features` by name -> the levels, fine to coarse."""
        found = [lateral(maps[stage.name]) for stage, lateral in zip(self.stages, self.lateral, strict=True)]
        for finer in range(len(found) - 2, -1, -1):
            above = F.interpolate(found[finer + 1], size=found[finer].shape[-2:], mode="nearest")
            found[finer] = found[finer] + above
        return [
            Level(smooth(one), stage.stride)
            for stage, smooth, one in zip(self.stages, self.smooth, found, strict=True)
        ]


def centres(level: Level, height: int, width: int) -> Tensor:
    """Where the level's positions look in a picture of `height` x `width`: float (h * w, 2) of x, y, row by row.

    A rim that a network's convolutions took off is shared out evenly to both sides.
    """
    rows, columns = level.features.shape[-2:]
    device = level.features.device
    y = (torch.arange(rows, device=device) + 0.5) * level.stride + (height - rows * level.stride) / 2
    x = (torch.arange(columns, device=device) + 0.5) * level.stride + (width - columns * level.stride) / 2
    return torch.stack((x.repeat(rows), y.repeat_interleave(columns)), dim=1)
