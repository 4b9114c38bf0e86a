"""GoogLeNet and the Inception family in PyTorch. The public API, and nothing else.

Names are imported on first use, so that `import googlenet` and `googlenet --help` stay quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .models.catalogue import create, list_models
    from .models.layers import Logits

_HOME = {
    "create": "models.catalogue",
    "list_models": "models.catalogue",
    "Logits": "models.layers",
}

__all__ = ["Logits", "create", "list_models"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'googlenet' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
