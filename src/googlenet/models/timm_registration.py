"""The family in timm: `timm.create_model("bn_inception")` after `googlenet.register_timm_models()`."""

from collections.abc import Callable
from typing import Any

from .factory import create_model
from .registry import MODELS

# timm's register_model reads both from the module of an entry point: the public names, and the default
# configurations.
__all__: list[str] = []
default_cfgs: dict[str, Any] = {}

HALF = (0.5, 0.5, 0.5)
# The height and width of the last map at the model's input size.
POOL_SIZES = {96: 3, 224: 7, 299: 8}


def register_timm_models() -> list[str]:
    """Register the networks of the family with timm; return the names that were added.

    Names that timm has already, such as inception_v3, keep timm's networks. A registered network is the same as from
    `googlenet.create`, with `feature_info` in timm's form: `features_only`, `timm.optim` and timm's scripts work with
    it. Calling the function again has no effect.
    """
    from timm.models import generate_default_cfgs, is_model, register_model

    names = [name for name in MODELS if not is_model(name)]
    default_cfgs.update(generate_default_cfgs({name: _default_cfg(name) for name in names}))
    for name in names:
        register_model(_entrypoint(name))
    return names


def _default_cfg(name: str) -> dict[str, Any]:
    spec = MODELS[name]
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, spec.input_size, spec.input_size),
        "min_input_size": (3, spec.min_size, spec.min_size),
        "pool_size": (POOL_SIZES[spec.input_size],) * 2,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": HALF,
        "std": HALF,
        "first_conv": "trunk.conv1.conv",
        "classifier": "classifier",
        "license": "apache-2.0",
    }


def _entrypoint(name: str) -> Callable[..., Any]:
    """Return the function that timm calls to build the network `name`."""
    from timm.models import build_model_with_cfg

    def build(
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float | None = None,
        global_pool: str = "avg",
        **options: Any,
    ) -> Any:
        model: Any = create_model(name, num_classes or 1, in_chans, dropout=drop_rate, **options)
        if not num_classes or global_pool != "avg":
            model.reset_classifier(num_classes, global_pool)
        model.feature_info = [
            {"num_chs": feature.channels, "reduction": feature.stride, "module": f"trunk.{feature.name}"}
            for feature in model.feature_info
        ]
        return model

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> Any:
        return build_model_with_cfg(build, name, pretrained, feature_cfg={"feature_cls": "getter"}, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = f"{MODELS[name].paper}."
    return entrypoint
