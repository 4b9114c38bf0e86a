"""Weights of other libraries, in and out: literal key maps, strict both ways.

An `Origin` says which member of the family a library's network is, and what each of its layers is called there.
Nothing is guessed: a tensor that is missing, left over or of another shape is an error that names it.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .catalogue import create

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

COUNTER = "num_batches_tracked"
AUXILIARY = "aux_heads."


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
    "conv5x5.0": ".branch5x5_1",
    "conv5x5.1": ".branch5x5_2",
    "double3x3.0": ".branch3x3dbl_1",
    "double3x3.1": ".branch3x3dbl_2",
    "double3x3.2": ".branch3x3dbl_3",
    "pool.1": ".branch_pool",
}
_V3_TO_17: Names = {
    "conv3x3.0": ".branch3x3",
    "double3x3.0": ".branch3x3dbl_1",
    "double3x3.1": ".branch3x3dbl_2",
    "double3x3.2": ".branch3x3dbl_3",
}
_V3_17: Names = {
    "conv1x1.0": ".branch1x1",
    "conv7x7.0": ".branch7x7_1",
    "conv7x7.1": ".branch7x7_2",
    "conv7x7.2": ".branch7x7_3",
    "double7x7.0": ".branch7x7dbl_1",
    "double7x7.1": ".branch7x7dbl_2",
    "double7x7.2": ".branch7x7dbl_3",
    "double7x7.3": ".branch7x7dbl_4",
    "double7x7.4": ".branch7x7dbl_5",
    "pool.1": ".branch_pool",
}
_V3_TO_8: Names = {
    "conv3x3.0": ".branch3x3_1",
    "conv3x3.1": ".branch3x3_2",
    "conv7x7.0": ".branch7x7x3_1",
    "conv7x7.1": ".branch7x7x3_2",
    "conv7x7.2": ".branch7x7x3_3",
    "conv7x7.3": ".branch7x7x3_4",
}
_V3_8: Names = {
    "conv1x1.0": ".branch1x1",
    "conv3x3.0": ".branch3x3_1",
    "conv3x3.1.conv1x3.0": ".branch3x3_2a",
    "conv3x3.1.conv3x1.0": ".branch3x3_2b",
    "double3x3.0": ".branch3x3dbl_1",
    "double3x3.1": ".branch3x3dbl_2",
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
    "conv3x3.0": ".branch1.0",
    "conv3x3.1": ".branch1.1",
    "double3x3.0": ".branch2.0",
    "double3x3.1": ".branch2.1",
    "double3x3.2": ".branch2.2",
    "pool.1": ".branch3.1",
}
_V4_REDUCTION_A: Names = {
    "conv3x3.0": ".branch0",
    "double3x3.0": ".branch1.0",
    "double3x3.1": ".branch1.1",
    "double3x3.2": ".branch1.2",
}
_V4_B: Names = {
    "conv1x1.0": ".branch0",
    "conv7x7.0": ".branch1.0",
    "conv7x7.1": ".branch1.1",
    "conv7x7.2": ".branch1.2",
    "double7x7.0": ".branch2.0",
    "double7x7.1": ".branch2.1",
    "double7x7.2": ".branch2.2",
    "double7x7.3": ".branch2.3",
    "double7x7.4": ".branch2.4",
    "pool.1": ".branch3.1",
}
_V4_REDUCTION_B: Names = {
    "conv3x3.0": ".branch0.0",
    "conv3x3.1": ".branch0.1",
    "conv7x7.0": ".branch1.0",
    "conv7x7.1": ".branch1.1",
    "conv7x7.2": ".branch1.2",
    "conv7x7.3": ".branch1.3",
}
_V4_C: Names = {
    "conv1x1.0": ".branch0",
    "conv3x3.0": ".branch1_0",
    "conv3x3.1.conv1x3.0": ".branch1_1a",
    "conv3x3.1.conv3x1.0": ".branch1_1b",
    "double3x3.0": ".branch2_0",
    "double3x3.1": ".branch2_1",
    "double3x3.2": ".branch2_2",
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
            "conv3x3.0": ".branch0.0",
            "conv3x3.1": ".branch0.1",
            "conv7x7.0": ".branch1.0",
            "conv7x7.1": ".branch1.1",
            "conv7x7.2": ".branch1.2",
            "conv7x7.3": ".branch1.3",
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
    "paths.conv3x3.0": ".branch1.0",
    "paths.conv3x3.1": ".branch1.1",
    "paths.double3x3.0": ".branch2.0",
    "paths.double3x3.1": ".branch2.1",
    "paths.double3x3.2": ".branch2.2",
}
_RESIDUAL_B: Names = {
    "paths.conv1x1.0": ".branch0",
    "paths.conv7x7.0": ".branch1.0",
    "paths.conv7x7.1": ".branch1.1",
    "paths.conv7x7.2": ".branch1.2",
}
_RESIDUAL_C: Names = {
    "paths.conv1x1.0": ".branch0",
    "paths.conv3x3.0": ".branch1.0",
    "paths.conv3x3.1": ".branch1.1",
    "paths.conv3x3.2": ".branch1.2",
}
_RESNET_FIRST: Names = {
    "conv1x1.0": ".branch0",
    "conv5x5.0": ".branch1.0",
    "conv5x5.1": ".branch1.1",
    "double3x3.0": ".branch2.0",
    "double3x3.1": ".branch2.1",
    "double3x3.2": ".branch2.2",
    "pool.1": ".branch3.1",
}
_RESNET_TO_8: Names = {
    "conv3x3a.0": ".branch0.0",
    "conv3x3a.1": ".branch0.1",
    "conv3x3b.0": ".branch1.0",
    "conv3x3b.1": ".branch1.1",
    "double3x3.0": ".branch2.0",
    "double3x3.1": ".branch2.1",
    "double3x3.2": ".branch2.2",
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


def keys(origin: Origin, aux: bool) -> dict[str, str]:
    """Every tensor's key: ours -> theirs; with those of the auxiliary heads, or without."""
    found = {
        f"{layer}.{mine}": f"{there}{other}"
        for layers, names in ((origin.units, origin.unit), (origin.linears, origin.linear))
        for layer, there in layers.items()
        for mine, other in names.items()
    }
    return {mine: other for mine, other in found.items() if aux or not mine.startswith(AUXILIARY)}


