"""Blocks of parallel branches, built from tables.

A branch is a tuple of layers, first to last; a block is a dict of branches by name; a trunk is a dict of layers and
blocks by name. The papers' tables are written in this form; `docs/diagrams.py` draws its diagrams from the same
tables.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import NORM_EPS, Conv, ConvNormAct, FeatureInfo, MaxPool, StemStride, rescale_strides


class Pool(NamedTuple):
    """Pooling with 3x3 windows.

    At stride 1 the map keeps its size; average pools count the zeros of the padding unless `count_include_pad` is
    off. At stride 2, ``valid`` pads nothing and drops the remainder, ``ceil`` keeps a last window that exceeds the
    map, and ``half`` gives half the size, rounded up, as a padded convolution of stride 2 in another branch does.
    """

    kind: Literal["max", "avg"]
    stride: int = 1
    edge: Literal["valid", "ceil", "half"] = "valid"
    count_include_pad: bool = True


class Branches(NamedTuple):
    """Parallel branches whose outputs are concatenated. Branches can contain branches."""

    branches: Mapping[str, "Branch"]


class ResidualBlock(NamedTuple):
    """Branches, concatenated, projected by a 1x1 convolution without ReLU, scaled, and added to the input.

    "Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning", section 3.3: without a
    `scale` of 0.1 to 0.3 the widest networks diverge early in training. `relu`: whether a ReLU follows the sum.
    """

    branches: "Block"
    scale: float
    relu: bool = True


Layer = Conv | Pool | Branches
Branch = tuple[Layer, ...]
Block = Mapping[str, Branch]
# The layers of a trunk, by name, in order.
Table = Mapping[str, Layer | ResidualBlock]


def out_channels(layer: Layer | ResidualBlock, in_channels: int) -> int:
    """Return the output channels of `layer` for a map of `in_channels`."""
    match layer:
        case Conv():
            return layer.channels
        case Branches():
            return sum(branch_channels(branch, in_channels) for branch in layer.branches.values())
        case _:
            return in_channels


def branch_channels(branch: Branch, in_channels: int) -> int:
    """Return the output channels of `branch` for a map of `in_channels`."""
    for layer in branch:
        in_channels = out_channels(layer, in_channels)
    return in_channels


def layer_channels(table: Table, until: str) -> int:
    """Return the output channels of the layer `until` of a trunk."""
    channels = 0
    for name, layer in table.items():
        channels = out_channels(layer, channels)
        if name == until:
            break
    return channels


class HalfPool(MaxPool):
    """Max pooling 3x3 with stride 2 to half the size, rounded up.

    Caffe's ceil mode rounds up for even sizes only, so that the map could not be concatenated with that of a strided
    convolution for odd sizes. One more row and column of zeros gives the same size for all; even sizes are unchanged.
    Zeros never exceed the other pixels of a window, because the maps are outputs of ReLUs.
    """

    def __init__(self) -> None:
        super().__init__(2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the maxima, (batch, channels, ceil(h / 2), ceil(w / 2))."""
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class ConcatBranches(nn.Module):
    """Parallel branches over the same map, concatenated along the channels in the order of the table."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the concatenated outputs, (batch, sum of the branches' channels, h', w')."""
        return torch.cat([branch(x) for branch in self.children()], dim=1)


class Residual(nn.Module):
    """The module of a `ResidualBlock`."""

    def __init__(self, block: ResidualBlock, channels: int, eps: float):
        super().__init__()
        branches = Branches(block.branches)
        self.scale, self.relu = block.scale, block.relu
        self.paths = build_layer(branches, channels, eps)
        self.expand = nn.Conv2d(out_channels(branches, channels), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of input and scaled branches; the shape is kept."""
        out = x + self.scale * self.expand(self.paths(x))
        return F.relu(out) if self.relu else out


def build_layer(layer: Layer | ResidualBlock, in_channels: int, eps: float = NORM_EPS) -> nn.Module:
    """Build a batch-normalized layer or block of a table, for a map of `in_channels`."""
    match layer:
        case Conv():
            return ConvNormAct(in_channels, layer, "batch", eps)
        case Pool(kind="avg"):
            return nn.AvgPool2d(3, 1, padding=1, count_include_pad=layer.count_include_pad)
        case Pool(stride=1):
            return MaxPool(1, padding=1)
        case Pool(edge="half"):
            return HalfPool()
        case Pool():
            return MaxPool(2, ceil_mode=layer.edge == "ceil")
        case Branches(branches):
            block = ConcatBranches()
            for name, branch in branches.items():
                block.add_module(name, nn.Sequential(*_build_layers(branch, in_channels, eps)))
            return block
        case ResidualBlock():
            return Residual(layer, in_channels, eps)


def build_trunk(table: Table, in_channels: int, eps: float = NORM_EPS) -> nn.Sequential:
    """Build all layers of a trunk, under the names of the table."""
    return nn.Sequential(OrderedDict(zip(table, _build_layers(tuple(table.values()), in_channels, eps), strict=True)))


def _build_layers(layers: tuple[Layer | ResidualBlock, ...], in_channels: int, eps: float) -> list[nn.Module]:
    modules = []
    for layer in layers:
        modules.append(build_layer(layer, in_channels, eps))
        in_channels = out_channels(layer, in_channels)
    return modules


def get_feature_info(
    table: Table, feature_layers: Mapping[str, int], stem_stride: StemStride
) -> tuple[FeatureInfo, ...]:
    """Describe the deepest layers at each stride; `feature_layers` gives their strides after a stem of stride 4."""
    features = (FeatureInfo(name, layer_channels(table, name), stride) for name, stride in feature_layers.items())
    return rescale_strides(tuple(features), stem_stride)
