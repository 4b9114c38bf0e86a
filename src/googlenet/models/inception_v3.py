"""Inception-v2 and v3: "Rethinking the Inception Architecture for Computer Vision" (Szegedy et al., 2015).

- ``inception_v2``      Table 1: a stem of 3x3 convolutions, then the blocks of figures 5, 6 and 7;
- ``inception_v3``      the authors' released network, which all public weights are of: another stem, 5x5 kept in the
  blocks of the finest maps, a batch-normalised auxiliary head;
- ``inception_v3_fid``  the same as it computes the Frechet inception distance: average pools that do not count the
  padding, a max pool in the last block, 1008 classes.

The paper gives the blocks' shapes and their total channels; the width of each path is that of the released network,
and the totals of both agree (288, 768, 1280, 2048).
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from torch import nn

from .layers import AuxiliaryHead, ConvAuxiliaryHead, StemStride
from .network import Parts
from .paths import Block, Conv, Element, Fork, Pool, parts_of, trunk_channels

AVERAGE, AVERAGE_INSIDE = Pool("avg"), Pool("avg", counts_padding=False)
MAX = Pool("max")


def two_3x3(pool: Pool, pool_proj: int) -> Block:
    """Figure 5, on 35x35 maps: each 5x5 replaced by two 3x3."""
    return {
        "conv1x1": (Conv(64),),
        "conv3x3": (Conv(48), Conv(64, 3)),
        "double3x3": (Conv(64), Conv(96, 3), Conv(96, 3)),
        "pool": (pool, Conv(pool_proj)),
    }


def with_5x5(pool: Pool, pool_proj: int) -> Block:
    """The released network's block on 35x35 maps: one 5x5 left whole beside two 3x3."""
    return {
        "conv1x1": (Conv(64),),
        "conv5x5": (Conv(48), Conv(64, 5)),
        "double3x3": (Conv(64), Conv(96, 3), Conv(96, 3)),
        "pool": (pool, Conv(pool_proj)),
    }


def factorised(pool: Pool, inner: int, n: int = 7) -> Block:
    """Figure 6, on 17x17 maps: n x n factorised into 1 x n and n x 1, n = 7."""
    row, column = (1, n), (n, 1)
    return {
        "conv1x1": (Conv(192),),
        "conv7x7": (Conv(inner), Conv(inner, row), Conv(192, column)),
        "double7x7": (Conv(inner), Conv(inner, column), Conv(inner, row), Conv(inner, column), Conv(192, row)),
        "pool": (pool, Conv(192)),
    }


def expanded(pool: Pool) -> Block:
    """Figure 7, on 8x8 maps: filter banks spread side by side."""
    bank = Fork({"conv1x3": (Conv(384, (1, 3)),), "conv3x1": (Conv(384, (3, 1)),)})
    return {
        "conv1x1": (Conv(320),),
        "conv3x3": (Conv(384), bank),
        "double3x3": (Conv(448), Conv(384, 3), bank),
        "pool": (pool, Conv(192)),
    }


# Grid reductions by convolution and pool of stride 2 side by side (figure 10).
REDUCTION_TO_17: Block = {
    "conv3x3": (Conv(384, 3, 2, "valid"),),
    "double3x3": (Conv(64), Conv(96, 3), Conv(96, 3, 2, "valid")),
    "pool": (Pool("max", 2),),
}
REDUCTION_TO_8: Block = {
    "conv3x3": (Conv(192), Conv(320, 3, 2, "valid")),
    "conv7x7": (Conv(192), Conv(192, (1, 7)), Conv(192, (7, 1)), Conv(192, 3, 2, "valid")),
    "pool": (Pool("max", 2),),
}


def stem(stem_stride: StemStride) -> dict[str, Element]:
    """The first four lines of Table 1, which all three networks and Inception-ResNet-v2 begin with."""
    layers: dict[str, Element] = {
        "conv1": Conv(32, 3, 2 if stem_stride == 4 else 1, "valid"),
        "conv2": Conv(32, 3, 1, "valid"),
        "conv3": Conv(64, 3),
    }
    if stem_stride > 1:
        layers["pool1"] = Pool("max", 2)
    return layers


# The rest of the stem to 35x35 maps: Table 1's, and the released network's.
TO_35_PAPER: dict[str, Element] = {
    "conv4": Conv(80, 3, 1, "valid"),
    "conv5": Conv(192, 3, 2, "valid"),
    "conv6": Conv(288, 3),
}
TO_35_RELEASED: dict[str, Element] = {
    "conv4": Conv(80, 1),
    "conv5": Conv(192, 3, 1, "valid"),
    "pool2": Pool("max", 2),
}


