"""What is to be exported, before it is any program's file."""

import copy
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.fx.experimental._config
from torch import Tensor, nn

from ..models.fusion import Fused, FusedEnsemble

INPUT, OUTPUTS = "pixels", ("logits", "probabilities")


class Order(NamedTuple):
    """What is to be written: the network, the size of its pictures in pixels, and whether softmax is inside."""

    fused: Fused | FusedEnsemble
    size: int
    softmax: bool

    @property
    def any_size(self) -> bool:
        """Whether a file can leave height and width open: grids of several cells are fixed by the size."""
        return self.fused.pyramid == (1,)

    @property
    def least(self) -> int:
        """The least height and width in pixels. Of one pixel PyTorch's archives would make another program."""
        return max(2, self.fused.min_size)

    @property
    def output(self) -> str:
        """The name of what comes out."""
        return OUTPUTS[self.softmax]

    def network(self) -> nn.Module:
        """A copy, with what is to be inside."""
        fused = copy.deepcopy(self.fused).cpu().float()
        return nn.Sequential(fused, nn.Softmax(1)) if self.softmax else fused

    def example(self) -> Tensor:
        """Pixels to trace with: unlike sides, so that none is taken for another, and maps of several pixels."""
        height, width = self.size, self.size
        if self.any_size:
            height = max(height, self.least + 2, 64)
            width = height + 7
        return torch.zeros(2, self.fused.in_channels, height, width, dtype=torch.uint8)

    def program(self, by: Callable[[nn.Module], nn.Module | None], open_sides: bool) -> torch.export.ExportedProgram:
        """The network as a graph of PyTorch's operators, with the layers that `by` names replaced.

        The batch is open; height and width are with `open_sides`, as far as the network lets them.
        """
        sides = {2: "height", 3: "width"} if open_sides and self.any_size else {}
        names = {0: "batch", **sides}
        free = {place: torch.export.Dim(name, min=self.least if place else 1) for place, name in names.items()}
        network = replaced(self.network(), by).eval()
        # Else a map of one pixel would be another program than a larger one, and small pictures would be refused.
        config: Any = torch.fx.experimental._config
        with config.patch(backed_size_oblivious=True):
            return torch.export.export(network, (self.example(),), dynamic_shapes=(free,))


def replaced(network: nn.Module, by: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """`network` with every layer for which `by` names another replaced, in place."""
    for owner in list(network.modules()):
        for name, layer in list(owner.named_children()):
            if other := by(layer):
                setattr(owner, name, other)
    return network


def needed(first: str, *more: str) -> Any:
    """The package `first`; ValueError that says what to install where it or one of `more` is missing."""
    for name in (first, *more):
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"{name} is not installed: pip install 'googlenet[export]'")
    return importlib.import_module(first)
