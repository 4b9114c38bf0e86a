"""Calibration of the predicted probabilities: expected calibration error and temperature scaling.

"On Calibration of Modern Neural Networks" (Guo et al., 2017).
"""

from typing import NamedTuple

import torch

from .metrics import Predictions, is_correct, mean_loss

NUM_BINS = 15


class CalibrationBin(NamedTuple):
    """The images whose confidence, the largest probability, is in (`low`, `high`], and their mean values (empty: 0)."""

    low: float
    high: float
    num_images: int
    confidence: float
    accuracy: float


def reliability_bins(predictions: Predictions, num_bins: int = NUM_BINS) -> list[CalibrationBin]:
    """Compare confidence with accuracy in bins of equal width."""
    confidence = predictions.logits.double().softmax(dim=1).amax(dim=1)
    edges = torch.linspace(0, 1, num_bins + 1, dtype=torch.float64)
    index = (torch.bucketize(confidence, edges) - 1).clamp(0, num_bins - 1)
    counts = torch.bincount(index, minlength=num_bins)

    values = torch.stack((confidence, is_correct(predictions).double()))
    means = torch.stack([torch.bincount(index, row, num_bins) for row in values]) / counts.clamp_min(1)
    columns = (edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), *means.tolist())
    return [CalibrationBin(*row) for row in zip(*columns, strict=True)]


def expected_calibration_error(predictions: Predictions, num_bins: int = NUM_BINS) -> float:
    """Return the mean difference between confidence and accuracy, weighted by the number of images; in 0..1."""
    bins = reliability_bins(predictions, num_bins)
    return sum(b.num_images * abs(b.confidence - b.accuracy) for b in bins) / len(predictions.labels)


def apply_temperature(predictions: Predictions, temperature: float) -> Predictions:
    """Divide the logits by `temperature`: above 1 lowers the confidence. The order of the classes does not change."""
    return Predictions(predictions.logits / temperature, predictions.labels)


def fit_temperature(predictions: Predictions) -> float:
    """Return the temperature in 0.05..20 that minimizes the cross-entropy. Fit it on validation data.

    The loss is convex in 1 / temperature: the zero of its derivative is found by bisection.
    """
    logits, labels = predictions.logits.double(), predictions.labels
    logits = logits - logits.amax(dim=1, keepdim=True)
    target = logits.gather(1, labels.unsqueeze(1)).mean()

    def slope(inverse: float) -> float:
        expected = ((logits * inverse).softmax(dim=1) * logits).nan_to_num(0.0).sum(dim=1).mean()
        return (expected - target).item()

    low, high = 1 / 20, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 2 / (low + high)


class Calibration(NamedTuple):
    """A `temperature`, and calibration error, loss (nats) and bins without and with it ("_after")."""

    temperature: float
    ece: float
    ece_after: float
    loss: float
    loss_after: float
    bins: list[CalibrationBin]
    bins_after: list[CalibrationBin]


def calibrate(validation: Predictions, predictions: Predictions) -> Calibration:
    """Fit the temperature on `validation` and measure its effect on other `predictions`."""
    temperature = fit_temperature(validation)
    after = apply_temperature(predictions, temperature)
    return Calibration(
        temperature, expected_calibration_error(predictions), expected_calibration_error(after),
        mean_loss(predictions), mean_loss(after), reliability_bins(predictions), reliability_bins(after),
    )  # fmt: skip