def blocks_v2() -> dict[str, Block]:
    """Table 1: 3 x figure 5, 5 x figure 6, 2 x figure 7, with reductions between them as the text says.

    The table is read to the letter: its five blocks on 17x17x768 maps are all of figure 6. (The released network has
    four; counting a factorised pair as one layer, five give the 42 layers that section 6 speaks of.)
    """
    return {
        "mixed_5b": two_3x3(AVERAGE, 64),
        "mixed_5c": two_3x3(AVERAGE, 64),
        "mixed_5d": two_3x3(AVERAGE, 64),
        "mixed_6a": REDUCTION_TO_17,
        "mixed_6b": factorised(AVERAGE, 128),
        "mixed_6c": factorised(AVERAGE, 160),
        "mixed_6d": factorised(AVERAGE, 160),
        "mixed_6e": factorised(AVERAGE, 160),
        "mixed_6f": factorised(AVERAGE, 192),
        "mixed_7a": REDUCTION_TO_8,
        "mixed_7b": expanded(AVERAGE),
        "mixed_7c": expanded(AVERAGE),
    }


def blocks_v3(pool: Pool = AVERAGE, last_pool: Pool = AVERAGE) -> dict[str, Block]:
    """The released network's blocks, under TF-slim's names."""
    return {
        "mixed_5b": with_5x5(pool, 32),
        "mixed_5c": with_5x5(pool, 64),
        "mixed_5d": with_5x5(pool, 64),
        "mixed_6a": REDUCTION_TO_17,
        "mixed_6b": factorised(pool, 128),
        "mixed_6c": factorised(pool, 160),
        "mixed_6d": factorised(pool, 160),
        "mixed_6e": factorised(pool, 192),
        "mixed_7a": REDUCTION_TO_8,
        "mixed_7b": expanded(pool),
        "mixed_7c": expanded(last_pool),
    }


class Design(NamedTuple):
    """What the members differ in. `tap` is the layer that the auxiliary head listens to, the last at 17x17."""

    to_35: Mapping[str, Element]
    blocks: Mapping[str, Block]
    tap: str
    aux_head: Literal["plain", "batch-normalised"]


DESIGNS: dict[str, Design] = {
    "inception_v2": Design(TO_35_PAPER, blocks_v2(), "mixed_6f", "plain"),
    "inception_v3": Design(TO_35_RELEASED, blocks_v3(), "mixed_6e", "batch-normalised"),
    "inception_v3_fid": Design(TO_35_RELEASED, blocks_v3(AVERAGE_INSIDE, MAX), "mixed_6e", "batch-normalised"),
}

# The least height and width that leaves a pixel for the last reduction.
MINIMUM_SIZE: dict[StemStride, int] = {4: 75, 2: 39, 1: 21}


def table(name: str, stem_stride: StemStride = 4) -> dict[str, Element]:
    """The trunk of a design, layer by layer."""
    design = DESIGNS[name]
    return {**stem(stem_stride), **design.to_35, **{name: Fork(block) for name, block in design.blocks.items()}}


def defaults(name: str) -> dict[str, Any]:
    """The member's own choices. Dropout as in the authors' code, which keeps 0.8."""
    return {"init": "truncated_normal", "dropout": 0.2}


def ends(name: str) -> dict[str, int]:
    """The deepest layers at each stride. (The convolution to 192 channels of Table 1 has a stride: it is at 8.)"""
    at_4 = "conv4" if name == "inception_v2" else "conv5"
    return {"conv3": 2, at_4: 4, "mixed_5d": 8, DESIGNS[name].tap: 16, "mixed_7c": 32}


def parts(name: str, num_classes: int, in_channels: int, aux: bool, *, stem_stride: StemStride) -> Parts:
    """The network but for its head."""
    design, layers = DESIGNS[name], table(name, stem_stride)
    into = trunk_channels(layers, design.tap)
    if design.aux_head == "plain":
        head: nn.Module = AuxiliaryHead(into, num_classes, grid=5)
    else:
        head = ConvAuxiliaryHead(into, num_classes)
    heads = {design.tap: head} if aux else {}
    return parts_of(layers, ends(name), in_channels, stem_stride, MINIMUM_SIZE, heads)
