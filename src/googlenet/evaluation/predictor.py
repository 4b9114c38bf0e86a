"""The interface of everything that classifies images: a PyTorch network, an ensemble, or an exported file."""

from typing import Protocol

import torch
from torch import Tensor, nn

from ..data.dataset import Split
from ..data.loader import pixel_batches
from ..data.preprocess import Preprocess
from .metrics import Predictions
from .progress import ProgressCallback, no_progress


class Predictor(Protocol):
    """Classify batches of pixels. Normalization is part of `predict`, so it cannot be applied twice.

    `name` is the engine (torch, onnxruntime, ...), `precision` that of its computation (float32, bfloat16, float16,
    int8), `classes` are the names of the outputs, `preprocess` makes the input pixels of an image, `min_size` is the
    smallest height and width; `preprocess.size` if the size is fixed.
    """

    name: str
    precision: str
    classes: tuple[str, ...]
    preprocess: Preprocess
    min_size: int

    def predict(self, images: Tensor) -> Tensor:
        """Return logits float32 (n, classes) on the CPU; thread-safe.

        `images` are uint8 or float in 0..255, (n, channels, h, w), already at the network's size.
        """


class NetworkPredictor:
    """A `Network` or an `Ensemble` in PyTorch, on the device of its parameters.

    Float images are normalized without rounding, so the result is that of ``model(preprocess.normalize(images))``.
    """

    name, precision = "torch", "float32"

    def __init__(self, model: nn.Module, preprocess: Preprocess, classes: tuple[str, ...]):
        self.model, self.preprocess, self.classes = model.eval(), preprocess, classes
        self.min_size = int(model.min_size)  # type: ignore[arg-type]  # nn.Module has no static attributes
        self.device = next(model.parameters()).device

    def predict(self, images: Tensor) -> Tensor:
        """Return logits float32 (n, classes) on the CPU; see `Predictor.predict`."""
        with torch.inference_mode():
            logits: Tensor = self.model(self.preprocess.normalize(images.to(self.device).float()))
        return logits.float().cpu()


def round_to_uint8(images: Tensor) -> Tensor:
    """Round float pixels in 0..255 to uint8, the input type of exported files."""
    return images if images.dtype == torch.uint8 else images.round().clamp(0, 255).to(torch.uint8)


def predict_split(
    predictor: Predictor, split: Split, size: int | None = None, progress: ProgressCallback = no_progress
) -> Predictions:
    """Predict every image of `split`, at `size` pixels or the predictor's own; `progress` counts images."""
    logits, labels = [], []
    for batch in pixel_batches(split, predictor.preprocess, size):
        logits.append(predictor.predict(batch.images))
        labels.append(batch.labels.cpu())
        progress(len(batch.labels))
    return Predictions(torch.cat(logits), torch.cat(labels))
