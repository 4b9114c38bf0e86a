"""What a run learns: a loss to descend and a score to report. `fit` knows nothing else of the problem."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.dataset import Split
from ..data.loader import Batch, evaluation_batches
from ..data.preprocess import Preprocess
from ..evaluation.metrics import Outputs, collect
from ..models.googlenet import GoogLeNet
from .recipe import Loss


class StepResult(NamedTuple):
    """`loss` to differentiate, and the number of pictures answered right; both scalars on the device."""

    loss: Tensor
    correct: Tensor


class Classification(NamedTuple):
    """One label per picture: cross-entropy, with the auxiliary heads' added at `options.aux_weight` each."""

    options: Loss

    def loss(self, model: GoogLeNet, batch: Batch) -> StepResult:
        """The training loss of a batch ("Going Deeper with Convolutions", section 5)."""
        smoothing = self.options.label_smoothing
        logits, aux = model.forward_aux(batch.images)
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=smoothing)
        for side in aux:
            loss = loss + self.options.aux_weight * F.cross_entropy(side, batch.labels, label_smoothing=smoothing)
        return StepResult(loss, (logits.detach().argmax(dim=1) == batch.labels).sum())

    def score(self, model: GoogLeNet, split: Split, preprocess: Preprocess) -> Outputs:
        """The network's answers to every picture of `split`."""
        device = next(model.parameters()).device
        with torch.inference_mode():
            return collect(model, evaluation_batches(split, preprocess), device)
