"""The networks by name. Importing this module does not import PyTorch."""

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import nearest

if TYPE_CHECKING:
    from .layers import NetworkSpec


class ModelSpec(NamedTuple):
    """A model of the family.

    `input_size` and `min_size` are heights and widths in pixels. `parameters` and `macs` (multiply-adds of one image
    at `input_size`) are for 1000 classes and three channels, without auxiliary heads; the tests count them again.
    `aux_heads` is the number of auxiliary heads that its paper defines. `module` is the module of this package with
    the model's `default_config` and `build_spec`.
    """

    paper: str
    input_size: int
    min_size: int
    parameters: int
    macs: int
    aux_heads: int
    module: str


DEEPER = "Going Deeper with Convolutions (Szegedy et al., 2014)"
BATCH_NORMALIZATION = "Batch Normalization (Ioffe & Szegedy, 2015)"
RETHINKING = "Rethinking the Inception Architecture (Szegedy et al., 2015)"
RESIDUAL = "Inception-v4, Inception-ResNet (Szegedy et al., 2016)"

MODELS: dict[str, ModelSpec] = {
    "googlenet": ModelSpec(DEEPER, 224, 31, 6_998_552, 1_582_671_872, 2, "googlenet"),
    "googlenet_bn": ModelSpec(f"{DEEPER}, with batch normalization", 224, 31, 7_005_832, 1_582_671_872, 2, "googlenet"),
    "googlenet_d2l": ModelSpec(
        "Dive into Deep Learning, chapter GoogLeNet", 96, 1, 6_998_552, 291_530_752, 2, "googlenet"
    ),
    "googlenet_torchvision": ModelSpec(
        f"{DEEPER}, torchvision's port", 224, 15, 6_624_904, 1_498_376_192, 2, "googlenet"
    ),
    "bn_inception": ModelSpec(BATCH_NORMALIZATION, 224, 7, 11_285_224, 2_032_600_064, 0, "bn_inception"),
    "inception_v2": ModelSpec(RETHINKING, 299, 75, 25_954_248, 6_352_562_784, 1, "inception_v3"),
    "inception_v3": ModelSpec(f"{RETHINKING}, as released", 299, 75, 23_834_568, 5_713_216_096, 1, "inception_v3"),
    "inception_v3_fid": ModelSpec(
        f"{RETHINKING}, as used for FID", 299, 75, 23_834_568, 5_713_216_096, 1, "inception_v3"
    ),
    "inception_v4": ModelSpec(RESIDUAL, 299, 75, 42_679_816, 12_253_974_624, 0, "inception_v4"),
    "inception_resnet_v2": ModelSpec(
        f"{RESIDUAL}, as released", 299, 75, 55_843_464, 13_155_794_016, 0, "inception_v4"
    ),
    "inception_resnet_v2_paper": ModelSpec(
        f"{RESIDUAL}, as printed", 299, 75, 32_433_928, 9_257_953_632, 0, "inception_v4"
    ),
}

STEM_STRIDES = (4, 2, 1)

# Options of every network besides those of its module.
_COMMON_OPTIONS: dict[str, Any] = {"stem_stride": 4, "spp_levels": (1,)}


def list_models() -> list[str]:
    """Return the names that `create_model` takes, in the order of the papers."""
    return list(MODELS)


def get_model_spec(name: str) -> ModelSpec:
    """Return the registry's entry; ValueError with the nearest names for an unknown name."""
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}{nearest(name, MODELS)}; `googlenet models` lists all models")
    return MODELS[name]


def default_config(name: str) -> dict[str, Any]:
    """Return the options of `create_model` for the model `name` with their default values, without `seed`."""
    return {**_COMMON_OPTIONS, **_module(name).default_config(name)}


def resolve_config(
    name: str, num_classes: int = 1000, in_channels: int = 3, aux: bool = False, **options: Any
) -> dict[str, Any]:
    """Return the full configuration of a network: `options` over the model's defaults.

    Raises ValueError for an unknown name or an invalid value, TypeError for an unknown option.
    """
    entry = get_model_spec(name)
    for key, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if value < 1:
            raise ValueError(f"{key} must be 1 or more, not {value}")
    if aux and not entry.aux_heads:
        raise ValueError(f"{name} has no auxiliary heads (its paper defines none): leave aux off")
    config = default_config(name) | {"seed": 0}
    for unknown in options.keys() - config.keys():
        raise TypeError(f"{name} has no option {unknown!r}; its options are {', '.join(config)}")
    config |= {key: value for key, value in options.items() if value is not None}
    if not 0.0 <= config["dropout"] < 1.0:
        raise ValueError(f"dropout must be in [0, 1), not {config['dropout']}")
    if config["stem_stride"] not in STEM_STRIDES:
        raise ValueError(f"stem_stride must be 4, 2 or 1, not {config['stem_stride']!r}")
    levels = config["spp_levels"]
    if not levels or any(not isinstance(level, int) or level < 1 for level in levels):
        raise ValueError(f"spp_levels must be grid sizes of 1 or more, such as 1, 2, 4, not {levels!r}")
    config["spp_levels"] = tuple(levels)
    return {"name": name, "num_classes": num_classes, "in_channels": in_channels, "aux": aux, **config}


def build_spec(config: Mapping[str, Any]) -> "NetworkSpec":
    """Build the layers of a resolved configuration, all but the classifier."""
    spec: NetworkSpec = _module(config["name"]).build_spec(config)
    return spec


def _module(name: str) -> ModuleType:
    return importlib.import_module(f".{get_model_spec(name).module}", __package__)
