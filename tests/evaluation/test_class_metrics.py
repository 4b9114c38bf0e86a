"""Per-class metrics against scikit-learn and torchmetrics; their intervals against SciPy, loops and the bootstrap."""

import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
import torchmetrics.functional
import torchmetrics.functional.classification as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from googlenet.evaluation import class_metrics as module
from googlenet.evaluation.class_metrics import (
    METRICS,
    Estimate,
    OneVsRest,
    class_metrics,
    estimate,
    one_vs_rest,
    overall_metrics,
    weighted_metrics,
)
from googlenet.evaluation.metrics import Predictions

TOLERANCE = 1e-6


def random_predictions(count: int, classes: int, seed: int, ties: bool) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator, dtype=torch.float64)
    if ties:  # equal rows, so that probabilities of different images are equal
        logits = logits[torch.randint(3, (count,), generator=generator) % count]
    return Predictions(logits, torch.randint(classes, (count,), generator=generator))


def wrong(predictions: Predictions) -> Predictions:
    """Replace the labels by another class than the predicted one."""
    predicted = predictions.logits.argmax(1)
    return predictions._replace(labels=(predicted + 1) % predictions.logits.shape[1])


CASES = {
    "usual": random_predictions(60, 4, 0, ties=False),
    "ties": random_predictions(60, 4, 1, ties=True),
    "empty class": Predictions(random_predictions(50, 5, 2, ties=False).logits, torch.arange(50) % 3),
    "absent class": Predictions(
        random_predictions(50, 5, 3, ties=False).logits - torch.tensor([0, 0, 0, 0, 99.0]), torch.arange(50) % 4
    ),
    "one class": Predictions(random_predictions(20, 3, 4, ties=False).logits, torch.zeros(20, dtype=torch.int64)),
    "one class, all right": Predictions(torch.tensor([[9.0, 0, 0]] * 5), torch.zeros(5, dtype=torch.int64)),
    "all wrong": wrong(random_predictions(40, 3, 5, ties=False)),
    "all right": Predictions(torch.eye(3).repeat(4, 1), torch.arange(12) % 3),
    "one image": Predictions(torch.tensor([[1.0, 2.0]]), torch.tensor([1])),
}


def values_of(estimates: dict[str, Estimate]) -> dict[str, float | None]:
    return {name: item.value for name, item in estimates.items()}


def binary_reference(scores: Tensor, targets: Tensor, predicted: Tensor) -> dict[str, float | None]:
    """Return scikit-learn's metrics of a class against the rest."""
    y, p, s = targets.numpy(), predicted.numpy(), scores.numpy()
    both = bool(y.any()) and not bool(y.all())
    with warnings.catch_warnings():  # scikit-learn warns that 0 / 0 is set to 0
        warnings.simplefilter("ignore")
        return {
            "precision": sklearn.metrics.precision_score(y, p, zero_division=0),
            "recall": sklearn.metrics.recall_score(y, p, zero_division=0),
            "f1": sklearn.metrics.f1_score(y, p, zero_division=0),
            "specificity": sklearn.metrics.recall_score(y, p, pos_label=False, zero_division=0),
            "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(y, p),
            "matthews_correlation": sklearn.metrics.matthews_corrcoef(y, p),
            "auroc": sklearn.metrics.roc_auc_score(y, s) if both else None,
            "average_precision": sklearn.metrics.average_precision_score(y, s) if y.any() else None,
        }


