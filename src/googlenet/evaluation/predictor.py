"""The interface of everything that classifies images: a PyTorch network, an ensemble, or an exported file."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..data.dataset import Split
from ..data.loader import pixel_batches
from ..data.preprocess import Preprocess
from ..models.network import Network
from .metrics import Predictions
from .progress import ProgressCallback, no_progress


class Predictor(Protocol):
    """Classify batches of pixels. Normalization is part of `predict`, so it cannot be applied twice.

    `name` is the engine (torch, onnxruntime, ...), `precision` that of its computation (float32, bfloat16, float16,
    int8), `classes` are the names of the outputs, `preprocess` makes the input pixels of an image, `min_size` is the
    smallest height and width; `preprocess.size` if the size is fixed. `thresholds`, one per class, are the
    probabilities from which an image has a label, if it may have any number of labels; see `get_thresholds`.
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


class ClassifierHead(NamedTuple):
    """Pooling and linear classifier of a network: `weight` (classes, cells * channels) and the grids of its pooling."""

    weight: Tensor
    spp_levels: tuple[int, ...] = (1,)


@runtime_checkable
class FeaturePredictor(Protocol):
    """A `Predictor` that can also return the last feature map; `head` is what follows it, None for an ensemble."""

    head: ClassifierHead | None

    def predict_with_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of `Predictor.predict` and the last feature map float32 (n, channels, h', w')."""


class NetworkPredictor:
    """A `Network` or an `Ensemble` in PyTorch, on the device of its parameters.

    Float images are normalized without rounding, so the result is that of ``model(preprocess.normalize(images))``.
    """

    name, precision = "torch", "float32"

    def __init__(
        self,
        model: nn.Module,
        preprocess: Preprocess,
        classes: tuple[str, ...],
        thresholds: tuple[float, ...] = (),
    ):
        self.model, self.preprocess, self.classes, self.thresholds = model.eval(), preprocess, classes, thresholds
        self.min_size = int(model.min_size)  # type: ignore[arg-type]  # nn.Module has no static attributes
        self.device = next(model.parameters()).device
        self.head: ClassifierHead | None = None
        if isinstance(model, Network) and isinstance(model.classifier, nn.Linear) and model.pooled:
            self.head = ClassifierHead(model.classifier.weight.detach().cpu(), model.spp_levels)

    def predict(self, images: Tensor) -> Tensor:
        """Return logits float32 (n, classes) on the CPU; see `Predictor.predict`."""
        with torch.inference_mode():
            logits: Tensor = self.model(self.preprocess.normalize(images.to(self.device).float()))
        return logits.float().cpu()

    def predict_with_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and features on the CPU; see `FeaturePredictor`."""
        model: Any = self.model
        with torch.inference_mode():
            features = model.forward_features(self.preprocess.normalize(images.to(self.device).float()))
            return model.forward_head(features).float().cpu(), features.float().cpu()


def get_thresholds(predictor: object) -> tuple[float, ...]:
    """Return the `thresholds` of a predictor of several labels; empty for one of a single label."""
    thresholds: tuple[float, ...] = getattr(predictor, "thresholds", ())
    return thresholds


def predictor_device(predictor: object) -> torch.device:
    """Return the `device` of a PyTorch predictor; the CPU for other engines, which copy the pixels themselves."""
    device: torch.device = getattr(predictor, "device", torch.device("cpu"))
    return device


def round_to_uint8(images: Tensor) -> Tensor:
    """Round float pixels in 0..255 to uint8, the input type of exported files."""
    return images if images.dtype == torch.uint8 else images.round().clamp_(0, 255).to(torch.uint8)


def predict_split(
    predictor: Predictor, split: Split, size: int | None = None, progress: ProgressCallback = no_progress
) -> Predictions:
    """Predict every image of `split`, at `size` pixels or the predictor's own; `progress` counts images."""
    logits, labels = [], []
    for batch in pixel_batches(split, predictor.preprocess, size, predictor_device(predictor)):
        logits.append(predictor.predict(batch.images))
        labels.append(batch.labels.cpu())
        progress(len(batch.labels))
    return Predictions(torch.cat(logits), torch.cat(labels))
