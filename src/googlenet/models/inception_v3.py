"""Inception-v2 and v3: "Rethinking the Inception Architecture for Computer Vision" (Szegedy et al., 2015).

- ``inception_v2``      Table 1: a stem of 3x3 convolutions, then the blocks of figs. 5, 6 and 7;
- ``inception_v3``      the authors' released network, for which public weights exist: another stem, 5x5 convolutions
  in the blocks of the finest maps, a batch-normalized auxiliary head;
- ``inception_v3_fid``  the variant that computes the Frechet inception distance: average pools that do not count the
  padding, a max pool in the last block, 1008 classes.

The paper gives the shapes of the blocks and their total channels; the channels of each branch are those of the
released network, and the totals of both agree (288, 768, 1280, 2048). The blocks are called A, B and C as in the
Inception-v4 paper.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from torch import nn

from .blocks import Block, Branches, Layer, Pool, Table, build_trunk, get_feature_info, layer_channels
from .layers import AuxiliaryHead, Conv, ConvAuxiliaryHead, NetworkSpec, StemStride

AVG_POOL, AVG_POOL_EXCLUDE_PAD = Pool("avg"), Pool("avg", count_include_pad=False)
MAX_POOL = Pool("max")


def inception_a_v2(pool: Pool, pool_proj: int) -> Block:
    """Return the block of figure 5, for 35x35 maps: each 5x5 convolution replaced by two of 3x3."""
    return {
        "conv1x1": (Conv(64),),
        "conv3x3": (Conv(48), Conv(64, 3)),
        "double3x3": (Conv(64), Conv(96, 3), Conv(96, 3)),
        "pool": (pool, Conv(pool_proj)),
    }


def inception_a(pool: Pool, pool_proj: int) -> Block:
    """Return the released network's block for 35x35 maps: one branch with a 5x5 convolution, one with two of 3x3."""
    return {
        "conv1x1": (Conv(64),),
        "conv5x5": (Conv(48), Conv(64, 5)),
        "double3x3": (Conv(64), Conv(96, 3), Conv(96, 3)),
        "pool": (pool, Conv(pool_proj)),
    }


def inception_b(pool: Pool, inner: int, n: int = 7) -> Block:
    """Return the block of figure 6, for 17x17 maps: n x n factorized into 1 x n and n x 1, n = 7."""
    row, column = (1, n), (n, 1)
    return {
        "conv1x1": (Conv(192),),
        "conv7x7": (Conv(inner), Conv(inner, row), Conv(192, column)),
        "double7x7": (Conv(inner), Conv(inner, column), Conv(inner, row), Conv(inner, column), Conv(192, row)),
        "pool": (pool, Conv(192)),
    }


def inception_c(pool: Pool) -> Block:
    """Return the block of figure 7, for 8x8 maps: parallel 1x3 and 3x1 convolutions at the end of two branches."""
    return {
        "conv1x1": (Conv(320),),
        "conv3x3": (Conv(384), BRANCH_1X3_3X1),
        "double3x3": (Conv(448), Conv(384, 3), BRANCH_1X3_3X1),
        "pool": (pool, Conv(192)),
    }


BRANCH_1X3_3X1 = Branches({"conv1x3": (Conv(384, (1, 3)),), "conv3x1": (Conv(384, (3, 1)),)})

# Grid reductions: parallel convolutions and pool of stride 2 (figure 10), to 17x17 and to 8x8.
REDUCTION_A: Block = {
    "conv3x3": (Conv(384, 3, 2, "valid"),),
    "double3x3": (Conv(64), Conv(96, 3), Conv(96, 3, 2, "valid")),
    "pool": (Pool("max", 2),),
}
REDUCTION_B: Block = {
    "conv3x3": (Conv(192), Conv(320, 3, 2, "valid")),
    "conv7x7": (Conv(192), Conv(192, (1, 7)), Conv(192, (7, 1)), Conv(192, 3, 2, "valid")),
    "pool": (Pool("max", 2),),
}


def stem(stem_stride: StemStride) -> Table:
    """Return the first four rows of Table 1, which all three networks and Inception-ResNet-v2 begin with."""
    return {
        "conv1": Conv(32, 3, 2 if stem_stride == 4 else 1, "valid"),
        "conv2": Conv(32, 3, 1, "valid"),
        "conv3": Conv(64, 3),
        **({"pool1": Pool("max", 2)} if stem_stride > 1 else {}),
    }


# The rest of the stem, to 35x35 maps: that of Table 1, and that of the released network.
STEM_END_PAPER: Table = {"conv4": Conv(80, 3, 1, "valid"), "conv5": Conv(192, 3, 2, "valid"), "conv6": Conv(288, 3)}
STEM_END_RELEASED: Table = {"conv4": Conv(80, 1), "conv5": Conv(192, 3, 1, "valid"), "pool2": Pool("max", 2)}

