"""GoogLeNet and the Inception family in PyTorch: the public API.

Names are imported on first use, so that `import googlenet` and `googlenet --help` are fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .checkpoint.format import Checkpoint
    from .checkpoint.load import load
    from .config.parse import read_recipe
    from .config.schema import Recipe
    from .data.preprocess import Preprocess
    from .evaluation.predictor import Predictor
    from .fidelity.compare import fid
    from .fidelity.streaming import FID
    from .inference.loading import load_predictor
    from .models.factory import create_model
    from .models.factory import create_model as create
    from .models.folding import FoldedNetwork, fold
    from .models.layers import GoogLeNetOutputs
    from .models.network import Network
    from .models.registry import list_models
    from .models.timm_registration import register_timm_models
    from .training.fit import TrainResult, fit

_LAZY_ATTRS = {
    "Checkpoint": "checkpoint.format",
    "load": "checkpoint.load",
    "read_recipe": "config.parse",
    "Recipe": "config.schema",
    "Preprocess": "data.preprocess",
    "Predictor": "evaluation.predictor",
    "fid": "fidelity.compare",
    "FID": "fidelity.streaming",
    "load_predictor": "inference.loading",
    "create_model": "models.factory",
    "FoldedNetwork": "models.folding",
    "fold": "models.folding",
    "GoogLeNetOutputs": "models.layers",
    "Network": "models.network",
    "list_models": "models.registry",
    "register_timm_models": "models.timm_registration",
    "TrainResult": "training.fit",
    "fit": "training.fit",
}

__all__ = [  # noqa: RUF022  in the order of use
    "create",
    "create_model",
    "list_models",
    "GoogLeNetOutputs",
    "Network",
    "register_timm_models",
    "Checkpoint",
    "load",
    "Predictor",
    "load_predictor",
    "Preprocess",
    "FoldedNetwork",
    "fold",
    "Recipe",
    "read_recipe",
    "TrainResult",
    "fit",
    "fid",
    "FID",
]


def __getattr__(name: str) -> Any:
    target = "create_model" if name == "create" else name
    if target not in _LAZY_ATTRS:
        raise AttributeError(f"module 'googlenet' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LAZY_ATTRS[target]}", __name__), target)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
