"""Metrics of each class and their averages, with confidence intervals: precision, recall, F1, AUROC and others.

Each class is a binary problem, the class against the rest. A ratio of 0 to 0 is 0, as by default in scikit-learn and
torchmetrics; AUROC and average precision are None without images of the class, AUROC also without others. (With several
labels per image such an average precision is 0, on which both libraries agree.)

Standard errors are those of the infinitesimal jackknife: every metric is a differentiable function of one weight per
image, and the root of the summed squares of its derivatives at weight 1 is its standard error (Efron, "Nonparametric
estimates of standard error", 1981). For AUROC this is DeLong's method, for a proportion the binomial one.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .confidence import ConfidenceInterval, wilson_score
from .metrics import Predictions

# The metrics, with their display names. All are in 0..1, except Matthews correlation, which is in -1..1.
METRICS = {
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "specificity": "specificity",
    "balanced_accuracy": "balanced",
    "matthews_correlation": "MCC",
    "auroc": "AUROC",
    "average_precision": "AP",
}
# The averages of these over the classes of single-label images are known by other names: see `OverallMetrics`.
BINARY_ONLY = ("balanced_accuracy", "matthews_correlation")
# Elements of a matrix (images, classes) that are processed at once.
MAX_ELEMENTS = 2_000_000
# Standard errors below this are rounding errors of zero.
MIN_STANDARD_ERROR = 1e-9


class OneVsRest(NamedTuple):
    """Binary outcomes (n, classes): `scores` float64, true `targets` bool and `predicted` bool."""

    scores: Tensor
    targets: Tensor
    predicted: Tensor


class Estimate(NamedTuple):
    """A metric and its 95 % interval; None where it is undefined."""

    value: float | None
    interval: ConfidenceInterval | None = None


Estimates = dict[str, Estimate]


class ClassRow(NamedTuple):
    """The metrics of a class with `images` true and `predicted` predicted images."""

    images: int
    predicted: int
    estimates: Estimates


class ClassMetrics(NamedTuple):
    """The rows of the classes, and the estimates of each average: "macro", "weighted", with `multilabel` also "micro".

    "macro" is the mean over the classes, "weighted" is weighted by their images; "micro" counts all pairs of an image
    and a class together.
    """

    classes: list[ClassRow]
    averages: dict[str, Estimates]


def one_vs_rest(predictions: Predictions) -> OneVsRest:
    """Return the probabilities, the true and the predicted class of images with one label each."""
    classes = torch.arange(predictions.logits.shape[1])
    return OneVsRest(
        predictions.logits.double().softmax(dim=1),
        predictions.labels.unsqueeze(1) == classes,
        predictions.logits.argmax(dim=1, keepdim=True) == classes,
    )


def class_metrics(outcomes: OneVsRest, multilabel: bool = False) -> ClassMetrics:
    """Compute the metrics of every class and their averages.

    A class of single-label images that neither occurs nor is predicted has no metrics and is not averaged; with several
    labels per image (`multilabel`) it counts as 0. Both are what scikit-learn and torchmetrics do.
    """
    rows, sums = (
        list[ClassRow](),
        {name: _WeightedSums(len(outcomes.scores), METRICS) for name in ("macro", "weighted")},
    )
    for part in _class_chunks(outcomes):
        positives, predicted = part.targets.sum(0), part.predicted.sum(0)
        weights = torch.ones_like(part.scores, requires_grad=True)
        values = weighted_metrics(part, weights)
        if multilabel:
            values["average_precision"] = values["average_precision"].nan_to_num(0.0)
        is_counted = torch.ones_like(positives, dtype=torch.bool) if multilabel else (positives + predicted) > 0
        columns: dict[str, list[Estimate]] = {}
        for name, value in values.items():
            (gradient,) = torch.autograd.grad(value.nan_to_num(0.0).sum(), weights, retain_graph=True)
            is_defined = is_counted & ~value.isnan()
            value = value.detach()
            errors = gradient.square().sum(0).sqrt()
            fallback = _relevant_images(name, positives, predicted, len(part.scores))
            columns[name] = [
                estimate(name, v, e, n) if defined else Estimate(None)
                for v, e, n, defined in zip(
                    value.tolist(), errors.tolist(), fallback.tolist(), is_defined.tolist(), strict=True
                )
            ]
            sums["macro"].add(name, value, gradient, is_defined.double())
            sums["weighted"].add(name, value, gradient, is_defined * positives.double(), part.targets)
        rows += [
            ClassRow(images, guesses, {name: column[index] for name, column in columns.items()})
            for index, (images, guesses) in enumerate(zip(positives.tolist(), predicted.tolist(), strict=True))
        ]
    averages = {kind: item.estimates() for kind, item in sums.items()}
    if multilabel:
        averages["micro"] = _micro_average(outcomes)
    else:
        averages = {kind: {k: v for k, v in row.items() if k not in BINARY_ONLY} for kind, row in averages.items()}
    return ClassMetrics(rows, averages)


def weighted_metrics(outcomes: OneVsRest, weights: Tensor) -> dict[str, Tensor]:
    """Compute the metrics (classes,) of images with `weights` (n, classes), differentiable by them; NaN: undefined."""
    true, predicted = outcomes.targets.double(), outcomes.predicted.double()
    positives, negatives = (weights * true).sum(0), (weights * (1 - true)).sum(0)
    tp, fp = (weights * true * predicted).sum(0), (weights * (1 - true) * predicted).sum(0)
    fn, tn = positives - tp, negatives - fp
    recall, specificity = _ratio(tp, positives), _ratio(tn, negatives)
    balanced = torch.where(positives == 0, specificity, torch.where(negatives == 0, recall, (recall + specificity) / 2))
    product = (tp + fp) * positives * negatives * (tn + fn)
    auroc, average_precision = _ranking_metrics(outcomes, weights)
    return {
        "precision": _ratio(tp, tp + fp),
        "recall": recall,
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        "specificity": specificity,
        "balanced_accuracy": balanced,
        "matthews_correlation": _ratio(tp * tn - fp * fn, product.where(product > 0, 1.0).sqrt() * (product > 0)),
        "auroc": auroc,
        "average_precision": average_precision,
    }


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide; 0 where the denominator is 0. The derivative is finite everywhere."""
    is_positive = denominator > 0
    return torch.where(is_positive, numerator / denominator.where(is_positive, 1.0), 0.0)


