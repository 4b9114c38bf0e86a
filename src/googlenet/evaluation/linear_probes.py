"""Linear probes: how well each layer of a network separates classes.

A probe is a linear classifier on a layer's globally averaged features, with the network frozen ("Understanding
intermediate layers using linear classifier probes", Alain & Bengio, 2016).
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.network import Network

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


def pooled_features(model: Network, batches: Iterable[tuple[Tensor, Tensor]]) -> PooledFeatures:
    """Compute the globally averaged pixels and outputs of every layer for all images."""
    features: dict[str, list[Tensor]] = {}
    targets = []
    with torch.inference_mode():
        for pixels, labels in batches:
            features.setdefault(PIXELS, []).append(pixels.mean((2, 3)).cpu().double())
            for name, layer in model.trunk.named_children():
                pixels = layer(pixels)
                features.setdefault(name, []).append(pixels.mean((2, 3)).cpu().double())
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


def leave_one_out_top1(features: Tensor, labels: Tensor, classes: int) -> float:
    """Return the accuracy of probes on features (n, d), each image classified by a probe fitted on all others.

    It is that of the best of `PENALTIES`. One decomposition gives all probes: without image i, its residual is that of
    the full fit divided by 1 - h_ii, where h is the hat matrix (Allen, "The relationship between variable selection and
    data augmentation", 1974). Mean and scale of the features are those of all images.
    """
    count = len(labels)
    x = features - features.mean(0)
    scale = x.std(0, correction=0)
    x = x / torch.where(scale > 0, scale, torch.ones_like(scale))
    targets = torch.nn.functional.one_hot(labels, classes).to(x)
    values, vectors = torch.linalg.eigh(x @ x.T)
    best = 0.0
    for penalty in PENALTIES:
        shrinkage = values.clamp_min(0) / (values.clamp_min(0) + penalty * count)
        hat = (vectors * shrinkage) @ vectors.T + 1 / count
        residuals = (targets - hat @ targets) / (1 - hat.diagonal()).clamp_min(1e-12)[:, None]
        best = max(best, ((targets - residuals).argmax(1) == labels).double().mean().item())
    return best


def _top1(ridge: Ridge, features: Tensor, labels: Tensor) -> float:
    scores = (features - ridge.mean) / ridge.scale @ ridge.weight + ridge.bias
    return (scores.argmax(1) == labels).double().mean().item()
