"""Inception-v4 and Inception-ResNet-v2: "Inception-v4, Inception-ResNet and the Impact of Residual Connections on
Learning" (Szegedy et al., 2016).

- ``inception_v4``               figs. 3 to 9, and the authors' released network, which agree;
- ``inception_resnet_v2``        the authors' released network, for which public weights exist: Inception-v3's stem,
  10, 20 and 10 residual blocks, a last 1x1 convolution to 1536;
- ``inception_resnet_v2_paper``  figs. 3 and 15 to 19: Inception-v4's stem, 5, 10 and 5 residual blocks. They
  print 1154 and 2048 channels for the residual branches; an addition needs the sums of their columns, 1152 and 2144.
"""

from collections.abc import Mapping
from typing import Any

from .blocks import Block, Branches, Pool, ResidualBlock, Table, build_trunk, get_feature_info
from .inception_v3 import STEM_END_RELEASED, stem
from .layers import Conv, NetworkSpec, StemStride

AVG_POOL = Pool("avg", count_include_pad=False)
ROW_7, COLUMN_7, ROW_3, COLUMN_3 = (1, 7), (7, 1), (1, 3), (3, 1)

# Inception-v4, figs. 4 to 8.
INCEPTION_A: Block = {
    "conv1x1": (Conv(96),),
    "conv3x3": (Conv(64), Conv(96, 3)),
    "double3x3": (Conv(64), Conv(96, 3), Conv(96, 3)),
    "pool": (AVG_POOL, Conv(96)),
}
INCEPTION_B: Block = {
    "conv1x1": (Conv(384),),
    "conv7x7": (Conv(192), Conv(224, ROW_7), Conv(256, COLUMN_7)),
    "double7x7": (Conv(192), Conv(192, COLUMN_7), Conv(224, ROW_7), Conv(224, COLUMN_7), Conv(256, ROW_7)),
    "pool": (AVG_POOL, Conv(128)),
}
BRANCH_1X3_3X1 = Branches({"conv1x3": (Conv(256, ROW_3),), "conv3x1": (Conv(256, COLUMN_3),)})
INCEPTION_C: Block = {
    "conv1x1": (Conv(256),),
    "conv3x3": (Conv(384), BRANCH_1X3_3X1),
    "double3x3": (Conv(384), Conv(448, COLUMN_3), Conv(512, ROW_3), BRANCH_1X3_3X1),
    "pool": (AVG_POOL, Conv(256)),
}
REDUCTION_B: Block = {
    "conv3x3": (Conv(192), Conv(192, 3, 2, "valid")),
    "conv7x7": (Conv(256), Conv(256, ROW_7), Conv(320, COLUMN_7), Conv(320, 3, 2, "valid")),
    "pool": (Pool("max", 2),),
}


def reduction_a(k: int, l: int, m: int, n: int) -> Block:  # noqa: E741  the paper's letters (Table 1)
    """Return the block of figure 7, from 35x35 to 17x17."""
    return {
        "conv3x3": (Conv(n, 3, 2, "valid"),),
        "double3x3": (Conv(k), Conv(l, 3), Conv(m, 3, 2, "valid")),
        "pool": (Pool("max", 2),),
    }


def v4_stem(stem_stride: StemStride) -> Table:
    """Return figure 3: parallel convolution and pool of stride 2, then two branches, then parallel ones again."""
    stride = 2 if stem_stride > 1 else 1
    conv = Conv(96, 3, stride, "valid" if stride == 2 else "same")
    return {
        "conv1": Conv(32, 3, 2 if stem_stride == 4 else 1, "valid"),
        "conv2": Conv(32, 3, 1, "valid"),
        "conv3": Conv(64, 3),
        "stem_3a": Branches({"pool": (Pool("max", stride),), "conv3x3": (conv,)}),
        "stem_4a": Branches(
            {
                "conv3x3": (Conv(64), Conv(96, 3, 1, "valid")),
                "conv7x7": (Conv(64), Conv(64, ROW_7), Conv(64, COLUMN_7), Conv(96, 3, 1, "valid")),
            }
        ),
        "stem_5a": Branches({"conv3x3": (Conv(192, 3, 2, "valid"),), "pool": (Pool("max", 2),)}),
    }