def _ranking_metrics(outcomes: OneVsRest, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the area under the ROC curve (ties count half) and the average precision, (classes,) each."""
    scores, order = outcomes.scores.sort(dim=0)
    targets = outcomes.targets.gather(0, order).double()
    sorted_weights = weights.gather(0, order)
    positive, negative = sorted_weights * targets, sorted_weights * (1 - targets)
    count = len(scores)
    # The first and the last image of the same score as each image.
    index = torch.arange(count).unsqueeze(1).expand_as(scores)
    is_first = torch.ones_like(scores, dtype=torch.bool)
    is_first[1:] = scores[1:] != scores[:-1]
    is_last = is_first.roll(-1, dims=0)
    is_last[-1:] = True
    first = torch.where(is_first, index, 0).cummax(0).values
    last = torch.where(is_last, index, count - 1).flip(0).cummin(0).values.flip(0)
    positives, negatives = positive.sum(0), negative.sum(0)
    positives_below = (positive.cumsum(0) - positive).gather(0, first)
    negatives_to_here = negative.cumsum(0)
    negatives_below = (negatives_to_here - negative).gather(0, first)
    midranks = (negatives_below + negatives_to_here.gather(0, last)) / 2
    auroc = _ratio((positive * midranks).sum(0), positives * negatives)
    # The precision if all images with at least this score are predicted.
    retrieved = positives + negatives - positives_below - negatives_below
    precision = _ratio(positives - positives_below, retrieved)
    average_precision = _ratio((positive * precision).sum(0), positives)
    nan = torch.full_like(auroc, math.nan)
    return (
        torch.where((positives > 0) & (negatives > 0), auroc, nan),
        torch.where(positives > 0, average_precision, nan),
    )


class OverallMetrics(NamedTuple):
    """Metrics of single-label images that are not averages of binary ones.

    `balanced_accuracy` is the mean recall of the classes that have images; `matthews_correlation` is that of the
    confusion matrix (Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", 2004).
    """

    balanced_accuracy: Estimate
    matthews_correlation: Estimate


def overall_metrics(predictions: Predictions) -> OverallMetrics:
    """Compute the metrics of the confusion matrix."""
    labels, predicted, classes = predictions.labels, predictions.logits.argmax(1), predictions.logits.shape[1]
    is_correct = (labels == predicted).double()

    def measure(weights: Tensor) -> tuple[Tensor, Tensor]:
        zeros = torch.zeros(classes, dtype=torch.float64)
        true, guessed = zeros.index_add(0, labels, weights), zeros.index_add(0, predicted, weights)
        correct, total = zeros.index_add(0, labels, weights * is_correct), weights.sum()
        product = (total**2 - true @ true) * (total**2 - guessed @ guessed)
        root = product.where(product > 0, 1.0).sqrt() * (product > 0)
        return (correct / true)[true > 0].mean(), _ratio(correct.sum() * total - true @ guessed, root)

    values = _estimate_all(measure, len(labels), ("balanced_accuracy", "matthews_correlation"))
    return OverallMetrics(**values)


def estimate(name: str, value: float, standard_error: float, count: float) -> Estimate:
    """Return a metric with Wilson's interval for the number of images that gives its standard error.

    At 0 and 1, where the standard error is 0, that number is `count`; there is no interval if it is 0.
    """
    if not count:
        return Estimate(value)
    low, span = (-1.0, 2.0) if name == "matthews_correlation" else (0.0, 1.0)
    share, error = (value - low) / span, standard_error / span
    share = min(1.0, max(0.0, share))
    variance = share * (1 - share)
    num_images = variance / error**2 if error > MIN_STANDARD_ERROR and variance > MIN_STANDARD_ERROR else count
    interval = wilson_score(share, num_images)
    return Estimate(value, ConfidenceInterval(low + span * interval.low, low + span * interval.high))


def _estimate_all(
    measure: Callable[[Tensor], Sequence[Tensor]], count: int, names: Sequence[str]
) -> dict[str, Estimate]:
    """Estimate scalars that `measure` computes from the weights (n,) of the images."""
    weights = torch.ones(count, dtype=torch.float64, requires_grad=True)
    results = {}
    for name, value in zip(names, measure(weights), strict=True):
        (gradient,) = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
        error = 0.0 if gradient is None else gradient.square().sum().sqrt().item()
        results[name] = Estimate(None) if value.isnan() else estimate(name, value.item(), error, count)
    return results


def _micro_average(outcomes: OneVsRest) -> Estimates:
    """Compute the metrics of all pairs of an image and a class together."""
    flat = OneVsRest(*(values.reshape(-1, 1) for values in outcomes))
    num_images, classes = outcomes.scores.shape

    def measure(weights: Tensor) -> list[Tensor]:
        values = weighted_metrics(flat, weights.repeat_interleave(classes).unsqueeze(1))
        return [value.squeeze() for value in values.values()]

    return _estimate_all(measure, num_images, list(METRICS))


class _WeightedSums:
    """Sums over the classes of metrics and of their derivatives by the images' weights, for a weighted mean."""

    def __init__(self, num_images: int, names: Sequence[str] | dict[str, str]):
        self.num_images = num_images
        self.value, self.weight = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
        # Of the numerator, and of the denominator if it depends on the images.
        self.gradients = {name: torch.zeros(2, num_images, dtype=torch.float64) for name in names}

    def add(
        self, name: str, values: Tensor, gradient: Tensor, class_weights: Tensor, counted: Tensor | None = None
    ) -> None:
        """Add classes with `values` (classes,), `gradient` (n, classes) and `class_weights` (classes,).

        The weights are the numbers of images for which `counted` is true, or constants.
        """
        values = values.nan_to_num(0.0)
        self.value[name] += (class_weights * values).sum().item()
        self.weight[name] += class_weights.sum().item()
        self.gradients[name][0] += gradient @ class_weights
        if counted is not None:
            is_counted = counted * (class_weights > 0)
            self.gradients[name][0] += is_counted.double() @ values
            self.gradients[name][1] += is_counted.sum(1)

    def estimates(self) -> Estimates:
        """Return the means of the classes."""
        results = {}
        for name, weight in self.weight.items():
            if not weight:
                results[name] = Estimate(None)
                continue
            mean = self.value[name] / weight
            gradient = (self.gradients[name][0] - mean * self.gradients[name][1]) / weight
            results[name] = estimate(name, mean, gradient.square().sum().sqrt().item(), self.num_images)
        return results


def _class_chunks(outcomes: OneVsRest) -> Iterator[OneVsRest]:
    """Split the classes so that the matrices stay small."""
    images, classes = outcomes.scores.shape
    size = max(1, MAX_ELEMENTS // max(1, images))
    for start in range(0, classes, size):
        yield OneVsRest(*(values[:, start : start + size] for values in outcomes))


def _relevant_images(name: str, positives: Tensor, predicted: Tensor, count: int) -> Tensor:
    """Return how many images (classes,) a metric is a statement about, for its interval at 0 and 1."""
    if name == "precision":
        return predicted
    if name == "specificity":
        return count - positives
    if name in ("recall", "f1", "average_precision"):
        return positives
    return torch.minimum(positives, count - positives)
