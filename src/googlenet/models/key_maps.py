"""What other libraries call the layers of their networks: literal tables, and nothing but tables.

An `Origin` says which member of the family a library's network is, and what each of its layers is called there.
"""

from collections.abc import Mapping
from typing import NamedTuple

Names = Mapping[str, str]

# A convolution with its normalisation, and a linear layer (or a convolution alone): our names -> theirs, behind the
# layer's own.
UNIT: Names = {
    "conv.weight": ".conv.weight",
    "norm.weight": ".bn.weight",
    "norm.bias": ".bn.bias",
    "norm.running_mean": ".bn.running_mean",
    "norm.running_var": ".bn.running_var",
    "norm.num_batches_tracked": ".bn.num_batches_tracked",
}
LINEAR: Names = {"weight": ".weight", "bias": ".bias"}
# BN-Inception's port has its normalisations beside the convolutions, and biases in front of them as well.
UNIT_APART: Names = {
    "conv.weight": ".weight",
    "norm.weight": "_bn.weight",
    "norm.bias": "_bn.bias",
    "norm.running_mean": "_bn.running_mean",
    "norm.running_var": "_bn.running_var",
    "norm.num_batches_tracked": "_bn.num_batches_tracked",
}
# A Caffe layer's blobs are numbered.
CAFFE_UNIT: Names = {"conv.weight": ".0", "conv.bias": ".1"}
CAFFE_LINEAR: Names = {"weight": ".0", "bias": ".1"}


class Origin(NamedTuple):
    """A network of another library.

    `model` is its name in our catalogue. `units` (convolution, normalisation, ReLU) and `linears` are our layers with
    theirs; `unit` and `linear` the names of the tensors in each. `bgr`: its pixels come blue first. `biased`: its
    convolutions have biases in front of their normalisations.
    """

    model: str
    units: Names
    linears: Names
    unit: Names = UNIT
    linear: Names = LINEAR
    bgr: bool = False
    biased: bool = False


def chain(ours: str, theirs: str, count: int, first: int = 0) -> dict[str, str]:
    """The layers of a path of ours, 0, 1, ..., and theirs, which are numbered from `first`."""
    return {f"{ours}.{number}": f"{theirs}{first + number}" for number in range(count)}


def inside(ours: str, theirs: str, block: Names) -> dict[str, str]:
    """The entries of a `block`'s table, behind the block's own name there and here."""
    return {f"{ours}.{mine}": f"{theirs}{other}" for mine, other in block.items()}


# torchvision's googlenet ------------------------------------------------------------------------------------------

_V1_BLOCKS = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
_TORCHVISION_V1: Names = {
    "conv1x1": ".branch1",
    "reduce3x3": ".branch2.0",
    "conv3x3": ".branch2.1",
    "reduce5x5": ".branch3.0",
    "conv5x5": ".branch3.1",
    "pool_proj": ".branch4.1",
}
TORCHVISION_GOOGLENET = Origin(
    "googlenet_torchvision",
    units={
        **{f"trunk.conv{n}": f"conv{n}" for n in (1, 2, 3)},
        **{
            mine: other
            for block in _V1_BLOCKS
            for mine, other in inside(f"trunk.inception_{block}", f"inception{block}", _TORCHVISION_V1).items()
        },
        "aux_heads.inception_4a.conv": "aux1.conv",
        "aux_heads.inception_4d.conv": "aux2.conv",
    },
    linears={
        "aux_heads.inception_4a.fc1": "aux1.fc1",
        "aux_heads.inception_4a.fc2": "aux1.fc2",
        "aux_heads.inception_4d.fc1": "aux2.fc1",
        "aux_heads.inception_4d.fc2": "aux2.fc2",
        "classifier": "fc",
    },
)

# BVLC's Caffe GoogLeNet, the paper's network ----------------------------------------------------------------------

_CAFFE_V1: Names = {
    "conv1x1": "/1x1",
    "reduce3x3": "/3x3_reduce",
    "conv3x3": "/3x3",
    "reduce5x5": "/5x5_reduce",
    "conv5x5": "/5x5",
    "pool_proj": "/pool_proj",
}
CAFFE_GOOGLENET = Origin(
    "googlenet",
    units={
        "trunk.conv1": "conv1/7x7_s2",
        "trunk.conv2": "conv2/3x3_reduce",
        "trunk.conv3": "conv2/3x3",
        **{
            mine: other
            for block in _V1_BLOCKS
            for mine, other in inside(f"trunk.inception_{block}", f"inception_{block}", _CAFFE_V1).items()
        },
        "aux_heads.inception_4a.conv": "loss1/conv",
        "aux_heads.inception_4d.conv": "loss2/conv",
    },
    linears={
        "aux_heads.inception_4a.fc1": "loss1/fc",
        "aux_heads.inception_4a.fc2": "loss1/classifier",
        "aux_heads.inception_4d.fc1": "loss2/fc",
        "aux_heads.inception_4d.fc2": "loss2/classifier",
        "classifier": "loss3/classifier",
    },
    unit=CAFFE_UNIT,
    linear=CAFFE_LINEAR,
    bgr=True,
)

