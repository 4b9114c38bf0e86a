"""What answers pictures: one shape for a network in PyTorch and for an exported file in any other engine."""

from typing import Protocol

import torch
from torch import Tensor, nn

from ..data.preprocess import Preprocess


class Engine(Protocol):
    """Answers batches of raw pixels; normalisation is inside, so that nobody can do it twice.

    `name` is torch, onnxruntime, openvino or ncnn. `preprocess` says how a picture becomes the pixels (size,
    channels, fit); `classes` names the answers in order. An engine may be called from several threads at once.
    """

    name: str
    preprocess: Preprocess
    classes: tuple[str, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 (n, channels, h, w) on the CPU -> logits float32 (n, classes) on the CPU."""
        ...


class TorchEngine:
    """A network as it was trained, on the device where it lies."""

    name = "torch"

    def __init__(self, model: nn.Module, preprocess: Preprocess, classes: tuple[str, ...]):
        self.model, self.preprocess, self.classes = model.eval(), preprocess, classes
        self.device = next(model.parameters()).device

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 (n, channels, h, w) -> logits float32 (n, classes)."""
        with torch.inference_mode():
            logits: Tensor = self.model(self.preprocess.normalise(pixels.to(self.device).float()))
        return logits.float().cpu()