# Table 1: 3 x figure 5, 5 x figure 6, 2 x figure 7, with reductions between them as the text describes. The table
# says that all five blocks on 17x17x768 maps are of figure 6; the released network has four. Counting a factorized
# pair as one layer, five blocks give the 42 layers of section 6.
BLOCKS_V2: Mapping[str, Block] = {
    "mixed_5b": inception_a_v2(AVG_POOL, 64),
    "mixed_5c": inception_a_v2(AVG_POOL, 64),
    "mixed_5d": inception_a_v2(AVG_POOL, 64),
    "mixed_6a": REDUCTION_A,
    "mixed_6b": inception_b(AVG_POOL, 128),
    "mixed_6c": inception_b(AVG_POOL, 160),
    "mixed_6d": inception_b(AVG_POOL, 160),
    "mixed_6e": inception_b(AVG_POOL, 160),
    "mixed_6f": inception_b(AVG_POOL, 192),
    "mixed_7a": REDUCTION_B,
    "mixed_7b": inception_c(AVG_POOL),
    "mixed_7c": inception_c(AVG_POOL),
}


def blocks_v3(pool: Pool = AVG_POOL, last_pool: Pool = AVG_POOL) -> Mapping[str, Block]:
    """Return the released network's blocks, with TF-slim's names."""
    return {
        "mixed_5b": inception_a(pool, 32),
        "mixed_5c": inception_a(pool, 64),
        "mixed_5d": inception_a(pool, 64),
        "mixed_6a": REDUCTION_A,
        "mixed_6b": inception_b(pool, 128),
        "mixed_6c": inception_b(pool, 160),
        "mixed_6d": inception_b(pool, 160),
        "mixed_6e": inception_b(pool, 192),
        "mixed_7a": REDUCTION_B,
        "mixed_7b": inception_c(pool),
        "mixed_7c": inception_c(last_pool),
    }


class Design(NamedTuple):
    """The differences between the variants.

    `stride_4_layer` is the deepest layer at stride 4. `aux_layer` is the last layer at 17x17, whose output the
    auxiliary head takes.
    """

    stem_end: Table
    blocks: Mapping[str, Block]
    stride_4_layer: str
    aux_layer: str
    aux_head: Literal["plain", "batch-normalized"]


DESIGNS: dict[str, Design] = {
    "inception_v2": Design(STEM_END_PAPER, BLOCKS_V2, "conv4", "mixed_6f", "plain"),
    "inception_v3": Design(STEM_END_RELEASED, blocks_v3(), "conv5", "mixed_6e", "batch-normalized"),
    "inception_v3_fid": Design(
        STEM_END_RELEASED, blocks_v3(AVG_POOL_EXCLUDE_PAD, MAX_POOL), "conv5", "mixed_6e", "batch-normalized"
    ),
}

# The smallest height and width for which the last reduction has an output pixel.
MIN_SIZE: dict[StemStride, int] = {4: 75, 2: 39, 1: 21}


def default_config(name: str) -> dict[str, Any]:
    """Return the model's own options with their default values. Dropout is that of the authors' code (keep 0.8)."""
    # The pools of the variant for FID are a part of its definition.
    pools = {} if name == "inception_v3_fid" else {"count_include_pad": True}
    return {"init": "truncated_normal", "dropout": 0.2, **pools}


def exclude_padding(block: Block) -> Block:
    """Return the block with average pools that do not count the zeros of the padding, as TensorFlow's."""

    def exclude(layer: Layer) -> Layer:
        return layer._replace(count_include_pad=False) if isinstance(layer, Pool) and layer.kind == "avg" else layer

    return {name: tuple(exclude(layer) for layer in branch) for name, branch in block.items()}


def build_spec(config: Mapping[str, Any]) -> NetworkSpec:
    """Build the layers of a resolved configuration."""
    design, stem_stride, num_classes = DESIGNS[config["name"]], config["stem_stride"], config["num_classes"]
    exclude = not config.get("count_include_pad", True)
    blocks = {name: Branches(exclude_padding(block) if exclude else block) for name, block in design.blocks.items()}
    table = {**stem(stem_stride), **design.stem_end, **blocks}
    channels = layer_channels(table, design.aux_layer)
    if not config["aux"]:
        aux_heads: dict[str, nn.Module] = {}
    elif design.aux_head == "plain":
        aux_heads = {design.aux_layer: AuxiliaryHead(channels, num_classes, grid=5)}
    else:
        aux_heads = {design.aux_layer: ConvAuxiliaryHead(channels, num_classes)}
    feature_layers = {"conv3": 2, design.stride_4_layer: 4, "mixed_5d": 8, design.aux_layer: 16, "mixed_7c": 32}
    return NetworkSpec(
        trunk=build_trunk(table, config["in_channels"]),
        feature_info=get_feature_info(table, feature_layers, stem_stride),
        aux_heads=aux_heads,
        min_size=MIN_SIZE[stem_stride],
    )
