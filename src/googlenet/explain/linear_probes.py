"""Accuracy by depth: a linear probe on each layer, and the auxiliary classifiers.

A probe is a linear classifier on a layer's globally averaged features, with the network frozen ("Understanding
intermediate layers using linear classifier probes", Alain & Bengio, 2016).
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.network import Network
from . import plotting
from .context import AnalysisResult, ExplainContext, OutputImage, iter_layer_outputs

PIXELS = "pixels"

# Candidates of the ridge penalty, in units of the number of images that the probe is fitted on.
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
MIN_IMAGES = 10


class Probe(NamedTuple):
    """A linear classifier on a layer: the number of `features`, the selected `penalty`, and its `top1`."""

    layer: str
    features: int
    penalty: float
    top1: float


class PooledFeatures(NamedTuple):
    """Every layer's globally averaged output, float64 (images, channels), and the `labels` (images,)."""

    layers: dict[str, Tensor]
    labels: Tensor


def evaluate_heads(model: Network, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Return the top-1 accuracy of each auxiliary head, by its layer, and of the ``classifier``, in evaluation mode."""
    names = [*model.aux_heads, "classifier"]
    correct, count = torch.zeros(len(names), dtype=torch.float64), 0
    with torch.inference_mode():
        for pixels, labels in batches:
            logits, aux_logits = model.forward_aux(pixels)
            correct += torch.stack([(head.argmax(1) == labels).sum().cpu() for head in (*aux_logits, logits)])
            count += len(labels)
    return dict(zip(names, (correct / count).tolist(), strict=True))


def pooled_features(model: Network, batches: Iterable[tuple[Tensor, Tensor]]) -> PooledFeatures:
    """Compute the globally averaged pixels and outputs of every layer for all images."""
    features: dict[str, list[Tensor]] = {}
    targets = []
    with torch.inference_mode():
        for pixels, labels in batches:
            for name, out in ((PIXELS, pixels), *iter_layer_outputs(model, pixels)):
                features.setdefault(name, []).append(out.mean((2, 3)).cpu().double())
            targets.append(labels.cpu())
    return PooledFeatures({name: torch.cat(rows) for name, rows in features.items()}, torch.cat(targets))


def fit_probes(train: PooledFeatures, test: PooledFeatures, classes: int) -> list[Probe]:
    """Fit a probe for each layer on `train` and measure its accuracy on `test`.

    The penalty is selected on the last fifth of `train` (the smallest of ties); then all of `train` is used.
    """
    count = len(train.labels)
    if count < MIN_IMAGES:
        raise ValueError(f"linear probes need at least {MIN_IMAGES} training images, not {count}")
    split, probes = count - count // 5, []
    for name, features in train.layers.items():
        scores = {}
        for penalty in PENALTIES:
            ridge = fit_ridge(features[:split], train.labels[:split], classes, penalty)
            scores[penalty] = _top1(ridge, features[split:], train.labels[split:])
        best = max(PENALTIES, key=lambda penalty: (scores[penalty], -penalty))
        top1 = _top1(fit_ridge(features, train.labels, classes, best), test.layers[name], test.labels)
        probes.append(Probe(name, features.shape[1], best, top1))
    return probes


class Ridge(NamedTuple):
    """Scores are ((features - `mean`) / `scale`) @ `weight` + `bias`."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor


def fit_ridge(features: Tensor, labels: Tensor, classes: int, penalty: float) -> Ridge:
    """Fit one-hot labels by least squares on standardized features (n, d), with `penalty` * n on the squared weights.

    In closed form, by the smaller of the two systems, (d, d) or (n, n). The bias is not penalized.
    """
    mean, scale = features.mean(0), features.std(0, correction=0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    x = (features - mean) / scale
    targets = torch.nn.functional.one_hot(labels, classes).to(x)
    bias = targets.mean(0)
    centered, count = targets - bias, len(x)
    if x.shape[1] <= count:
        weight = torch.linalg.solve(x.T @ x + penalty * count * torch.eye(x.shape[1]).to(x), x.T @ centered)
    else:
        weight = x.T @ torch.linalg.solve(x @ x.T + penalty * count * torch.eye(count).to(x), centered)
    return Ridge(mean, scale, weight, bias)


def _top1(ridge: Ridge, features: Tensor, labels: Tensor) -> float:
    scores = (features - ridge.mean) / ridge.scale @ ridge.weight + ridge.bias
    return (scores.argmax(1) == labels).double().mean().item()


def run(context: ExplainContext) -> AnalysisResult:
    """Probe every layer of the network and of an untrained one, and evaluate the network's own heads."""
    train, name, split = context.data
    if name == "train":
        # Probes are never evaluated on the images that they are fitted on.
        half = len(split.labels) // 2
        train, split = split.slice(0, half), split.slice(half, None)
    classes = len(context.checkpoint.classes)
    trained, untrained = (
        fit_probes(
            pooled_features(model, context.batches(train)), pooled_features(model, context.batches(split)), classes
        )
        for model in (context.model, context.untrained_model())
    )
    majority_class = torch.bincount(split.labels, minlength=classes).max().item() / len(split.labels)
    heads = evaluate_heads(context.model, context.batches(split))
    png = plotting.draw_probes(trained, untrained, heads, majority_class)
    document = {
        "split": name, "images": len(split.labels), "train_images": len(train.labels), "majority_class": majority_class,
        "probes": [row._asdict() for row in trained], "untrained": [row._asdict() for row in untrained],
        "heads": [{"head": head, "top1": top1} for head, top1 in heads.items()],
    }  # fmt: skip
    lines = [
        f"{name}, {len(split.labels):,} images; probes fitted on {len(train.labels):,} training images; "
        f"the most frequent class {majority_class:.3f}",
        f"{'probe on':<20}{'features':>9}{'top-1':>9}{'untrained':>11}",
    ]
    lines += [
        f"{row.layer:<20}{row.features:>9}{row.top1:>9.4f}{other.top1:>11.4f}"
        for row, other in zip(trained, untrained, strict=True)
    ]
    lines += [f"head {head:<24}{top1:>9.4f}" for head, top1 in heads.items()]
    if len(heads) == 1:
        lines.append("the run has no auxiliary heads")
    return AnalysisResult("Accuracy by depth", document, [OutputImage("probes.png", png, "Accuracy by depth.")], lines)
