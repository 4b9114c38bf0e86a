"""Every network by name. Pure data: importing this file does not import PyTorch."""

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import nearest

if TYPE_CHECKING:
    from .network import Network


class Spec(NamedTuple):
    """One member of the family.

    `input_size` and `min_size` are heights and widths in pixels. `parameters` and `macs` (multiply-adds of
    one picture at `input_size`) are counted without auxiliary heads, for 1000 classes and three channels;
    the tests count them again. `aux_heads` is how many auxiliary heads it can have, `home` the file of its tables.
    """

    paper: str
    input_size: int
    min_size: int
    parameters: int
    macs: int
    aux_heads: int
    home: str


GOING_DEEPER = "Going Deeper with Convolutions (Szegedy et al., 2014)"
BATCH_NORMALIZATION = "Batch Normalization (Ioffe & Szegedy, 2015)"
RETHINKING = "Rethinking the Inception Architecture (Szegedy et al., 2015)"
RESIDUAL = "Inception-v4, Inception-ResNet (Szegedy et al., 2016)"

MODELS: dict[str, Spec] = {
    "googlenet": Spec(GOING_DEEPER, 224, 31, 6_998_552, 1_582_671_872, 2, "googlenet"),
    "googlenet_bn": Spec(
        f"{GOING_DEEPER}, with batch normalisation", 224, 31, 7_005_832, 1_582_671_872, 2, "googlenet"
    ),
    "googlenet_d2l": Spec(
        "Dive into Deep Learning, GoogLeNet chapter", 96, 1, 6_998_552, 291_530_752, 2, "googlenet"
    ),
    "googlenet_torchvision": Spec(
        f"{GOING_DEEPER}, torchvision's port", 224, 15, 6_624_904, 1_498_376_192, 2, "googlenet"
    ),
    "bn_inception": Spec(BATCH_NORMALIZATION, 224, 7, 11_285_224, 2_032_600_064, 0, "bn_inception"),
    "inception_v2": Spec(RETHINKING, 299, 75, 25_954_248, 6_352_562_784, 1, "inception_v3"),
    "inception_v3": Spec(f"{RETHINKING}, as released", 299, 75, 23_834_568, 5_713_216_096, 1, "inception_v3"),
    "inception_v3_fid": Spec(
        f"{RETHINKING}, as used for the FID", 299, 75, 23_834_568, 5_713_216_096, 1, "inception_v3"
    ),
    "inception_v4": Spec(RESIDUAL, 299, 75, 42_679_816, 12_253_974_624, 0, "inception_v4"),
    "inception_resnet_v2": Spec(f"{RESIDUAL}, as released", 299, 75, 55_843_464, 13_155_794_016, 0, "inception_v4"),
    "inception_resnet_v2_paper": Spec(
        f"{RESIDUAL}, as printed", 299, 75, 32_433_928, 9_257_953_632, 0, "inception_v4"
    ),
}

STEM_STRIDES = (4, 2, 1)

# What every member's network is without variants.
COMMON: dict[str, Any] = {"stem_stride": 4, "pyramid": (1,)}


def list_models() -> list[str]:
    """The names that `create` takes, in the order of their papers."""
    return list(MODELS)


def spec(name: str) -> Spec:
    """The catalogue's entry; ValueError with the nearest names for an unknown one."""
    if name not in MODELS:
        raise ValueError(f"no model is called {name!r}{nearest(name, MODELS)}; `googlenet models` lists them")
    return MODELS[name]


def defaults(name: str) -> dict[str, Any]:
    """The choices that `create` takes for the model `name`, with their values there; `seed` beside them."""
    return {**COMMON, **_home(name).defaults(name)}


def _home(name: str) -> ModuleType:
    """The file of the model's tables, which is first imported here."""
    return importlib.import_module(f".{spec(name).home}", __package__)


def create(name: str, num_classes: int = 1000, in_channels: int = 3, aux: bool = False, **variant: Any) -> "Network":
    """Build a network of the family with freshly initialised weights.

    `aux` adds the auxiliary classifiers. `variant` replaces single choices of the design:

    - ``init``: ``xavier``, ``truncated_normal`` or ``kaiming``;
    - ``dropout`` before the classifier, in [0, 1);
    - ``stem_stride``: 4; 2 or 1 for small pictures;
    - ``pyramid``: grids that the last map is pooled to, such as (1, 2, 4); (1,) is global average pooling;
    - ``pools``, for the GoogLeNets: ``ceil`` or ``padded``;
    - ``width``, for the GoogLeNets: every number of channels times this, in (0, 8], to multiples of 16;
    - ``seed`` of the initial weights.

    Raises ValueError for an unknown name or an impossible value, TypeError for an unknown variant.

    >>> create("googlenet_d2l", num_classes=10, in_channels=1).min_size
    1
    """
    entry = spec(name)
    for what, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if value < 1:
            raise ValueError(f"{what} must be 1 or more, not {value}")
    if aux and not entry.aux_heads:
        raise ValueError(f"{name} has no auxiliary heads: its paper gives it none; leave aux off")
    chosen = defaults(name) | {"seed": 0}
    for unknown in variant.keys() - chosen.keys():
        raise TypeError(f"{name} has no variant {unknown!r}; it takes {', '.join(chosen)}")
    chosen |= {key: value for key, value in variant.items() if value is not None}
    _check(chosen)
    chosen["pyramid"] = tuple(chosen["pyramid"])
    head = {key: chosen[key] for key in ("init", "dropout", "pyramid", "seed")}
    trunk = {key: value for key, value in chosen.items() if key not in head}

    from .network import Network  # imports PyTorch

    def parts() -> Any:
        return _home(name).parts(name, num_classes, in_channels, aux, **trunk)

    model = Network(parts, num_classes, in_channels, **head)
    model.arguments = {"name": name, "num_classes": num_classes, "in_channels": in_channels, "aux": aux, **chosen}
    return model


def _check(variant: Mapping[str, Any]) -> None:
    """ValueError for an impossible value of a variant that every member takes."""
    if not 0.0 <= variant["dropout"] < 1.0:
        raise ValueError(f"dropout must be in [0, 1), not {variant['dropout']}")
    if variant["stem_stride"] not in STEM_STRIDES:
        raise ValueError(f"stem_stride must be 4, 2 or 1, not {variant['stem_stride']!r}")
    pyramid = variant["pyramid"]
    if not pyramid or any(not isinstance(level, int) or level < 1 for level in pyramid):
        raise ValueError(f"pyramid must be grids of 1 or more, such as 1, 2, 4, not {pyramid!r}")
