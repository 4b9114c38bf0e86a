"""Feature pyramids on networks of the family ("Feature Pyramid Networks for Object Detection", Lin et al., 2017)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from ..models.layers import FeatureInfo
from ..models.network import Network

# The deepest maps of a network are used: strides 8, 16 and 32, or smaller ones with a finer stem.
NUM_LEVELS = 3


class FeatureLevel(NamedTuple):
    """A level of the pyramid: `features` (n, channels, h, w) and the stride in pixels."""

    features: Tensor
    stride: int


def fpn_stages(network: Network, deepest_only: bool = False) -> tuple[FeatureInfo, ...]:
    """Return the network's stages that enter the pyramid, fine to coarse."""
    return tuple(FeatureInfo(*stage) for stage in network.feature_info[-1 if deepest_only else -NUM_LEVELS :])


def build_fpn(stages: Sequence[FeatureInfo], channels: int) -> nn.Module:
    """Build torchvision's pyramid, which fits odd map sizes too, with PyTorch's default initialization."""
    # torchvision draws other initial weights: its draws are discarded together with the weights.
    with torch.random.fork_rng(devices=[]):
        fpn = FeaturePyramidNetwork([stage.channels for stage in stages], channels)
    for block in (*fpn.inner_blocks, *fpn.layer_blocks):
        block[0].reset_parameters()
    return fpn  # type: ignore[no-any-return]


def locations(level: FeatureLevel, height: int, width: int) -> Tensor:
    """Return the centers x, y in pixels of the level's cells in an image of `height` x `width`: (h * w, 2), row-major.

    The border that unpadded convolutions have removed is divided evenly between the two sides.
    """
    rows, columns = level.features.shape[-2:]
    device = level.features.device
    y = (torch.arange(rows, device=device) + 0.5) * level.stride + (height - rows * level.stride) / 2
    x = (torch.arange(columns, device=device) + 0.5) * level.stride + (width - columns * level.stride) / 2
    return torch.stack((x.repeat(rows), y.repeat_interleave(columns)), dim=1)
