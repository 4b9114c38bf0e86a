"""Metrics and calibration against scikit-learn and torchmetrics."""

import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics.functional as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from googlenet.evaluation.calibration import (
    apply_temperature,
    expected_calibration_error,
    fit_temperature,
    reliability_bins,
)
from googlenet.evaluation.metrics import (
    Predictions,
    classification_metrics,
    confusion_matrix,
    mean_loss,
    top_k_accuracy,
)


def predictions(seed: int, count: int, classes: int, kind: str = "random") -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, classes, generator=generator)
    labels = torch.randint(0, classes, (count,), generator=generator)
    if kind == "one class":
        labels = torch.zeros_like(labels)
    elif kind == "ties":
        logits = logits.round()
    elif kind == "an empty class":
        labels = labels.clamp(max=classes - 2)
    elif kind == "certain":
        logits = 1000.0 * logits
    return Predictions(logits, labels)


KINDS = ["random", "one class", "ties", "an empty class", "certain"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 200), classes=st.integers(2, 12))
def test_metrics_are_those_of_scikit_learn(kind: str, seed: int, count: int, classes: int) -> None:
    sample = predictions(seed, count, classes, kind)
    targets, predicted = sample.labels.numpy(), sample.logits.argmax(1).numpy()
    labels = list(range(classes))
    assert abs(top_k_accuracy(sample, 1) - sklearn.metrics.accuracy_score(targets, predicted)) <= 1e-6
    if kind != "ties" and classes > 2:
        expected = sklearn.metrics.top_k_accuracy_score(targets, sample.logits.numpy(), k=2, labels=labels)
        assert abs(top_k_accuracy(sample, 2) - expected) <= 1e-6
    assert top_k_accuracy(sample, classes + 3) == 1.0
    matrix = sklearn.metrics.confusion_matrix(targets, predicted, labels=labels)
    assert np.array_equal(confusion_matrix(sample).numpy(), matrix)
    if kind != "certain":  # scikit-learn clips probabilities of zero
        expected = sklearn.metrics.log_loss(targets, sample.logits.double().softmax(1).numpy(), labels=labels)
        assert abs(mean_loss(sample) - expected) <= 1e-6
    assert classification_metrics(sample)["images"] == count


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_calibration_error_is_that_of_torchmetrics(kind: str, seed: int) -> None:
    sample = predictions(seed, 300, 7, kind)
    probabilities = sample.logits.double().softmax(1)
    if kind == "certain":  # torchmetrics has an extra bin for a confidence of exactly 1
        confidence, predicted = probabilities.max(1)
        expected = 0.0
        for index in range(15):
            inside = (confidence > index / 15) & (confidence <= (index + 1) / 15)
            if inside.any():
                accuracy = (predicted == sample.labels)[inside].double().mean()
                expected += float(inside.double().mean() * (accuracy - confidence[inside].mean()).abs())
    else:
        expected = reference.calibration_error(
            probabilities, sample.labels, task="multiclass", num_classes=7, n_bins=15, norm="l1"
        )
    assert abs(expected_calibration_error(sample) - float(expected)) <= 1e-6
    rows = reliability_bins(sample)
    assert sum(row.num_images for row in rows) == 300
    assert all(row.low - 1e-9 <= row.confidence <= row.high + 1e-9 for row in rows if row.num_images)


def test_temperature_corrects_overconfidence() -> None:
    generator = torch.Generator().manual_seed(1)
    calibrated = 2 * torch.randn(20_000, 5, generator=generator)
    labels = torch.multinomial(calibrated.softmax(1), 1, generator=generator).flatten()
    for factor in (0.5, 1.0, 3.0):
        scaled = Predictions(calibrated * factor, labels)
        assert fit_temperature(scaled) == pytest.approx(factor, rel=0.03)
        corrected = apply_temperature(scaled, fit_temperature(scaled))
        assert expected_calibration_error(corrected) < 0.01
        # No temperature of a fine grid has a lower loss.
        grid = [mean_loss(apply_temperature(scaled, factor * t)) for t in np.linspace(0.8, 1.25, 46)]
        assert mean_loss(corrected) <= min(grid) + 1e-9
    # All predictions correct or all wrong: the bounds of the range.
    confident = Predictions(torch.eye(4) * 9, torch.arange(4))
    assert fit_temperature(confident) == pytest.approx(0.05, rel=1e-6)
    assert fit_temperature(Predictions(torch.eye(4) * 9, torch.arange(4).roll(1))) == pytest.approx(20, rel=1e-6)
