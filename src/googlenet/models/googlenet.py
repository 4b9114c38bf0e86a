"""GoogLeNet: "Going Deeper with Convolutions" (Szegedy et al., 2014), Table 1, and two of its variants.

One table gives the widths of all three; a `Design` says what differs around them:

- ``googlenet``      the paper's: biases, local response normalisation, ceil-mode pools, dropout 0.4;
- ``googlenet_bn``   batch normalisation in place of biases and local response normalisation;
- ``googlenet_d2l``  the book chapter's ("Dive into Deep Learning", section on GoogLeNet): every pool padded,
  no normalisation, no dropout.
"""

from collections import OrderedDict
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import native
from .layers import AuxiliaryHead, ConvUnit, Init, LocalResponseNorm, Logits, MaxPool, Norm, Stage, initialise


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

# The deepest map at each stride: what `features` returns, under the name of the layer that makes it. The strides are
# those of the paper's stem; a finer stem divides them.
FEATURES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("conv1", 64, 2),
        Stage("conv3", 192, 4),
        Stage("inception_3b", 480, 8),
        Stage("inception_4e", 832, 16),
        Stage("inception_5b", 1024, 32),
    )
}

# Where the auxiliary heads listen (section 5 of the paper).
AUXILIARY_TAPS = ("inception_4a", "inception_4d")

Pools = Literal["ceil", "padded"]
StemStride = Literal[4, 2, 1]


class Design(NamedTuple):
    """What the variants differ in; the widths are Table 1's in each.

    `stem_stride` is how many input pixels side by side become one before the second convolution: 4 in the paper; 2
    without the first convolution's stride, and 1 without the first pool either, for small pictures ("Rethinking the
    Inception Architecture", section 8).
    """

    norm: Norm
    lrn: bool
    pools: Pools
    dropout: float
    init: Init
    stem_stride: StemStride = 4


DESIGNS: dict[str, Design] = {
    "googlenet": Design(norm="none", lrn=True, pools="ceil", dropout=0.4, init="truncated_normal"),
    "googlenet_bn": Design(norm="batch", lrn=False, pools="ceil", dropout=0.4, init="kaiming"),
    "googlenet_d2l": Design(norm="none", lrn=False, pools="padded", dropout=0.0, init="xavier"),
}

# The least height and width that leaves a pixel for the last pool, by stem stride (the tests find all by trying).
MINIMUM_SIZE: dict[Pools, dict[StemStride, int]] = {"ceil": {4: 31, 2: 16, 1: 8}, "padded": {4: 1, 2: 1, 1: 1}}


class Inception(nn.Module):
    """Four parallel paths over the same map, concatenated along the channels (Figure 2b of the paper)."""

    def __init__(self, in_channels: int, row: InceptionRow, norm: Norm):
        super().__init__()
        self.row = row
        self.native = False
        self.conv1x1 = ConvUnit(in_channels, row.conv1x1, 1, norm=norm)
        self.reduce3x3 = ConvUnit(in_channels, row.reduce3x3, 1, norm=norm)
        self.conv3x3 = ConvUnit(row.reduce3x3, row.conv3x3, 3, norm=norm)
        self.reduce5x5 = ConvUnit(in_channels, row.reduce5x5, 1, norm=norm)
        self.conv5x5 = ConvUnit(row.reduce5x5, row.conv5x5, 5, norm=norm)
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


