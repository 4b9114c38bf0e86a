"""BN-Inception: "Batch Normalization: Accelerating Deep Network Training" (Ioffe & Szegedy, 2015), figure 5.

What TF-slim calls inception_v2; the Inception-v2 of a later paper is in `inception_v3`. Figure 5 prints 576 and 1024
channels for 4c to 4e; the sums of its own columns, and every public port, give 608, 608 and 1056.
"""

from typing import Any, Literal, NamedTuple

from .layers import StemStride
from .network import Parts
from .paths import Block, Conv, Element, Fork, Path, Pool, parts_of


class Row(NamedTuple):
    """One line of figure 5, in channels. A block with a stride has no 1x1 path and no projection behind its pool."""

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

# The deepest layers at each stride.
ENDS = {"conv1": 2, "conv3": 4, "inception_3b": 8, "inception_4d": 16, "inception_5b": 32}

# The least height and width that leaves a pixel for the second pool.
MINIMUM_SIZE: dict[StemStride, int] = {4: 7, 2: 4, 1: 2}

# That of the public weights.
EPS = 1e-5


def block(row: Row) -> Block:
    """The paths of one line: 1x1; 3x3; two 3x3 in place of GoogLeNet's 5x5; pool and projection."""
    pool: Path = (Pool(row.pool, row.stride, edge="half"),)
    paths: dict[str, Path] = {
        "conv1x1": (Conv(row.conv1x1),),
        "conv3x3": (Conv(row.reduce3x3), Conv(row.conv3x3, 3, row.stride)),
        "double3x3": (Conv(row.reduce_double3x3), Conv(row.double3x3, 3), Conv(row.double3x3, 3, row.stride)),
        "pool": (*pool, Conv(row.pool_proj)) if row.pool_proj else pool,
    }
    return {name: path for name, path in paths.items() if name != "conv1x1" or row.conv1x1}


def table(stem_stride: StemStride = 4) -> dict[str, Element]:
    """The trunk, layer by layer."""
    layers: dict[str, Element] = {"conv1": Conv(64, 7, stride=2 if stem_stride == 4 else 1)}
    if stem_stride > 1:
        layers["pool1"] = Pool("max", 2, edge="ceil")
    layers |= {"conv2": Conv(64), "conv3": Conv(192, 3), "pool2": Pool("max", 2, edge="ceil")}
    return layers | {name: Fork(block(row)) for name, row in FIGURE_5.items()}


def defaults(name: str) -> dict[str, Any]:
    """The member's own choices. The paper removed dropout."""
    return {"init": "kaiming", "dropout": 0.0}


def parts(name: str, num_classes: int, in_channels: int, aux: bool, *, stem_stride: StemStride) -> Parts:
    """The network but for its head; the paper has no auxiliary ones."""
    return parts_of(table(stem_stride), ENDS, in_channels, stem_stride, MINIMUM_SIZE, {}, EPS)
