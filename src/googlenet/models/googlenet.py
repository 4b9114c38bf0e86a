"""GoogLeNet: "Going Deeper with Convolutions" (Szegedy et al., 2014), Table 1, and three of its variants.

One table gives the channels of all four; a `Design` defines the rest:

- ``googlenet``      the paper's network: biases, local response normalization, ceil-mode pooling, dropout 0.4;
- ``googlenet_bn``   batch normalization instead of biases and local response normalization;
- ``googlenet_d2l``  "Dive into Deep Learning", section on GoogLeNet: padded pools, no normalization, no dropout;
- ``googlenet_torchvision``  torchvision's port, for its weights: batch normalization, 3x3 instead of 5x5
  convolutions, a last pool of 2x2, auxiliary heads without the 5x5 window, dropout 0.2.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from .. import kernels
from .init import Init
from .layers import (
    AuxiliaryHead,
    AuxPool,
    Conv,
    ConvNormAct,
    FeatureInfo,
    LocalResponseNorm,
    MaxPool,
    NetworkSpec,
    Norm,
    StemStride,
    rescale_strides,
)

PoolMode = Literal["ceil", "same"]


class InceptionRow(NamedTuple):
    """One row of Table 1; the fields are the paper's columns, in channels."""

    conv1x1: int
    reduce3x3: int
    conv3x3: int
    reduce5x5: int
    conv5x5: int
    pool_proj: int

    @property
    def out(self) -> int:
        """Return the channels of the concatenated output."""
        return self.conv1x1 + self.conv3x3 + self.conv5x5 + self.pool_proj


TABLE_1: dict[str, InceptionRow] = {
    #                            1x1  red.  3x3 red. 5x5 pool
    "inception_3a": InceptionRow(64, 96, 128, 16, 32, 32),
    "inception_3b": InceptionRow(128, 128, 192, 32, 96, 64),
    "inception_4a": InceptionRow(192, 96, 208, 16, 48, 64),
    "inception_4b": InceptionRow(160, 112, 224, 24, 64, 64),
    "inception_4c": InceptionRow(128, 128, 256, 24, 64, 64),
    "inception_4d": InceptionRow(112, 144, 288, 32, 64, 64),
    "inception_4e": InceptionRow(256, 160, 320, 32, 128, 128),
    "inception_5a": InceptionRow(256, 160, 320, 32, 128, 128),
    "inception_5b": InceptionRow(384, 192, 384, 48, 128, 128),
}

# Output channels of the stem's three convolutions.
STEM = (64, 64, 192)

# The deepest layer at each stride, with the strides of the paper's stem.
FEATURE_LAYERS = {"conv1": 2, "conv3": 4, "inception_3b": 8, "inception_4e": 16, "inception_5b": 32}

# The layers whose outputs the auxiliary heads take (section 5 of the paper).
AUX_LAYERS = ("inception_4a", "inception_4d")

# The blocks that a pool precedes.
POOL_BEFORE = {"inception_3a": "pool2", "inception_4a": "pool3", "inception_5a": "pool4"}

# Scaled channel counts are multiples of this, which the CPU kernels for pooling require.
CHANNEL_MULTIPLE = 16


class Design(NamedTuple):
    """The differences between the variants.

    `large_kernel` is the filter size in the branch that the table calls 5x5, `last_pool` the window of the pool
    before 5a.
    """

    norm: Norm
    lrn: bool
    pool_mode: PoolMode
    dropout: float
    init: Init
    large_kernel: Literal[5, 3] = 5
    last_pool: Literal[3, 2] = 3
    aux_pool: AuxPool = "window"


DESIGNS: dict[str, Design] = {
    "googlenet": Design(norm="none", lrn=True, pool_mode="ceil", dropout=0.4, init="truncated_normal"),
    "googlenet_bn": Design(norm="batch", lrn=False, pool_mode="ceil", dropout=0.4, init="kaiming"),
    "googlenet_d2l": Design(norm="none", lrn=False, pool_mode="same", dropout=0.0, init="xavier"),
    "googlenet_torchvision": Design(
        norm="batch", lrn=False, pool_mode="ceil", dropout=0.2, init="kaiming",
        large_kernel=3, last_pool=2, aux_pool="adaptive",
    ),
}  # fmt: skip

# The smallest height and width for which every pool has an output pixel, by pool mode, last pool and stem stride. The
# tests try all sizes.
MIN_SIZE: dict[tuple[PoolMode, Literal[3, 2]], dict[StemStride, int]] = {
    ("ceil", 3): {4: 31, 2: 16, 1: 8},
    ("ceil", 2): {4: 15, 2: 8, 1: 4},
    ("same", 3): {4: 1, 2: 1, 1: 1},
    ("same", 2): {4: 1, 2: 1, 1: 1},
}


def scale_channels(channels: int, width_mult: float) -> int:
    """Multiply `channels` by `width_mult`, rounded to a positive multiple of 16; unchanged for 1."""
    if width_mult == 1:
        return channels
    return max(CHANNEL_MULTIPLE, round(channels * width_mult / CHANNEL_MULTIPLE) * CHANNEL_MULTIPLE)


