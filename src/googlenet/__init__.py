"""GoogLeNet and the Inception family in PyTorch. The public API, and nothing else.

Names are imported on first use, so that `import googlenet` and `googlenet --help` stay quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .models import registration

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .data.preprocess import Preprocess
    from .models.catalogue import create, list_models
    from .models.fusion import Fused, fuse
    from .models.layers import Logits
    from .models.network import Network
    from .training.checkpoint import Checkpoint, load
    from .training.loop import fit
    from .training.recipe import Recipe
    from .training.recipe_file import read_recipe

_HOME = {
    **dict.fromkeys(("create", "list_models"), "models.catalogue"),
    **dict.fromkeys(("Checkpoint", "load"), "training.checkpoint"),
    **dict.fromkeys(("Fused", "fuse"), "models.fusion"),
    "Logits": "models.layers",
    "Network": "models.network",
    "Preprocess": "data.preprocess",
    "Recipe": "training.recipe",
    "read_recipe": "training.recipe_file",
    "fit": "training.loop",
}

__all__ = [  # noqa: RUF022  as above
    "create",
    "list_models",
    "Fused",
    "fuse",
    "Checkpoint",
    "load",
    "Logits",
    "Network",
    "Preprocess",
    "Recipe",
    "read_recipe",
    "fit",
]


registration.register_when_imported()


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'googlenet' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
