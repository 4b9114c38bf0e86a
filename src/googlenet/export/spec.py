"""A classifier prepared for export, independent of the file format."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.fx.experimental._config
from torch import Tensor, nn

from ..data.preprocess import Preprocess
from ..models.folding import FoldedEnsemble, FoldedNetwork
from .manifest import OutputKind

INPUT_NAME, FEATURES = "pixels", "features"


class _ExportedModule(nn.Module):
    """The network that is traced, from pixels to a tuple: logits or probabilities, and the last feature map."""

    def __init__(self, network: FoldedNetwork | FoldedEnsemble, softmax: bool, features: bool):
        super().__init__()
        self.network: Any = network
        self.softmax, self.features = softmax, features

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        if self.features:
            features = self.network.forward_features(pixels)
            logits = self.network.forward_head(features)
        else:
            features, logits = None, self.network(pixels)
        output = logits.softmax(1) if self.softmax else logits
        return (output,) if features is None else (output, features)


class ExportSpec(NamedTuple):
    """A folded network, its preprocessing and classes, and the options of `ExportOptions`."""

    network: FoldedNetwork | FoldedEnsemble
    preprocess: Preprocess
    classes: Sequence[str] = ()
    softmax: bool = False
    fixed_size: bool = False

    @property
    def size(self) -> int:
        """The default height and width in pixels."""
        return self.preprocess.size

    @property
    def dynamic_size(self) -> bool:
        """Whether height and width are free: grids of several cells fix the size."""
        return not self.fixed_size and self.network.spp_levels == (1,)

    @property
    def min_size(self) -> int:
        """The smallest height and width in pixels; at least 2, because torch.export specializes on size 1."""
        return max(2, self.network.min_size) if self.dynamic_size else self.size

    @property
    def output(self) -> OutputKind:
        """The kind of the output, which is also its name in the file."""
        return "probabilities" if self.softmax else "logits"

    @property
    def output_names(self) -> list[str]:
        """The names of the outputs: `output`, and the last feature map of a single network with global pooling."""
        has_features = isinstance(self.network, FoldedNetwork) and self.network.spp_levels == (1,)
        return [self.output, FEATURES] if has_features else [self.output]

    def module(self) -> nn.Module:
        """Return a float32 copy on the CPU, from pixels to a tuple of the outputs."""
        network = copy.deepcopy(self.network).cpu().float()
        return _ExportedModule(network, self.softmax, features=FEATURES in self.output_names)

    def example_input(self) -> Tensor:
        """Return an input to trace with: height and width differ, and the last feature map has several pixels."""
        height, width = self.size, self.size
        if self.dynamic_size:
            height = max(height, self.min_size + 2, 64)
            width = height + 7
        return torch.zeros(2, self.network.in_channels, height, width, dtype=torch.uint8)

    def to_exported_program(
        self, replacement: Callable[[nn.Module], nn.Module | None], dynamic_hw: bool
    ) -> torch.export.ExportedProgram:
        """Trace the network with torch.export, after replacing layers as in `replace_modules`.

        The batch is dynamic; with `dynamic_hw` height and width are too, if the network permits it.
        """
        names = {0: "batch", **({2: "height", 3: "width"} if dynamic_hw and self.dynamic_size else {})}
        dims = {dim: torch.export.Dim(name, min=self.min_size if dim else 1) for dim, name in names.items()}
        network = replace_modules(self.module(), replacement).eval()
        # By default torch.export specializes on feature maps of one pixel and would reject small images.
        config: Any = torch.fx.experimental._config
        with config.patch(backed_size_oblivious=True):
            return torch.export.export(network, (self.example_input(),), dynamic_shapes=(dims,))


def replace_modules(network: nn.Module, replacement: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """Replace in place every submodule for which `replacement` returns another."""
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if new := replacement(layer):
                setattr(parent, name, new)
    return network