# Inception-ResNet-v2, figs. 16 to 19. The released network has the same branches on maps with fewer channels.
RESIDUAL_A: Block = {
    "conv1x1": (Conv(32),),
    "conv3x3": (Conv(32), Conv(32, 3)),
    "double3x3": (Conv(32), Conv(48, 3), Conv(64, 3)),
}
RESIDUAL_B: Block = {"conv1x1": (Conv(192),), "conv7x7": (Conv(128), Conv(160, ROW_7), Conv(192, COLUMN_7))}
RESIDUAL_C: Block = {"conv1x1": (Conv(192),), "conv3x3": (Conv(192), Conv(224, ROW_3), Conv(256, COLUMN_3))}
RESIDUAL_REDUCTION_B: Block = {
    "conv3x3a": (Conv(256), Conv(384, 3, 2, "valid")),
    "conv3x3b": (Conv(256), Conv(288, 3, 2, "valid")),
    "double3x3": (Conv(256), Conv(288, 3), Conv(320, 3, 2, "valid")),
    "pool": (Pool("max", 2),),
}
# The released network's first block, from 192 to 320 channels.
MIXED_5B: Block = {
    "conv1x1": (Conv(96),),
    "conv5x5": (Conv(48), Conv(64, 5)),
    "double3x3": (Conv(64), Conv(96, 3), Conv(96, 3)),
    "pool": (AVG_POOL, Conv(64)),
}


def repeat(name: str, times: int, layer: Branches | ResidualBlock) -> dict[str, Branches | ResidualBlock]:
    """Return the same layer `times` times, numbered from 1."""
    return {f"{name}_{number}": layer for number in range(1, times + 1)}


def trunk_table(name: str, stem_stride: StemStride) -> Table:
    """Return the layers of the model's trunk."""
    match name:
        case "inception_v4":
            return {
                **v4_stem(stem_stride),
                **repeat("inception_a", 4, Branches(INCEPTION_A)),
                "reduction_a": Branches(reduction_a(k=192, l=224, m=256, n=384)),
                **repeat("inception_b", 7, Branches(INCEPTION_B)),
                "reduction_b": Branches(REDUCTION_B),
                **repeat("inception_c", 3, Branches(INCEPTION_C)),
            }
        case "inception_resnet_v2":
            return {
                **stem(stem_stride),
                **STEM_END_RELEASED,
                "mixed_5b": Branches(MIXED_5B),
                **repeat("inception_a", 10, ResidualBlock(RESIDUAL_A, 0.17)),
                "reduction_a": Branches(reduction_a(k=256, l=256, m=384, n=384)),
                **repeat("inception_b", 20, ResidualBlock(RESIDUAL_B, 0.10)),
                "reduction_b": Branches(RESIDUAL_REDUCTION_B),
                **repeat("inception_c", 9, ResidualBlock(RESIDUAL_C, 0.20)),
                # The last block has neither scale nor ReLU.
                "inception_c_10": ResidualBlock(RESIDUAL_C, 1.0, relu=False),
                "conv7": Conv(1536),
            }
        case "inception_resnet_v2_paper":
            return {
                **v4_stem(stem_stride),
                **repeat("inception_a", 5, ResidualBlock(RESIDUAL_A, 0.17)),
                "reduction_a": Branches(reduction_a(k=256, l=256, m=384, n=384)),
                **repeat("inception_b", 10, ResidualBlock(RESIDUAL_B, 0.10)),
                "reduction_b": Branches(RESIDUAL_REDUCTION_B),
                **repeat("inception_c", 5, ResidualBlock(RESIDUAL_C, 0.20)),
            }
        case _:
            raise KeyError(name)


# The deepest layer at each stride.
FEATURE_LAYERS: dict[str, dict[str, int]] = {
    "inception_v4": {"conv3": 2, "stem_4a": 4, "inception_a_4": 8, "inception_b_7": 16, "inception_c_3": 32},
    "inception_resnet_v2": {"conv3": 2, "conv5": 4, "inception_a_10": 8, "inception_b_20": 16, "conv7": 32},
    "inception_resnet_v2_paper": {
        "conv3": 2, "stem_4a": 4, "inception_a_5": 8, "inception_b_10": 16, "inception_c_5": 32,
    },
}  # fmt: skip

# The smallest height and width for which the last reduction has an output pixel.
MIN_SIZE: dict[StemStride, int] = {4: 75, 2: 39, 1: 21}


def default_config(name: str) -> dict[str, Any]:
    """Return the model's own options with their default values. Dropout is that of fig. 9 and fig. 15 (keep 0.8)."""
    return {"init": "truncated_normal", "dropout": 0.2}


def build_spec(config: Mapping[str, Any]) -> NetworkSpec:
    """Build the layers of a resolved configuration. The paper defines no auxiliary heads."""
    name, stem_stride = config["name"], config["stem_stride"]
    table = trunk_table(name, stem_stride)
    return NetworkSpec(
        trunk=build_trunk(table, config["in_channels"]),
        feature_info=get_feature_info(table, FEATURE_LAYERS[name], stem_stride),
        aux_heads={},
        min_size=MIN_SIZE[stem_stride],
    )
