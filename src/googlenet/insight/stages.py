"""A network's layers by their names in the table, and their outputs."""

from collections.abc import Iterator

from torch import Tensor, nn

from ..errors import nearest
from ..models.network import Network


def stages(model: Network) -> tuple[str, ...]:
    """The names of the deepest layers at each stride, shallow to deep."""
    return tuple(stage.name for stage in model.feature_info)


def layer_of(model: Network, name: str) -> nn.Module:
    """The layer of the trunk that has this name; ValueError where none has."""
    layers = dict(model.trunk.named_children())
    if name not in layers:
        raise ValueError(f"no layer is called {name!r}{nearest(name, layers)}; there are {', '.join(layers)}")
    return layers[name]


def outputs(model: Network, pixels: Tensor, upto: str | None = None) -> Iterator[tuple[str, Tensor]]:
    """Each layer's output in turn, shallow to deep, up to the layer `upto` where one is named."""
    x = pixels
    for name, layer in model.trunk.named_children():
        x = layer(x)
        yield name, x
        if name == upto:
            return
