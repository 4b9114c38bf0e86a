"""The family under timm's roof: `timm.create_model("bn_inception")` once googlenet has been imported.

Names that timm has already keep timm's own networks. A network made there is the same as from `googlenet.create`, but
its `feature_info` is written as timm's programs read it.
"""

import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .catalogue import MODELS, create

# register_model of timm reads both: what the module offers, and how each network's pixels are made.
__all__: list[str] = []
default_cfgs: dict[str, Any] = {}


def register() -> None:
    """Tell timm of every member that it has no network of the same name for."""
    from timm.models import generate_default_cfgs, is_model, register_model

    names = [name for name in MODELS if not is_model(name)]
    half = (0.5, 0.5, 0.5)
    default_cfgs.update(
        generate_default_cfgs(
            {
                name: {
                    "url": "",
                    "num_classes": 1000,
                    "input_size": (3, MODELS[name].input_size, MODELS[name].input_size),
                    "min_input_size": (3, MODELS[name].min_size, MODELS[name].min_size),
                    "pool_size": None,
                    "crop_pct": 0.875,
                    "interpolation": "bicubic",
                    "mean": half,
                    "std": half,
                    "first_conv": "trunk.conv1.conv",
                    "classifier": "classifier",
                    "license": "apache-2.0",
                }
                for name in names
            }
        )
    )
    for name in names:
        register_model(_entrypoint(name))


def _entrypoint(name: str) -> Callable[..., Any]:
    """What timm calls to build the network `name`."""
    from timm.models import build_model_with_cfg

    def network(
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float | None = None,
        global_pool: str = "avg",
        **variant: Any,
    ) -> Any:
        model: Any = create(name, num_classes or 1, in_chans, dropout=drop_rate, **variant)
        if not num_classes or global_pool != "avg":
            model.reset_classifier(num_classes, global_pool)
        model.feature_info = [
            {"num_chs": stage.channels, "reduction": stage.stride, "module": f"trunk.{stage.name}"}
            for stage in model.feature_info
        ]
        return model

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> Any:
        return build_model_with_cfg(network, name, pretrained, feature_cfg={"feature_cls": "getter"}, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = f"{MODELS[name].paper}."
    return entrypoint


class _AfterTimm(MetaPathFinder):
    """Finds timm as Python would, and registers when it has been imported (not when it has only been looked for)."""

    looking = False

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "timm" or self.looking:
            return None
        self.looking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.looking = False
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_register(module: ModuleType) -> None:
            load(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            register()

        spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


def register_when_imported() -> None:
    """Register now where timm has been imported, else as soon as it is: importing googlenet does not import timm."""
    if "timm.models" in sys.modules:
        register()
    elif not any(isinstance(finder, _AfterTimm) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterTimm())
