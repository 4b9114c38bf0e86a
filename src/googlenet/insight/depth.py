"""What depth buys: how well each layer's features tell the classes apart, from the pixels to the last map.

A network with auxiliary heads has been asked along its depth in training: their accuracy is the answer. Any network
can be asked by linear probes: one linear classifier on each layer's globally averaged features, the network left as
it is ("Understanding intermediate layers using linear classifier probes", Alain & Bengio, 2016).
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.network import Network
from .stages import outputs

PIXELS = "pixels"

# Ridge penalties that are tried, in units of the number of pictures that the probe is fitted on.
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


class Probe(NamedTuple):
    """A linear classifier on one layer: its number of `features`, the `penalty` that was chosen, its `top1`."""

    layer: str
    features: int
    penalty: float
    top1: float


class HeadRow(NamedTuple):
    """The `top1` of an auxiliary head by the layer that it listens to, or of the ``classifier``."""

    head: str
    top1: float


class Features(NamedTuple):
    """Every layer's globally averaged output, float64 (pictures, channels), and the `labels` (pictures,)."""

    layers: dict[str, Tensor]
    labels: Tensor


def heads_top1(model: Network, batches: Iterable[tuple[Tensor, Tensor]]) -> list[HeadRow]:
    """The accuracy of each auxiliary head and of the classifier, shallow to deep; a network in evaluation mode."""
    device = next(model.parameters()).device
    names = [*model.aux_heads, "classifier"]
    right, count = torch.zeros(len(names), dtype=torch.float64), 0
    with torch.inference_mode():
        for pixels, labels in batches:
            main, aux = model.forward_aux(pixels.to(device))
            answers = torch.stack([head.argmax(1).cpu() for head in (*aux, main)])
            right += (answers == labels.cpu()).sum(1)
            count += len(labels)
    return [HeadRow(name, top1) for name, top1 in zip(names, (right / count).tolist(), strict=True)]


def pooled_features(model: Network, batches: Iterable[tuple[Tensor, Tensor]]) -> Features:
    """Ask every layer of the trunk, and the pixels themselves, about all pictures."""
    device = next(model.parameters()).device
    found: dict[str, list[Tensor]] = {}
    truth = []
    with torch.inference_mode():
        for pixels, labels in batches:
            x = pixels.to(device)
            for name, out in ((PIXELS, x), *outputs(model, x)):
                found.setdefault(name, []).append(out.mean((2, 3)).double().cpu())
            truth.append(labels.cpu())
    return Features({name: torch.cat(parts) for name, parts in found.items()}, torch.cat(truth))


def probes(fit: Features, asked: Features, classes: int) -> list[Probe]:
    """A probe for each layer, fitted on the pictures of one split, with its accuracy on those of another.

    The penalty is the one with the best accuracy on the last fifth of `fit` (the smallest among equals), after which
    the probe is fitted on all of it. ValueError for fewer than ten pictures to fit.
    """
    count = len(fit.labels)
    if count < 10:
        raise ValueError(f"linear probes need ten pictures to fit at least, not {count}")
    held = count // 5
    rows = []
    for name, features in fit.layers.items():
        first, rest = features[:-held], features[-held:]
        scores = [
            _top1(ridge(first, fit.labels[:-held], classes, penalty), rest, fit.labels[-held:])
            for penalty in PENALTIES
        ]
        penalty = PENALTIES[max(range(len(scores)), key=lambda i: (scores[i], -i))]
        weights = ridge(features, fit.labels, classes, penalty)
        top1 = _top1(weights, asked.layers[name], asked.labels)
        rows.append(Probe(name, features.shape[1], penalty, top1))
    return rows


class Ridge(NamedTuple):
    """Scores are ((features - `mean`) / `scale`) @ `weight` + `bias`."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor


def ridge(features: Tensor, labels: Tensor, classes: int, penalty: float) -> Ridge:
    """Least squares to one-hot labels on standardised features (n, d), with `penalty` * n on the squared weights.

    In closed form, by the smaller of the two systems, (d, d) or (n, n). The bias is not penalised.
    """
    mean, scale = features.mean(0), features.std(0, correction=0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    x = (features - mean) / scale
    targets = torch.nn.functional.one_hot(labels, classes).to(x)
    bias = targets.mean(0)
    centred, count = targets - bias, len(x)
    if x.shape[1] <= count:
        weight = torch.linalg.solve(x.T @ x + penalty * count * torch.eye(x.shape[1]).to(x), x.T @ centred)
    else:
        weight = x.T @ torch.linalg.solve(x @ x.T + penalty * count * torch.eye(count).to(x), centred)
    return Ridge(mean, scale, weight, bias)


def _top1(fitted: Ridge, features: Tensor, labels: Tensor) -> float:
    scores = (features - fitted.mean) / fitted.scale @ fitted.weight + fitted.bias
    return (scores.argmax(1) == labels).double().mean().item()
