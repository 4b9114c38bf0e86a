"""Blocks of parallel paths, from tables: a paper's columns are data, one builder makes layers of them.

A path is a tuple of steps, first to last; a block is a dict of paths by name. `docs/family.md` draws its diagrams
from the same tables.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import NORM_EPS, ConvUnit, Kernel, MaxPool, Norm, Padding, Stage, StemStride, at_stride
from .network import Parts


class Conv(NamedTuple):
    """A convolution unit: output channels, kernel (one number, or height and width), stride, padding."""

    channels: int
    kernel: Kernel = 1
    stride: int = 1
    padding: Padding = "same"


class Pool(NamedTuple):
    """A 3x3 pool.

    At stride 1 the map keeps its size; average pools count the padding's zeros unless `counts_padding` is off. At
    stride 2, ``valid`` pads nothing and drops what is left over, ``ceil`` keeps a last window that the edge cuts,
    and ``half`` gives half the size, rounded up, as a padded convolution of stride 2 beside it does.
    """

    kind: Literal["max", "avg"]
    stride: int = 1
    edge: Literal["valid", "ceil", "half"] = "valid"
    counts_padding: bool = True


class Fork(NamedTuple):
    """Paths side by side inside a path, their outputs joined: the expanded banks of the coarsest maps."""

    paths: Mapping[str, "Path"]


Step = Conv | Pool | Fork
Path = tuple[Step, ...]
Block = Mapping[str, Path]


class ResidualBlock(NamedTuple):
    """Paths, joined, taken to the input's channels by a 1x1 convolution without ReLU, scaled, and added to the input.

    "Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning", section 3.3: without a
    `scale` of 0.1 to 0.3 the widest networks die early in training. `relu` is what follows the sum.
    """

    paths: Block
    scale: float
    relu: bool = True


# A trunk is a dict of these by layer name, in the order in which a picture passes.
Element = Conv | Pool | Fork | ResidualBlock


def out_channels(element: Element, into: int) -> int:
    """Channels after `element` of a map with `into` channels."""
    match element:
        case Conv():
            return element.channels
        case Fork():
            return sum(path_channels(path, into) for path in element.paths.values())
        case _:
            return into


def path_channels(path: Path, into: int) -> int:
    """Channels at the end of `path` of a map with `into` channels."""
    for step in path:
        into = out_channels(step, into)
    return into


class HalfPool(MaxPool):
    """Max pooling 3x3 stride 2 to half the size, rounded up.

    Caffe's ceil mode does so for even sizes only, and then a block whose convolutions halve an odd map cannot be
    joined. With one more row and column it does so for all, and for even sizes nothing changes. They are zeros: the
    maps come out of ReLUs, so that a zero never wins against a larger pixel.
    """

    def __init__(self) -> None:
        super().__init__(2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, h, w) -> (batch, channels, ceil(h / 2), ceil(w / 2))."""
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class Parallel(nn.Module):
    """Paths over the same map, their outputs joined along the channels in the order of the table."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, c, h, w) -> (batch, sum of the paths' channels, h', w')."""
        return torch.cat([path(x) for path in self.children()], dim=1)


class Residual(nn.Module):
    """See `ResidualBlock`."""

    def __init__(self, block: ResidualBlock, channels: int, norm: Norm, eps: float):
        super().__init__()
        self.scale, self.relu = block.scale, block.relu
        self.paths = build(Fork(block.paths), channels, norm, eps)
        self.expand = nn.Conv2d(out_channels(Fork(block.paths), channels), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, h, w) -> the same shape."""
        out = x + self.scale * self.expand(self.paths(x))
        return F.relu(out) if self.relu else out


def build(element: Element, into: int, norm: Norm, eps: float = NORM_EPS) -> nn.Module:
    """The layers of one table entry, for a map with `into` channels."""
    match element:
        case Conv(channels, kernel, stride, padding):
            return ConvUnit(into, channels, kernel, stride, norm, padding, eps)
        case Pool(kind="avg"):
            return nn.AvgPool2d(3, 1, padding=1, count_include_pad=element.counts_padding)
        case Pool(stride=1):
            return MaxPool(1, padding=1)
        case Pool(edge="half"):
            return HalfPool()
        case Pool():
            return MaxPool(2, ceil_mode=element.edge == "ceil")
        case Fork(paths):
            block = Parallel()
            for name, path in paths.items():
                layers, channels = nn.Sequential(), into
                for step in path:
                    layers.append(build(step, channels, norm, eps))
                    channels = out_channels(step, channels)
                block.add_module(name, layers)
            return block
        case ResidualBlock():
            return Residual(element, into, norm, eps)


def build_trunk(table: Mapping[str, Element], in_channels: int, norm: Norm, eps: float = NORM_EPS) -> nn.Sequential:
    """All layers of a trunk, under the names of the table."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = in_channels
    for name, element in table.items():
        layers[name] = build(element, channels, norm, eps)
        channels = out_channels(element, channels)
    return nn.Sequential(layers)


def trunk_channels(table: Mapping[str, Element], upto: str) -> int:
    """Channels after the layer `upto` of a trunk."""
    channels = 0
    for name, element in table.items():
        channels = out_channels(element, channels)
        if name == upto:
            break
    return channels


def parts_of(
    table: Mapping[str, Element],
    ends: Mapping[str, int],
    in_channels: int,
    stem_stride: StemStride,
    min_size: Mapping[StemStride, int],
    aux_heads: Mapping[str, nn.Module],
    eps: float = NORM_EPS,
) -> Parts:
    """A batch-normalised network from its table.

    `ends` are the deepest layers at each stride, with the strides behind a stem of 4; `min_size` by `stem_stride`.
    """
    stages = tuple(Stage(layer, trunk_channels(table, layer), stride) for layer, stride in ends.items())
    return Parts(
        trunk=build_trunk(table, in_channels, "batch", eps),
        features=at_stride(stages, stem_stride),
        aux_heads=aux_heads,
        min_size=min_size[stem_stride],
    )
