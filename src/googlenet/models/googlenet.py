"""GoogLeNet: "Going Deeper with Convolutions" (Szegedy et al., 2014), Table 1, and three of its variants.

One table gives the widths of all four; a `Design` says what differs around them:

- ``googlenet``      the paper's: biases, local response normalisation, ceil-mode pools, dropout 0.4;
- ``googlenet_bn``   batch normalisation in place of biases and local response normalisation;
- ``googlenet_d2l``  the book chapter's ("Dive into Deep Learning", section on GoogLeNet): every pool padded,
  no normalisation, no dropout;
- ``googlenet_torchvision``  torchvision's port, for its weights: batch normalisation, a 3x3 convolution where the
  paper has a 5x5, the last pool 2x2, auxiliary heads without the 5x5 window, dropout 0.2.
"""

from collections import OrderedDict
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from . import native
from .layers import (
    AuxiliaryHead,
    AuxPool,
    ConvUnit,
    Init,
    LocalResponseNorm,
    MaxPool,
    Norm,
    Stage,
    StemStride,
    at_stride,
)
from .network import Parts


class InceptionRow(NamedTuple):
    """One line of Table 1; the fields are the paper's columns, in channels."""

    conv1x1: int
    reduce3x3: int
    conv3x3: int
    reduce5x5: int
    conv5x5: int
    pool_proj: int

    @property
    def out(self) -> int:
        """Channels of the concatenated output."""
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

# The stem's three convolutions, in channels.
STEM = (64, 64, 192)

# The layers whose maps are the deepest at each stride, and the strides, which are those of the paper's stem.
ENDS = {"conv1": 2, "conv3": 4, "inception_3b": 8, "inception_4e": 16, "inception_5b": 32}

# Widths other than the paper's are multiples of this, which the native step's pools go by.
MULTIPLE = 16


def scaled(channels: int, width: float) -> int:
    """`channels` times `width`, to the nearest multiple of 16 and one at least; the paper's own at width 1."""
    return channels if width == 1 else max(MULTIPLE, round(channels * width / MULTIPLE) * MULTIPLE)


def widened(width: float) -> dict[str, InceptionRow]:
    """Table 1 with every column scaled."""
    return {name: InceptionRow(*(scaled(channels, width) for channels in row)) for name, row in TABLE_1.items()}


# Where the auxiliary heads listen (section 5 of the paper).
AUXILIARY_TAPS = ("inception_4a", "inception_4d")

Pools = Literal["ceil", "padded"]


class Design(NamedTuple):
    """What the variants differ in; the widths are Table 1's in each.

    `large_kernel` is that of the path which the table calls 5x5, `last_pool` the window of the pool before 5a.
    """

    norm: Norm
    lrn: bool
    pools: Pools
    dropout: float
    init: Init
    large_kernel: Literal[5, 3] = 5
    last_pool: Literal[3, 2] = 3
    aux_pool: AuxPool = "window"


DESIGNS: dict[str, Design] = {
    "googlenet": Design(norm="none", lrn=True, pools="ceil", dropout=0.4, init="truncated_normal"),
    "googlenet_bn": Design(norm="batch", lrn=False, pools="ceil", dropout=0.4, init="kaiming"),
    "googlenet_d2l": Design(norm="none", lrn=False, pools="padded", dropout=0.0, init="xavier"),
    "googlenet_torchvision": Design(
        norm="batch", lrn=False, pools="ceil", dropout=0.2, init="kaiming",
        large_kernel=3, last_pool=2, aux_pool="adaptive",
    ),
}  # fmt: skip

# The least height and width that leaves a pixel for every pool, by pools, last pool and stem stride (the tests find
# all by trying).
MINIMUM_SIZE: dict[tuple[Pools, Literal[3, 2]], dict[StemStride, int]] = {
    ("ceil", 3): {4: 31, 2: 16, 1: 8},
    ("ceil", 2): {4: 15, 2: 8, 1: 4},
    ("padded", 3): {4: 1, 2: 1, 1: 1},
    ("padded", 2): {4: 1, 2: 1, 1: 1},
}