def has_aux(origin: Origin, tensors: Iterable[str]) -> bool:
    """Whether their `tensors` hold any of the auxiliary heads'."""
    theirs = set(tensors)
    return any(mine.startswith(AUXILIARY) and other in theirs for mine, other in keys(origin, aux=True).items())


class Fitting(NamedTuple):
    """Weights in our keys, and what they are of."""

    tensors: dict[str, Tensor]
    num_classes: int
    in_channels: int
    aux: bool


def to_ours(origin: Origin, theirs: Mapping[str, Tensor], where: str) -> Fitting:
    """Their tensors under our keys, for a network of `origin.model`; auxiliary heads where the file has them.

    Pixels are taken red first afterwards, whatever the origin's order; a bias in front of a normalisation is moved
    into its mean, which is the same function. ValueError, which names `where` and the keys, unless every tensor fits.
    """
    aux = has_aux(origin, theirs)
    names = keys(origin, aux)
    first = next(iter(origin.units)) + ".conv.weight"
    head, stem = theirs.get(names["classifier.weight"]), theirs.get(names[first])
    if head is None or stem is None or stem.ndim != 4 or head.ndim < 2:
        lacks = [names[key] for key, found in ((first, stem), ("classifier.weight", head)) if found is None]
        raise ValueError(
            f"{where}: not the weights of a {origin.model} from there: "
            + (f"it has no {' and no '.join(lacks)}" if lacks else f"{names[first]} is not a convolution's")
        )
    num_classes, in_channels = head.shape[-2], stem.shape[1]
    with torch.device("meta"):
        shapes = {
            key: value.shape
            for key, value in create(origin.model, num_classes, in_channels, aux).state_dict().items()
        }
    given = {
        key: _strip(tensor, len(shapes[mine]))
        for mine, key in names.items()
        if (tensor := theirs.get(key)) is not None
    }
    biases = {f"{there}.bias": layer for layer, there in origin.units.items()} if origin.biased else {}
    expected = {names[mine]: shape for mine, shape in shapes.items()}
    # Files older than PyTorch 0.4.1 do not count batches.
    expected = {key: shape for key, shape in expected.items() if not key.endswith(COUNTER) or key in given}
    expected |= {key: shapes[f"{layer}.norm.running_mean"] for key, layer in biases.items()}
    raise_unless_fits(expected, {**theirs, **given}, where)
    tensors = {
        mine: given[names[mine]] if names[mine] in given else torch.zeros(shape, dtype=torch.long)
        for mine, shape in shapes.items()
    }
    for key, layer in biases.items():
        mean = f"{layer}.norm.running_mean"
        tensors[mean] = tensors[mean] - theirs[key]
    if origin.bgr and in_channels == 3:
        tensors[first] = tensors[first].flip(1)
    return Fitting(tensors, num_classes, in_channels, aux)


