"""Metrics, calibration and tests of significance, against scikit-learn, torchmetrics and scipy."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
import torchmetrics.functional as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from googlenet.evaluation.calibration import (
    expected_calibration_error,
    fit_temperature,
    reliability,
    with_temperature,
)
from googlenet.evaluation.metrics import (
    Outputs,
    confusion_matrix,
    mean_loss,
    per_class_accuracy,
    scores,
    top_k_accuracy,
)
from googlenet.evaluation.significance import bootstrap_interval, mcnemar


def outputs(seed: int, count: int, classes: int, kind: str = "random") -> Outputs:
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
    return Outputs(logits, labels)


KINDS = ["random", "one class", "ties", "an empty class", "certain"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 200), classes=st.integers(2, 12))
def test_metrics_are_scikit_learns(kind: str, seed: int, count: int, classes: int) -> None:
    found = outputs(seed, count, classes, kind)
    truth, predicted = found.labels.numpy(), found.logits.argmax(1).numpy()
    every = list(range(classes))
    assert abs(top_k_accuracy(found, 1) - sklearn.metrics.accuracy_score(truth, predicted)) <= 1e-6
    if kind != "ties" and classes > 2:
        theirs = sklearn.metrics.top_k_accuracy_score(truth, found.logits.numpy(), k=2, labels=every)
        assert abs(top_k_accuracy(found, 2) - theirs) <= 1e-6
    assert top_k_accuracy(found, classes + 3) == 1.0
    matrix = sklearn.metrics.confusion_matrix(truth, predicted, labels=every)
    assert np.array_equal(confusion_matrix(found).numpy(), matrix)
    recalls = sklearn.metrics.recall_score(truth, predicted, labels=every, average=None, zero_division=np.nan)
    for mine, other in zip(per_class_accuracy(found), recalls, strict=True):
        assert (mine is None and np.isnan(other)) or abs(mine - other) <= 1e-6
    if kind != "certain":  # scikit-learn clips probabilities of zero
        theirs = sklearn.metrics.log_loss(truth, found.logits.double().softmax(1).numpy(), labels=every)
        assert abs(mean_loss(found) - theirs) <= 1e-6
    assert scores(found)["images"] == count


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_calibration_error_is_torchmetrics(kind: str, seed: int) -> None:
    found = outputs(seed, 300, 7, kind)
    probabilities = found.logits.double().softmax(1)
    if kind == "certain":  # torchmetrics gives a confidence of exactly 1 a bin of its own: by the definition instead
        confidence, predicted = probabilities.max(1)
        theirs = 0.0
        for number in range(15):
            inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
            if inside.any():
                right = (predicted == found.labels)[inside].double().mean()
                theirs += float(inside.double().mean() * (right - confidence[inside].mean()).abs())
    else:
        theirs = reference.calibration_error(
            probabilities, found.labels, task="multiclass", num_classes=7, n_bins=15, norm="l1"
        )
    assert abs(expected_calibration_error(found) - float(theirs)) <= 1e-6
    rows = reliability(found)
    assert sum(row.answers for row in rows) == 300
    assert all(row.low - 1e-9 <= row.confidence <= row.high + 1e-9 for row in rows if row.answers)


def test_the_temperature_undoes_overconfidence() -> None:
    generator = torch.Generator().manual_seed(1)
    honest = 2 * torch.randn(20_000, 5, generator=generator)
    labels = torch.multinomial(honest.softmax(1), 1, generator=generator).flatten()
    for factor in (0.5, 1.0, 3.0):
        boastful = Outputs(honest * factor, labels)
        assert fit_temperature(boastful) == pytest.approx(factor, rel=0.03)
        mended = with_temperature(boastful, fit_temperature(boastful))
        assert expected_calibration_error(mended) < 0.01
        # The least loss of a fine grid is not lower.
        grid = [mean_loss(with_temperature(boastful, factor * t)) for t in np.linspace(0.8, 1.25, 46)]
        assert mean_loss(mended) <= min(grid) + 1e-9
    # All right and sure, or all wrong: the ends of the range, not an error.
    sure = Outputs(torch.eye(4) * 9, torch.arange(4))
    assert fit_temperature(sure) == pytest.approx(0.05, rel=1e-6)
    assert fit_temperature(Outputs(torch.eye(4) * 9, torch.arange(4).roll(1))) == pytest.approx(20, rel=1e-6)


@pytest.mark.parametrize(("count", "right"), [(100, 93), (10_000, 8893), (5, 5), (7, 0), (1, 1)])
def test_the_interval_is_scipys_bootstrap(count: int, right: int) -> None:
    correct = torch.arange(count) < right
    low, high = bootstrap_interval(correct)
    ends = scipy.stats.binom.ppf([0.025, 0.975], count, right / count) / count
    tolerance = 2.1 / count if count < 1000 else 0.0005
    assert abs(low - ends[0]) <= tolerance
    assert abs(high - ends[1]) <= tolerance
    assert bootstrap_interval(correct) == (low, high)
    with pytest.raises(ValueError, match="one picture"):
        bootstrap_interval(correct[:0])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=300))
def test_mcnemar_is_the_binomial_test(pairs: list[tuple[bool, bool]]) -> None:
    first, second = torch.tensor(pairs).unbind(1)
    found = mcnemar(first, second)
    only_first = sum(a and not b for a, b in pairs)
    only_second = sum(b and not a for a, b in pairs)
    assert (found.only_first, found.only_second) == (only_first, only_second)
    if only_first + only_second:
        theirs = scipy.stats.binomtest(only_first, only_first + only_second, 0.5).pvalue
        assert abs(found.p - theirs) <= 1e-6
    else:
        assert found.p == 1.0