class GoogLeNet(nn.Module):
    """The 22-layer network of Table 1.

    Build it with `googlenet.create`, which knows the designs by name. `min_size` is the least input height
    and width in pixels; a smaller input raises ValueError before anything is computed.
    """

    def __init__(
        self,
        design: Design,
        num_classes: int,
        in_channels: int,
        aux: bool,
        seed: int,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.min_size = MINIMUM_SIZE[design.pools][design.stem_stride]
        self.feature_info = tuple(
            stage._replace(stride=max(1, stage.stride * design.stem_stride // 4)) for stage in FEATURES.values()
        )
        # Built without storage and filled once: twenty times faster than PyTorch's own initialisation first.
        with torch.device("meta"):
            self.trunk = _trunk(design, in_channels)
            self.dropout = nn.Dropout(design.dropout)
            self.classifier = nn.Linear(TABLE_1["inception_5b"].out, num_classes)
            self.aux_heads = nn.ModuleDict()
            if aux:
                for tap in AUXILIARY_TAPS:
                    self.aux_heads[tap] = AuxiliaryHead(TABLE_1[tap].out, num_classes, design.norm)
        self.to_empty(device="cpu")
        self._init = design.init
        initialise(self, design.init, seed)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, num_classes) of pixels (batch, in_channels, h, w), in training and in evaluation."""
        return self._head(self._walk(x)[0])

    def forward_aux(self, x: Tensor) -> Logits:
        """The logits of the classifier and of every auxiliary head, in depth order; see `Logits`."""
        x, taps = self._walk(x, tuple(self.aux_heads))
        return Logits(self._head(x), tuple(head(taps[name]) for name, head in self.aux_heads.items()))

    def features(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """The maps that `feature_info` lists, shallow to deep: name -> (batch, channels, h / stride, w / stride),
        rounded up or down by at most one pixel."""
        return self._walk(x, tuple(FEATURES))[1]

    def reset_head(self, num_classes: int, seed: int = 0) -> None:
        """Replace the classifier, and the last layer of each auxiliary head, by fresh ones for `num_classes`."""
        if num_classes < 1:
            raise ValueError(f"num_classes must be 1 or more, not {num_classes}")
        self.num_classes = num_classes
        for owner, name in ((self, "classifier"), *((head, "fc2") for head in self.aux_heads.values())):
            old = getattr(owner, name)
            new = nn.Linear(old.in_features, num_classes)
            initialise(new, self._init, seed)
            setattr(owner, name, new.to(old.weight))

    def _walk(self, x: Tensor, taps: tuple[str, ...] = ()) -> tuple[Tensor, OrderedDict[str, Tensor]]:
        """Run the trunk; keep the outputs of the layers named in `taps`."""
        check_input(x, self.in_channels, self.min_size)
        kept: OrderedDict[str, Tensor] = OrderedDict()
        for name, layer in self.trunk.named_children():
            x = layer(x)
            if name in taps:
                kept[name] = x
        return x, kept

    def _head(self, x: Tensor) -> Tensor:
        """Global average pooling, dropout, linear."""
        logits: Tensor = self.classifier(self.dropout(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)))
        return logits


def check_input(x: Tensor, in_channels: int, min_size: int) -> None:
    """Raise ValueError unless `x` is a float batch (n, in_channels, h >= min_size, w >= min_size)."""
    if x.ndim != 4 or x.shape[1] != in_channels:
        raise ValueError(f"expected a batch (n, {in_channels}, height, width), got shape {tuple(x.shape)}")
    if x.shape[-2] < min_size or x.shape[-1] < min_size:
        raise ValueError(
            f"the input is {x.shape[-2]}x{x.shape[-1]} pixels; this network needs at least {min_size}x{min_size}"
        )
    if not x.is_floating_point():
        raise ValueError(f"expected float pixels, got {x.dtype}: apply Preprocess to the picture first")


def _trunk(design: Design, in_channels: int) -> nn.Sequential:
    """Everything between the pixels and global average pooling, in Table 1's order and under its names."""

    def pool() -> MaxPool:
        return MaxPool(2, padding=1) if design.pools == "padded" else MaxPool(2, ceil_mode=True)

    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv1"] = ConvUnit(in_channels, 64, 7, stride=2 if design.stem_stride == 4 else 1, norm=design.norm)
    if design.stem_stride > 1:
        layers["pool1"] = pool()
    if design.lrn:
        layers["norm1"] = LocalResponseNorm()
    layers["conv2"] = ConvUnit(64, 64, 1, norm=design.norm)
    layers["conv3"] = ConvUnit(64, 192, 3, norm=design.norm)
    if design.lrn:
        layers["norm2"] = LocalResponseNorm()
    channels = 192
    for name, row in TABLE_1.items():
        pool_before = {"inception_3a": "pool2", "inception_4a": "pool3", "inception_5a": "pool4"}.get(name)
        if pool_before:
            layers[pool_before] = pool()
        layers[name] = Inception(channels, row, design.norm)
        channels = row.out
    return nn.Sequential(layers)


def resolve(
    name: str,
    init: Init | None = None,
    dropout: float | None = None,
    pools: Pools | None = None,
    stem_stride: StemStride | None = None,
) -> Design:
    """The design `name` with single choices replaced; ValueError for an impossible one."""
    design = DESIGNS[name]
    design = design._replace(
        init=init or design.init,
        dropout=design.dropout if dropout is None else dropout,
        pools=pools or design.pools,
        stem_stride=design.stem_stride if stem_stride is None else stem_stride,
    )
    if not 0.0 <= design.dropout < 1.0:
        raise ValueError(f"dropout must be in [0, 1), not {design.dropout}")
    if design.pools not in MINIMUM_SIZE:
        raise ValueError(f"pools must be one of {', '.join(MINIMUM_SIZE)}, not {design.pools!r}")
    if design.stem_stride not in MINIMUM_SIZE[design.pools]:
        raise ValueError(f"stem_stride must be 4, 2 or 1, not {design.stem_stride!r}")
    return design


def build(
    name: str,
    num_classes: int,
    in_channels: int,
    aux: bool,
    *,
    init: Init | None = None,
    dropout: float | None = None,
    pools: Pools | None = None,
    stem_stride: StemStride | None = None,
    seed: int = 0,
) -> GoogLeNet:
    """Build the design `name`, with single choices replaced: see `Design`, and `initialise` for `init`."""
    return GoogLeNet(resolve(name, init, dropout, pools, stem_stride), num_classes, in_channels, aux, seed)