class Inception(nn.Module):
    """Four parallel paths over the same map, concatenated along the channels (Figure 2b of the paper)."""

    def __init__(self, in_channels: int, row: InceptionRow, norm: Norm, large_kernel: Literal[5, 3] = 5):
        super().__init__()
        self.row = row
        self.native = False
        self.conv1x1 = ConvUnit(in_channels, row.conv1x1, 1, norm=norm)
        self.reduce3x3 = ConvUnit(in_channels, row.reduce3x3, 1, norm=norm)
        self.conv3x3 = ConvUnit(row.reduce3x3, row.conv3x3, 3, norm=norm)
        self.reduce5x5 = ConvUnit(in_channels, row.reduce5x5, 1, norm=norm)
        self.conv5x5 = ConvUnit(row.reduce5x5, row.conv5x5, large_kernel, norm=norm)
        self.pool = MaxPool(stride=1, padding=1)
        self.pool_proj = ConvUnit(in_channels, row.pool_proj, 1, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, h, w) -> (batch, row.out, h, w)."""
        if self.native and self.training and native.usable(x, native.LANES):
            return native.inception(self, x)
        paths = (
            self.conv1x1(x),
            self.conv3x3(self.reduce3x3(x)),
            self.conv5x5(self.reduce5x5(x)),
            self.pool_proj(self.pool(x)),
        )
        return torch.cat(paths, dim=1)


def _trunk(
    design: Design, table: dict[str, InceptionRow], stem: tuple[int, ...], stem_stride: StemStride, in_channels: int
) -> nn.Sequential:
    """Everything between the pixels and global average pooling, in Table 1's order and under its names."""

    def pool() -> MaxPool:
        return MaxPool(2, padding=1) if design.pools == "padded" else MaxPool(2, ceil_mode=True)

    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv1"] = ConvUnit(in_channels, stem[0], 7, stride=2 if stem_stride == 4 else 1, norm=design.norm)
    if stem_stride > 1:
        layers["pool1"] = pool()
    if design.lrn:
        layers["norm1"] = LocalResponseNorm()
    layers["conv2"] = ConvUnit(stem[0], stem[1], 1, norm=design.norm)
    layers["conv3"] = ConvUnit(stem[1], stem[2], 3, norm=design.norm)
    if design.lrn:
        layers["norm2"] = LocalResponseNorm()
    channels = stem[2]
    for name, row in table.items():
        pool_before = {"inception_3a": "pool2", "inception_4a": "pool3", "inception_5a": "pool4"}.get(name)
        if pool_before == "pool4" and design.last_pool == 2:
            layers[pool_before] = nn.MaxPool2d(2, 2, ceil_mode=True)
        elif pool_before:
            layers[pool_before] = pool()
        layers[name] = Inception(channels, row, design.norm, design.large_kernel)
        channels = row.out
    return nn.Sequential(layers)


def defaults(name: str) -> dict[str, Any]:
    """The member's own choices."""
    design = DESIGNS[name]
    return {"init": design.init, "dropout": design.dropout, "pools": design.pools, "width": 1.0}


def parts(
    name: str, num_classes: int, in_channels: int, aux: bool, *, stem_stride: StemStride, pools: Pools, width: float
) -> Parts:
    """The network but for its head; see `googlenet.create`."""
    if pools not in get_args(Pools):
        raise ValueError(f"pools must be one of {', '.join(get_args(Pools))}, not {pools!r}")
    if not 0 < width <= 8:
        raise ValueError(f"width must be in (0, 8], not {width}")
    design = DESIGNS[name]._replace(pools=pools)
    table, stem = widened(width), tuple(scaled(channels, width) for channels in STEM)
    channels = {"conv1": stem[0], "conv3": stem[2], **{block: row.out for block, row in table.items()}}
    stages = tuple(Stage(layer, channels[layer], stride) for layer, stride in ENDS.items())
    return Parts(
        trunk=_trunk(design, table, stem, stem_stride, in_channels),
        features=at_stride(stages, stem_stride),
        aux_heads={
            tap: AuxiliaryHead(channels[tap], num_classes, design.norm, pool=design.aux_pool)
            for tap in AUXILIARY_TAPS
            if aux
        },
        min_size=MINIMUM_SIZE[pools, design.last_pool][stem_stride],
    )