@pytest.mark.parametrize("name", CASES)
def test_classes_equal_those_of_scikit_learn(name: str) -> None:
    outcomes = one_vs_rest(CASES[name])
    for index, row in enumerate(class_metrics(outcomes).classes):
        columns = [values[:, index] for values in outcomes]
        assert row.images == columns[1].sum() and row.predicted == columns[2].sum()
        if not row.images and not row.predicted:
            assert set(row.estimates.values()) == {Estimate(None)}
        else:
            assert values_of(row.estimates) == pytest.approx(binary_reference(*columns), abs=TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_averages_equal_those_of_the_libraries(name: str) -> None:
    predictions = CASES[name]
    labels, predicted = predictions.labels, predictions.logits.argmax(1)
    result, overall = class_metrics(one_vs_rest(predictions)), overall_metrics(predictions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert overall.balanced_accuracy.value == pytest.approx(
            sklearn.metrics.balanced_accuracy_score(labels, predicted), abs=TOLERANCE
        )
        assert overall.matthews_correlation.value == pytest.approx(
            sklearn.metrics.matthews_corrcoef(labels, predicted), abs=TOLERANCE
        )
        for average in ("macro", "weighted"):
            rates = sklearn.metrics.precision_recall_fscore_support(labels, predicted, average=average, zero_division=0)
            values = values_of(result.averages[average])
            assert [values[key] for key in ("precision", "recall", "f1")] == pytest.approx(rates[:3], abs=TOLERANCE)
            options = {"task": "multiclass", "num_classes": predictions.logits.shape[1], "average": average}
            for key in ("precision", "recall", "f1_score", "specificity"):
                expected = getattr(torchmetrics.functional, key)(predicted, labels, **options).item()
                assert values[key.removesuffix("_score")] == pytest.approx(expected, abs=TOLERANCE)
    # The averages of the ranking metrics are over the classes where they are defined.
    for key in ("auroc", "average_precision"):
        defined = [
            (row.estimates[key].value, row.images) for row in result.classes if row.estimates[key].value is not None
        ]
        for average, weights in (("macro", [1] * len(defined)), ("weighted", [images for _, images in defined])):
            value = result.averages[average][key].value
            if sum(weights):
                assert value == pytest.approx(np.average([v for v, _ in defined], weights=weights), abs=TOLERANCE)
            else:
                assert value is None


@pytest.mark.parametrize("ties", [False, True])
def test_ranking_averages_equal_those_of_both_libraries(ties: bool) -> None:
    predictions = random_predictions(80, 4, 7, ties)
    probabilities, labels = predictions.logits.softmax(1), predictions.labels
    averages = class_metrics(one_vs_rest(predictions)).averages
    for average in ("macro", "weighted"):
        values, options = values_of(averages[average]), {"average": average, "num_classes": 4}
        expected = sklearn.metrics.roc_auc_score(labels, probabilities, multi_class="ovr", average=average)
        assert values["auroc"] == pytest.approx(expected, abs=TOLERANCE)
        expected = sklearn.metrics.average_precision_score(labels, probabilities, average=average)
        assert values["average_precision"] == pytest.approx(expected, abs=TOLERANCE)
        # torchmetrics computes areas in float32, whose rounding is 1e-7 per addition.
        expected = reference.multiclass_auroc(probabilities, labels, thresholds=None, **options).item()
        assert values["auroc"] == pytest.approx(expected, abs=TOLERANCE)
        expected = reference.multiclass_average_precision(probabilities, labels, thresholds=None, **options).item()
        assert values["average_precision"] == pytest.approx(expected, abs=TOLERANCE)


def random_labels(count: int, classes: int, seed: int) -> OneVsRest:
    """Return outcomes of images with any number of labels; the last class has none, the first is all ties."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(count, classes, generator=generator, dtype=torch.float64)
    scores[:, 0] = 0.7
    targets = torch.rand(count, classes, generator=generator) < 0.4
    targets[:, -1] = False
    scores[:, -1] *= 0.4  # an empty class that is never predicted
    return OneVsRest(scores, targets, scores > 0.5)


def test_several_labels_equal_those_of_both_libraries() -> None:
    outcomes = random_labels(70, 5, 0)
    scores, targets, predicted = outcomes
    result = class_metrics(outcomes, multilabel=True)
    for index, row in enumerate(result.classes):
        columns = [values[:, index] for values in outcomes]
        expected = binary_reference(*columns)
        expected["average_precision"] = expected["average_precision"] or 0.0  # of the empty class
        assert values_of(row.estimates) == pytest.approx(expected, abs=TOLERANCE)
    for average in ("macro", "weighted", "micro"):
        values = values_of(result.averages[average])
        rates = sklearn.metrics.precision_recall_fscore_support(targets, predicted, average=average, zero_division=0)
        assert [values[key] for key in ("precision", "recall", "f1")] == pytest.approx(rates[:3], abs=TOLERANCE)
        # The empty class counts as 0 in both libraries.
        options = {"num_labels": 5, "average": average}
        for key in ("precision", "recall", "f1_score", "specificity"):
            expected = getattr(reference, f"multilabel_{key}")(predicted.long(), targets.long(), **options).item()
            assert values[key.removesuffix("_score")] == pytest.approx(expected, abs=TOLERANCE)
        full = slice(None) if average == "micro" else slice(-1)  # the last class has no area
        expected = sklearn.metrics.roc_auc_score(targets[:, full], scores[:, full], average=average)
        assert values["auroc"] == pytest.approx(expected, abs=TOLERANCE)
        options = {"num_labels": 5, "average": average, "thresholds": None}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = sklearn.metrics.average_precision_score(targets, scores, average=average)
            tensor = reference.multilabel_average_precision(scores, targets.long(), **options)
        assert values["average_precision"] == pytest.approx(expected, abs=TOLERANCE)
        assert values["average_precision"] == pytest.approx(tensor.item(), abs=TOLERANCE)
    matthews = sklearn.metrics.matthews_corrcoef(targets.flatten(), predicted.flatten())
    assert result.averages["micro"]["matthews_correlation"].value == pytest.approx(matthews, abs=TOLERANCE)
    assert result.averages["macro"]["balanced_accuracy"].value == pytest.approx(
        np.mean([row.estimates["balanced_accuracy"].value for row in result.classes]), abs=TOLERANCE
    )


@settings(max_examples=5)  # scikit-learn takes 20 ms per class
@given(st.integers(1, 30), st.integers(2, 5), st.integers(0, 1000), st.booleans())
def test_any_predictions(count: int, classes: int, seed: int, ties: bool) -> None:
    outcomes = one_vs_rest(random_predictions(count, classes, seed, ties))
    result = class_metrics(outcomes)
    for index, row in enumerate(result.classes):
        if row.images or row.predicted:
            expected = binary_reference(*(values[:, index] for values in outcomes))
            assert values_of(row.estimates) == pytest.approx(expected, abs=TOLERANCE)
    for estimates in [*(row.estimates for row in result.classes), *result.averages.values()]:
        for item in estimates.values():
            if item.interval is not None:
                assert -1 <= item.interval.low <= item.value + 1e-12 and item.value - 1e-12 <= item.interval.high <= 1


def test_classes_are_processed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = one_vs_rest(CASES["empty class"])
    whole = class_metrics(outcomes)
    monkeypatch.setattr(module, "MAX_ELEMENTS", 100)  # two of the five classes at once
    parts = class_metrics(outcomes)
    assert parts.classes == whole.classes
    for average, estimates in whole.averages.items():
        for name, item in estimates.items():  # sums in another order
            assert parts.averages[average][name].value == pytest.approx(item.value, abs=1e-12)
            assert parts.averages[average][name].interval == pytest.approx(item.interval, abs=1e-9)


def test_the_intervals_of_proportions_are_wilsons() -> None:
    outcomes = one_vs_rest(CASES["usual"])
    for index, row in enumerate(class_metrics(outcomes).classes):
        target, predicted = outcomes.targets[:, index], outcomes.predicted[:, index]
        for name, of in (("precision", predicted), ("recall", target), ("specificity", ~target)):
            correct = target == predicted
            test = scipy.stats.binomtest(int(correct[of].sum()), int(of.sum()))
            expected = test.proportion_ci(method="wilson")
            assert tuple(row.estimates[name].interval) == pytest.approx((expected.low, expected.high), abs=1e-9)
    perfect = class_metrics(one_vs_rest(CASES["all right"])).classes[0].estimates
    expected = scipy.stats.binomtest(4, 4).proportion_ci(method="wilson")
    for name in ("precision", "recall", "f1", "auroc", "average_precision"):
        assert tuple(perfect[name].interval) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert estimate("precision", 0.0, 0.0, 0) == Estimate(0.0), "no image was predicted"


def test_the_standard_error_of_auroc_is_delongs() -> None:
    """By loops, with division by n instead of DeLong's n - 1."""
    scores, targets, predicted = (values[:, 1:2] for values in random_labels(40, 3, 3))
    positive, negative = scores[targets], scores[~targets]
    wins = (positive[:, None] > negative).double() + (positive[:, None] == negative).double() / 2
    area = wins.mean()
    variance = ((wins.mean(1) - area) ** 2).sum() / len(positive) ** 2 + ((wins.mean(0) - area) ** 2).sum() / len(
        negative
    ) ** 2
    weights = torch.ones_like(scores, requires_grad=True)
    value = weighted_metrics(OneVsRest(scores, targets, predicted), weights)["auroc"]
    (gradient,) = torch.autograd.grad(value.sum(), weights)
    assert value.item() == pytest.approx(area.item())
    assert gradient.square().sum().item() == pytest.approx(variance.item())


def test_the_standard_errors_are_those_of_the_bootstrap() -> None:
    """Resample 400 images 2,000 times: the standard deviations of all metrics agree within a tenth.

    The bootstrap's own error is 1 / sqrt(2 * 2000), 1.6 %; the rest is the difference between the two methods, which
    is of the order 1 / sqrt(400).
    """
    predictions = random_predictions(400, 3, 11, ties=False)
    predictions.logits[torch.arange(400), predictions.labels] += 1.5
    outcomes = one_vs_rest(predictions)
    result, overall = class_metrics(outcomes), overall_metrics(predictions)
    draws = torch.multinomial(torch.ones(400), 400 * 2000, replacement=True).view(2000, 400)
    weights = torch.zeros(2000, 400, dtype=torch.float64).scatter_add_(1, draws, torch.ones(2000, 400).double())
    samples = [weighted_metrics(outcomes, row.unsqueeze(1).expand(-1, 3)) for row in weights[:600]]
    for name in METRICS:
        deviations = torch.stack([sample[name] for sample in samples]).std(0)
        macro = torch.stack([sample[name].mean() for sample in samples]).std()
        estimates = [row.estimates[name] for row in result.classes]
        assert half_widths(estimates) == pytest.approx(deviations.tolist(), rel=0.12)
        if name in result.averages["macro"]:
            assert half_widths([result.averages["macro"][name]]) == pytest.approx([macro.item()], rel=0.12)
    resampled = [overall_metrics(Predictions(*(values[row] for values in predictions))) for row in draws[:600]]
    for index, item in enumerate(overall):
        deviation = np.std([result[index].value for result in resampled])
        assert half_widths([item]) == pytest.approx([deviation], rel=0.12)


def half_widths(estimates: list[Estimate]) -> list[float]:
    """Return the standard errors that the widths of 95 % intervals correspond to."""
    return [(item.interval.high - item.interval.low) / 2 / 1.96 for item in estimates]
