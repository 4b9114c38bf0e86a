"""BN-Inception: "Batch Normalization: Accelerating Deep Network Training" (Ioffe & Szegedy, 2015), figure 5.

TF-slim calls this network inception_v2; the Inception-v2 of the later paper is in `inception_v3`. Figure 5 prints 576
and 1024 channels for 4c to 4e; the sums of its own columns, and every public port, give 608, 608 and 1056.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from .blocks import Block, Branch, Branches, Pool, Table, build_trunk, get_feature_info
from .layers import Conv, NetworkSpec, StemStride


class Row(NamedTuple):
    """One row of figure 5, in channels. A block with a stride has no 1x1 branch and no projection after its pool."""

    conv1x1: int
    reduce3x3: int
    conv3x3: int
    reduce_double3x3: int
    double3x3: int
    pool: Literal["avg", "max"]
    pool_proj: int
    stride: int = 1


FIGURE_5: dict[str, Row] = {
    #                    1x1 red. 3x3 red. double   pool
    "inception_3a": Row(64, 64, 64, 64, 96, "avg", 32),
    "inception_3b": Row(64, 64, 96, 64, 96, "avg", 64),
    "inception_3c": Row(0, 128, 160, 64, 96, "max", 0, stride=2),
    "inception_4a": Row(224, 64, 96, 96, 128, "avg", 128),
    "inception_4b": Row(192, 96, 128, 96, 128, "avg", 128),
    "inception_4c": Row(160, 128, 160, 128, 160, "avg", 128),
    "inception_4d": Row(96, 128, 192, 160, 192, "avg", 128),
    "inception_4e": Row(0, 128, 192, 192, 256, "max", 0, stride=2),
    "inception_5a": Row(352, 192, 320, 160, 224, "avg", 128),
    "inception_5b": Row(352, 192, 320, 192, 224, "max", 128),
}

# The deepest layer at each stride.
FEATURE_LAYERS = {"conv1": 2, "conv3": 4, "inception_3b": 8, "inception_4d": 16, "inception_5b": 32}

# The smallest height and width for which the second pool has an output pixel.
MIN_SIZE: dict[StemStride, int] = {4: 7, 2: 4, 1: 2}

# The epsilon of batch normalization in the public weights.
EPS = 1e-5


def block(row: Row) -> Block:
    """Return the branches of one row: 1x1; 3x3; two 3x3 instead of GoogLeNet's 5x5; pool and projection."""
    pool: Branch = (Pool(row.pool, row.stride, edge="half"),)
    branches: dict[str, Branch] = {
        "conv1x1": (Conv(row.conv1x1),),
        "conv3x3": (Conv(row.reduce3x3), Conv(row.conv3x3, 3, row.stride)),
        "double3x3": (Conv(row.reduce_double3x3), Conv(row.double3x3, 3), Conv(row.double3x3, 3, row.stride)),
        "pool": (*pool, Conv(row.pool_proj)) if row.pool_proj else pool,
    }
    return {name: branch for name, branch in branches.items() if name != "conv1x1" or row.conv1x1}


def trunk_table(stem_stride: StemStride) -> Table:
    """Return the layers of the trunk."""
    pool = Pool("max", 2, edge="ceil")
    return {
        "conv1": Conv(64, 7, stride=2 if stem_stride == 4 else 1),
        **({"pool1": pool} if stem_stride > 1 else {}),
        "conv2": Conv(64),
        "conv3": Conv(192, 3),
        "pool2": pool,
        **{name: Branches(block(row)) for name, row in FIGURE_5.items()},
    }


def default_config(name: str) -> dict[str, Any]:
    """Return the model's own options with their default values. The paper removed dropout."""
    return {"init": "kaiming", "dropout": 0.0}


def build_spec(config: Mapping[str, Any]) -> NetworkSpec:
    """Build the layers of a resolved configuration. The paper defines no auxiliary heads."""
    stem_stride = config["stem_stride"]
    table = trunk_table(stem_stride)
    return NetworkSpec(
        trunk=build_trunk(table, config["in_channels"], EPS),
        feature_info=get_feature_info(table, FEATURE_LAYERS, stem_stride),
        aux_heads={},
        min_size=MIN_SIZE[stem_stride],
    )