class Inception(nn.Module):
    """Four parallel branches over the same map, concatenated along the channels (Figure 2b of the paper)."""

    def __init__(self, in_channels: int, row: InceptionRow, norm: Norm, large_kernel: Literal[5, 3] = 5):
        super().__init__()
        self.row = row
        self.use_cpu_kernels = False
        self.conv1x1 = ConvNormAct(in_channels, Conv(row.conv1x1), norm)
        self.reduce3x3 = ConvNormAct(in_channels, Conv(row.reduce3x3), norm)
        self.conv3x3 = ConvNormAct(row.reduce3x3, Conv(row.conv3x3, 3), norm)
        self.reduce5x5 = ConvNormAct(in_channels, Conv(row.reduce5x5), norm)
        self.conv5x5 = ConvNormAct(row.reduce5x5, Conv(row.conv5x5, large_kernel), norm)
        self.pool = MaxPool(stride=1, padding=1)
        self.pool_proj = ConvNormAct(in_channels, Conv(row.pool_proj), norm)

    def forward(self, x: Tensor) -> Tensor:
        """Return the concatenated outputs, (batch, row.out, h, w)."""
        row = self.row
        # The kernels compute the three 1x1 convolutions of `x` as one.
        widest = max(row.conv1x1 + row.reduce3x3 + row.reduce5x5, row.conv3x3, row.conv5x5, row.pool_proj)
        if self.use_cpu_kernels and self.training and kernels.is_supported(x, widest, kernels.LANES):
            return kernels.inception(self, x)
        branches = (
            self.conv1x1(x),
            self.conv3x3(self.reduce3x3(x)),
            self.conv5x5(self.reduce5x5(x)),
            self.pool_proj(self.pool(x)),
        )
        return torch.cat(branches, dim=1)


def default_config(name: str) -> dict[str, Any]:
    """Return the model's own options with their default values."""
    design = DESIGNS[name]
    return {"init": design.init, "dropout": design.dropout, "pool_mode": design.pool_mode, "width_mult": 1.0}


def build_spec(config: Mapping[str, Any]) -> NetworkSpec:
    """Build the layers of a resolved configuration; ValueError for an invalid `pool_mode` or `width_mult`."""
    pool_mode, width_mult, stem_stride = config["pool_mode"], config["width_mult"], config["stem_stride"]
    if pool_mode not in get_args(PoolMode):
        raise ValueError(f"pool_mode must be one of {', '.join(get_args(PoolMode))}, not {pool_mode!r}")
    if not 0 < width_mult <= 8:
        raise ValueError(f"width_mult must be in (0, 8], not {width_mult}")
    design = DESIGNS[config["name"]]._replace(pool_mode=pool_mode)
    stem = [scale_channels(channels, width_mult) for channels in STEM]
    table = {name: InceptionRow(*(scale_channels(c, width_mult) for c in row)) for name, row in TABLE_1.items()}
    channels = {"conv1": stem[0], "conv3": stem[2], **{block: row.out for block, row in table.items()}}
    features = tuple(FeatureInfo(layer, channels[layer], stride) for layer, stride in FEATURE_LAYERS.items())
    layers = _stem(design, stem, stem_stride, config["in_channels"]) | _blocks(design, table, stem[2])
    return NetworkSpec(
        trunk=nn.Sequential(layers),
        feature_info=rescale_strides(features, stem_stride),
        aux_heads={
            layer: AuxiliaryHead(channels[layer], config["num_classes"], design.norm, pool=design.aux_pool)
            for layer in AUX_LAYERS
            if config["aux"]
        },
        min_size=MIN_SIZE[pool_mode, design.last_pool][stem_stride],
    )


def _stem(
    design: Design, channels: list[int], stem_stride: StemStride, in_channels: int
) -> "OrderedDict[str, nn.Module]":
    """Build the layers before the first block, in Table 1's order and with its names."""
    first, second, third = channels
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv1"] = ConvNormAct(in_channels, Conv(first, 7, 2 if stem_stride == 4 else 1), design.norm)
    if stem_stride > 1:
        layers["pool1"] = _pool(design)
    if design.lrn:
        layers["norm1"] = LocalResponseNorm()
    layers["conv2"] = ConvNormAct(first, Conv(second), design.norm)
    layers["conv3"] = ConvNormAct(second, Conv(third, 3), design.norm)
    if design.lrn:
        layers["norm2"] = LocalResponseNorm()
    return layers


def _blocks(design: Design, table: Mapping[str, InceptionRow], channels: int) -> "OrderedDict[str, nn.Module]":
    """Build the Inception blocks and the pools between them for a map of `channels`."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name, row in table.items():
        if pool := POOL_BEFORE.get(name):
            small = pool == "pool4" and design.last_pool == 2
            layers[pool] = nn.MaxPool2d(2, 2, ceil_mode=True) if small else _pool(design)
        layers[name] = Inception(channels, row, design.norm, design.large_kernel)
        channels = row.out
    return layers


def _pool(design: Design) -> MaxPool:
    return MaxPool(2, padding=1) if design.pool_mode == "same" else MaxPool(2, ceil_mode=True)
