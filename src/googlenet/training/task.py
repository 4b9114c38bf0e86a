"""What a run learns: a loss to descend and a score to report. `fit` knows nothing else of the problem."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.dataset import Split
from ..data.loader import Batch, evaluation_batches
from ..data.preprocess import Preprocess
from ..evaluation.metrics import Outputs, collect
from ..models.network import Network
from .recipe import Loss


class StepResult(NamedTuple):
    """`loss` to differentiate, and the number of pictures answered right; both scalars on the device."""

    loss: Tensor
    correct: Tensor


class Classification(NamedTuple):
    """One label per picture: cross-entropy, with the auxiliary heads' added at `options.aux_weight` each.

    `weights` (classes,) multiply each picture's loss by its class's number; `balanced` makes them.
    """

    options: Loss
    weights: Tensor | None = None

    def loss(self, model: Network, batch: Batch) -> StepResult:
        """The training loss of a batch ("Going Deeper with Convolutions", section 5)."""
        logits, aux = model.forward_aux(batch.images)
        loss = self._cross_entropy(logits, batch.labels)
        for side in aux:
            loss = loss + self.options.aux_weight * self._cross_entropy(side, batch.labels)
        truth = batch.labels if batch.labels.ndim == 1 else batch.labels.argmax(dim=1)
        return StepResult(loss, (logits.detach().argmax(dim=1) == truth).sum())

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        smoothing = self.options.label_smoothing
        # In mixed precision too, a loss is summed in float32.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=smoothing)
        # PyTorch's mean divides by the weights of whole labels but not of mixed ones: here, by the pictures in both.
        return F.cross_entropy(logits, labels, self.weights, label_smoothing=smoothing, reduction="none").mean()

    def score(self, model: Network, split: Split, preprocess: Preprocess) -> Outputs:
        """The network's answers to every picture of `split`."""
        device = next(model.parameters()).device
        with torch.inference_mode():
            return collect(model, evaluation_batches(split, preprocess), device)


def balanced(labels: Tensor, classes: int) -> Tensor:
    """Class weights (classes,) in inverse proportion to the classes' pictures, 1 on average over the pictures."""
    counts = torch.bincount(labels, minlength=classes).clamp_min(1)
    return len(labels) / (classes * counts.float())


class Learner(nn.Module):
    """A network with its loss, as one module: what is spread over processes, cast to fewer bits, compiled."""

    def __init__(self, task: Classification, model: Network):
        super().__init__()
        self.task, self.model = task, model

    def forward(self, batch: Batch) -> StepResult:
        """The result of the task on one batch, or on this process's part of it."""
        return self.task.loss(self.model, batch)