def to_theirs(origin: Origin, ours: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The inverse of `to_ours`: a ``state_dict()`` of ours under their keys. ValueError unless all of it fits."""
    names = keys(origin, any(key.startswith(AUXILIARY) for key in ours))
    raise_unless_fits(dict.fromkeys(names), ours, where)
    tensors = {other: ours[mine] for mine, other in names.items()}
    first = next(iter(origin.units)) + ".conv.weight"
    if origin.bgr and ours[first].shape[1] == 3:
        tensors[names[first]] = ours[first].flip(1)
    if origin.biased:
        tensors |= {
            f"{there}.bias": torch.zeros_like(ours[f"{layer}.norm.bias"]) for layer, there in origin.units.items()
        }
    return tensors


def raise_unless_fits(
    expected: Mapping[str, torch.Size | None], tensors: Mapping[str, Tensor], where: str, at_most: int = 5
) -> None:
    """ValueError that lists missing, unexpected and wrongly shaped keys unless `tensors` are those `expected`."""
    problems = [f"missing {key}" for key in expected.keys() - tensors.keys()]
    problems += [f"unexpected {key}" for key in tensors.keys() - expected.keys()]
    problems += [
        f"{key} is {tuple(tensors[key].shape)}, not {tuple(shape)}"
        for key in expected.keys() & tensors.keys()
        if (shape := expected[key]) is not None and tensors[key].shape != shape
    ]
    if problems:
        more = f" and {len(problems) - at_most} more" if len(problems) > at_most else ""
        raise ValueError(f"{where}: does not fit the network: {'; '.join(sorted(problems)[:at_most])}{more}")


def _strip(tensor: Tensor, dims: int) -> Tensor:
    """Without the leading ones that Caffe's older files write before a matrix's shape."""
    while tensor.ndim > dims and tensor.shape[0] == 1:
        tensor = tensor[0]
    return tensor


def matching(library: str, tensors: Mapping[str, Tensor]) -> str:
    """The name in `ORIGINS` of the network that most of the keys are of; ValueError for a library not there."""
    names = [name for name in ORIGINS if name.split(":")[0] == library]
    if not names:
        known = ", ".join(dict.fromkeys(name.split(":")[0] for name in ORIGINS))
        raise ValueError(f"no weights of {library!r} are known; there are those of {known}")

    def share(name: str) -> int:
        return len(set(keys(ORIGINS[name], aux=True).values()) & tensors.keys())

    return max(names, key=share)
