"""A trained network in PyTorch as it is deployed: batch normalization folded, channels last in memory."""

from typing import Any

import torch
from torch import Tensor

from ..checkpoint.format import Checkpoint
from ..devices import pick_precision
from ..evaluation.predictor import ClassifierHead, round_to_uint8
from ..models.folding import FoldedNetwork, fold


def folded_precisions() -> list[str]:
    """Return the precisions in which the processor computes, float32 first."""
    return list(dict.fromkeys(["float32", str(pick_precision("auto", torch.device("cpu")))]))


class FoldedPredictor:
    """The folded network of a classification checkpoint, on the CPU. Float images are rounded to uint8.

    `threads` sets the threads of the process; None leaves them unchanged. `precision` is one of `folded_precisions`
    (ValueError).
    """

    name = "torch"

    def __init__(self, checkpoint: Checkpoint, threads: int | None = None, precision: str = "float32"):
        if precision not in (supported := folded_precisions()):
            raise ValueError(f"torch does not compute in {precision} on this processor; it has {', '.join(supported)}")
        if threads:
            torch.set_num_threads(threads)
        self.preprocess, self.classes = checkpoint.preprocess, checkpoint.classes
        self.thresholds = checkpoint.thresholds
        self.min_size: int = checkpoint.model.min_size
        folded = fold(checkpoint.model.cpu(), checkpoint.preprocess)
        self.precision = precision
        for network in folded.modules():
            if isinstance(network, FoldedNetwork):  # the mean pixel stays in float32
                network.trunk.to(getattr(torch, precision))
                network.classifier.to(getattr(torch, precision))
        self.model: Any = folded.to(memory_format=torch.channels_last)
        single = isinstance(folded, FoldedNetwork)
        self.head = ClassifierHead(self.model.classifier.weight.float(), folded.spp_levels) if single else None

    def predict(self, images: Tensor) -> Tensor:
        """Return logits float32 (n, classes); see `Predictor.predict`."""
        with torch.inference_mode():
            logits: Tensor = self.model(round_to_uint8(images.cpu()))
        return logits.float()

    def predict_with_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and features; see `FeaturePredictor`."""
        with torch.inference_mode():
            features = self.model.forward_features(round_to_uint8(images.cpu()))
            return self.model.forward_head(features).float(), features.float()