# BN-Inception's public PyTorch port (pretrainedmodels, "bninception") ---------------------------------------------

_BN_WHOLE: Names = {
    "conv1x1.0": "_1x1",
    "conv3x3.0": "_3x3_reduce",
    "conv3x3.1": "_3x3",
    "double3x3.0": "_double_3x3_reduce",
    "double3x3.1": "_double_3x3_1",
    "double3x3.2": "_double_3x3_2",
    "pool.1": "_pool_proj",
}
_BN_REDUCTION: Names = {name: other for name, other in _BN_WHOLE.items() if name not in ("conv1x1.0", "pool.1")}
BNINCEPTION = Origin(
    "bn_inception",
    units={
        "trunk.conv1": "conv1_7x7_s2",
        "trunk.conv2": "conv2_3x3_reduce",
        "trunk.conv3": "conv2_3x3",
        **{
            mine: other
            for block in ("3a", "3b", "3c", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
            for mine, other in inside(
                f"trunk.inception_{block}",
                f"inception_{block}",
                _BN_REDUCTION if block in ("3c", "4e") else _BN_WHOLE,
            ).items()
        },
    },
    linears={"classifier": "last_linear"},
    unit=UNIT_APART,
    bgr=True,
    biased=True,
)

# Inception-v3: torchvision's and timm's names are the same, and so are those of the network for the FID -----------

_V3_35: Names = {
    "conv1x1.0": ".branch1x1",
    **chain("conv5x5", ".branch5x5_", 2, first=1),
    **chain("double3x3", ".branch3x3dbl_", 3, first=1),
    "pool.1": ".branch_pool",
}
_V3_TO_17: Names = {
    "conv3x3.0": ".branch3x3",
    **chain("double3x3", ".branch3x3dbl_", 3, first=1),
}
_V3_17: Names = {
    "conv1x1.0": ".branch1x1",
    **chain("conv7x7", ".branch7x7_", 3, first=1),
    **chain("double7x7", ".branch7x7dbl_", 5, first=1),
    "pool.1": ".branch_pool",
}
_V3_TO_8: Names = {
    **chain("conv3x3", ".branch3x3_", 2, first=1),
    **chain("conv7x7", ".branch7x7x3_", 4, first=1),
}
_V3_8: Names = {
    "conv1x1.0": ".branch1x1",
    "conv3x3.0": ".branch3x3_1",
    "conv3x3.1.conv1x3.0": ".branch3x3_2a",
    "conv3x3.1.conv3x1.0": ".branch3x3_2b",
    **chain("double3x3", ".branch3x3dbl_", 2, first=1),
    "double3x3.2.conv1x3.0": ".branch3x3dbl_3a",
    "double3x3.2.conv3x1.0": ".branch3x3dbl_3b",
    "pool.1": ".branch_pool",
}
_V3_BLOCKS: Mapping[str, Names] = {
    **dict.fromkeys(("5b", "5c", "5d"), _V3_35),
    "6a": _V3_TO_17,
    **dict.fromkeys(("6b", "6c", "6d", "6e"), _V3_17),
    "7a": _V3_TO_8,
    **dict.fromkeys(("7b", "7c"), _V3_8),
}
INCEPTION_V3 = Origin(
    "inception_v3",
    units={
        "trunk.conv1": "Conv2d_1a_3x3",
        "trunk.conv2": "Conv2d_2a_3x3",
        "trunk.conv3": "Conv2d_2b_3x3",
        "trunk.conv4": "Conv2d_3b_1x1",
        "trunk.conv5": "Conv2d_4a_3x3",
        **{
            mine: other
            for block, names in _V3_BLOCKS.items()
            for mine, other in inside(f"trunk.mixed_{block}", f"Mixed_{block}", names).items()
        },
        "aux_heads.mixed_6e.conv1": "AuxLogits.conv0",
        "aux_heads.mixed_6e.conv2": "AuxLogits.conv1",
    },
    linears={"aux_heads.mixed_6e.fc": "AuxLogits.fc", "classifier": "fc"},
)
INCEPTION_V3_FID = INCEPTION_V3._replace(model="inception_v3_fid")

# Inception-v4 and Inception-ResNet-v2: timm's ---------------------------------------------------------------------

_V4_A: Names = {
    "conv1x1.0": ".branch0",
    **chain("conv3x3", ".branch1.", 2),
    **chain("double3x3", ".branch2.", 3),
    "pool.1": ".branch3.1",
}
_V4_REDUCTION_A: Names = {
    "conv3x3.0": ".branch0",
    **chain("double3x3", ".branch1.", 3),
}
_V4_B: Names = {
    "conv1x1.0": ".branch0",
    **chain("conv7x7", ".branch1.", 3),
    **chain("double7x7", ".branch2.", 5),
    "pool.1": ".branch3.1",
}
_V4_REDUCTION_B: Names = {
    **chain("conv3x3", ".branch0.", 2),
    **chain("conv7x7", ".branch1.", 4),
}
_V4_C: Names = {
    "conv1x1.0": ".branch0",
    "conv3x3.0": ".branch1_0",
    "conv3x3.1.conv1x3.0": ".branch1_1a",
    "conv3x3.1.conv3x1.0": ".branch1_1b",
    **chain("double3x3", ".branch2_", 3),
    "double3x3.3.conv1x3.0": ".branch2_3a",
    "double3x3.3.conv3x1.0": ".branch2_3b",
    "pool.1": ".branch3.1",
}
# Ours, and the position in timm's sequence.
_V4_SEQUENCE: tuple[tuple[str, Names], ...] = (
    ("conv1", {"": ""}),
    ("conv2", {"": ""}),
    ("conv3", {"": ""}),
    ("stem_3a", {"conv3x3.0": ".conv"}),
    (
        "stem_4a",
        {
            **chain("conv3x3", ".branch0.", 2),
            **chain("conv7x7", ".branch1.", 4),
        },
    ),
    ("stem_5a", {"conv3x3.0": ".conv"}),
    *((f"inception_a_{n}", _V4_A) for n in range(1, 5)),
    ("reduction_a", _V4_REDUCTION_A),
    *((f"inception_b_{n}", _V4_B) for n in range(1, 8)),
    ("reduction_b", _V4_REDUCTION_B),
    *((f"inception_c_{n}", _V4_C) for n in range(1, 4)),
)
INCEPTION_V4 = Origin(
    "inception_v4",
    units={
        mine.removesuffix("."): other
        for position, (layer, names) in enumerate(_V4_SEQUENCE)
        for mine, other in inside(f"trunk.{layer}", f"features.{position}", names).items()
    },
    linears={"classifier": "last_linear"},
)

_RESIDUAL_A: Names = {
    "paths.conv1x1.0": ".branch0",
    **chain("paths.conv3x3", ".branch1.", 2),
    **chain("paths.double3x3", ".branch2.", 3),
}
_RESIDUAL_B: Names = {
    "paths.conv1x1.0": ".branch0",
    **chain("paths.conv7x7", ".branch1.", 3),
}
_RESIDUAL_C: Names = {
    "paths.conv1x1.0": ".branch0",
    **chain("paths.conv3x3", ".branch1.", 3),
}
_RESNET_FIRST: Names = {
    "conv1x1.0": ".branch0",
    **chain("conv5x5", ".branch1.", 2),
    **chain("double3x3", ".branch2.", 3),
    "pool.1": ".branch3.1",
}
_RESNET_TO_8: Names = {
    **chain("conv3x3a", ".branch0.", 2),
    **chain("conv3x3b", ".branch1.", 2),
    **chain("double3x3", ".branch2.", 3),
}
# Ours, theirs.
_RESNET_BLOCKS: tuple[tuple[str, str, Names], ...] = (
    ("mixed_5b", "mixed_5b", _RESNET_FIRST),
    *((f"inception_a_{n}", f"repeat.{n - 1}", _RESIDUAL_A) for n in range(1, 11)),
    ("reduction_a", "mixed_6a", _V4_REDUCTION_A),
    *((f"inception_b_{n}", f"repeat_1.{n - 1}", _RESIDUAL_B) for n in range(1, 21)),
    ("reduction_b", "mixed_7a", _RESNET_TO_8),
    *((f"inception_c_{n}", f"repeat_2.{n - 1}", _RESIDUAL_C) for n in range(1, 10)),
    ("inception_c_10", "block8", _RESIDUAL_C),
)
INCEPTION_RESNET_V2 = Origin(
    "inception_resnet_v2",
    units={
        "trunk.conv1": "conv2d_1a",
        "trunk.conv2": "conv2d_2a",
        "trunk.conv3": "conv2d_2b",
        "trunk.conv4": "conv2d_3b",
        "trunk.conv5": "conv2d_4a",
        **{
            mine: other
            for layer, there, names in _RESNET_BLOCKS
            for mine, other in inside(f"trunk.{layer}", there, names).items()
        },
        "trunk.conv7": "conv2d_7b",
    },
    linears={
        **{
            f"trunk.{layer}.expand": f"{there}.conv2d"
            for layer, there, names in _RESNET_BLOCKS
            if names in (_RESIDUAL_A, _RESIDUAL_B, _RESIDUAL_C)
        },
        "classifier": "classif",
    },
)

# Every network whose weights we read and write, by library and its name there.
ORIGINS: dict[str, Origin] = {
    "torchvision:googlenet": TORCHVISION_GOOGLENET,
    "torchvision:inception_v3": INCEPTION_V3,
    "timm:inception_v3": INCEPTION_V3,
    "timm:inception_v4": INCEPTION_V4,
    "timm:inception_resnet_v2": INCEPTION_RESNET_V2,
    "fid:inception_v3": INCEPTION_V3_FID,
    "caffe:googlenet": CAFFE_GOOGLENET,
    "pretrainedmodels:bninception": BNINCEPTION,
}
