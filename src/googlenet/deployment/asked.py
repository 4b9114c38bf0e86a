"""An engine in the place of a network, so that everything that asks networks can ask engines."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..data.dataset import Split
from ..data.loader import evaluation_batches
from ..data.preprocess import Preprocess
from ..evaluation.metrics import Outputs, collect
from .engine import Engine
from .parity import whole_numbers


def raw(preprocess: Preprocess) -> Preprocess:
    """The same geometry, and pixels left as they are, 0..255: what goes with `Asked`."""
    channels = preprocess.channels
    return replace(preprocess, mean=(0.0,) * channels, std=(1.0 / 255.0,) * channels)


class Asked(nn.Module):
    """An engine as a module: what it is given is rounded to the bytes that the engine takes."""

    def __init__(self, engine: Engine, min_size: int):
        super().__init__()
        self.engine, self.min_size = engine, min_size
        # By which callers know the device.
        self.register_parameter("none", nn.Parameter(torch.empty(0), requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        """Pixels 0..255, float (n, channels, h, w), as `raw` gives them -> logits (n, classes)."""
        return self.engine(whole_numbers(x.cpu()))


def outputs(engine: Engine, split: Split, size: int | None = None) -> Outputs:
    """The engine's answers to every picture of `split`, at `size` pixels or its own."""
    batches = evaluation_batches(split, raw(engine.preprocess), size)
    return collect(Asked(engine, 1), batches, torch.device("cpu"))
