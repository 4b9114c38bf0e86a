"""Whether a network's probabilities can be taken at their word, and one number that mends them.

"On Calibration of Modern Neural Networks" (Guo et al., 2017).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .metrics import Outputs

BINS = 15


class Bin(NamedTuple):
    """The answers whose confidence (the best class's probability) is in (`low`, `high`], the first bin with its low
    end.

    `confidence` and `accuracy` are means over them, 0 in an empty bin.
    """

    low: float
    high: float
    answers: int
    confidence: float
    accuracy: float


def reliability(outputs: Outputs, bins: int = BINS) -> list[Bin]:
    """Confidence against accuracy, in bins of equal width."""
    confidence, predicted = outputs.logits.double().softmax(dim=1).max(dim=1)
    right = (predicted == outputs.labels).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    where = (torch.bucketize(confidence, edges) - 1).clamp(0, bins - 1)
    counts = torch.bincount(where, minlength=bins)

    def means(values: Tensor) -> list[float]:
        found: list[float] = (torch.bincount(where, values, bins) / counts.clamp_min(1)).tolist()
        return found

    low, high = edges[:-1].tolist(), edges[1:].tolist()
    return [Bin(*row) for row in zip(low, high, counts.tolist(), means(confidence), means(right), strict=True)]


def expected_calibration_error(outputs: Outputs, bins: int = BINS) -> float:
    """The mean distance of confidence from accuracy over the bins, each counted by its answers; in 0..1."""
    found = reliability(outputs, bins)
    return sum(b.answers * abs(b.confidence - b.accuracy) for b in found) / len(outputs.labels)


def with_temperature(outputs: Outputs, temperature: float) -> Outputs:
    """Logits divided by `temperature`: above 1 less sure, below 1 surer; the order of the classes stays."""
    return Outputs(outputs.logits / temperature, outputs.labels)


def fit_temperature(outputs: Outputs) -> float:
    """The temperature in 0.05..20 with the least cross-entropy: fit it on validation answers, use it on others.

    The loss is convex in 1 / temperature; its derivative's zero is found by halving.
    """
    logits, labels = outputs.logits.double(), outputs.labels
    logits = logits - logits.amax(dim=1, keepdim=True)
    truth = logits.gather(1, labels.unsqueeze(1)).mean()

    def slope(inverse: float) -> float:
        expected = ((logits * inverse).softmax(dim=1) * logits).nan_to_num(0.0).sum(dim=1).mean()
        return (expected - truth).item()

    low, high = 1 / 20, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 2 / (low + high)
