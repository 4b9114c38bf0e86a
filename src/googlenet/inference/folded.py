"""A trained network in PyTorch as it is deployed: batch normalization folded, channels last in memory."""

import torch
from torch import Tensor

from ..checkpoint.format import Checkpoint
from ..evaluation.predictor import round_to_uint8
from ..models.folding import fold


class FoldedPredictor:
    """The folded network of a classification checkpoint, on the CPU. Float images are rounded to uint8.

    `threads` sets the threads of the process; None leaves them unchanged.
    """

    name = "torch"

    def __init__(self, checkpoint: Checkpoint, threads: int | None = None):
        if threads:
            torch.set_num_threads(threads)
        self.preprocess, self.classes = checkpoint.preprocess, checkpoint.classes
        self.min_size: int = checkpoint.model.min_size
        folded: torch.nn.Module = fold(checkpoint.model.cpu(), checkpoint.preprocess)
        self.model = folded.to(memory_format=torch.channels_last)

    def predict(self, images: Tensor) -> Tensor:
        """Return logits float32 (n, classes); see `Predictor.predict`."""
        with torch.inference_mode():
            logits: Tensor = self.model(round_to_uint8(images.cpu()))
        return logits.float()
