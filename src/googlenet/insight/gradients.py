"""Gradients by depth: do they vanish, and do auxiliary heads keep them?

"Going Deeper with Convolutions", section 5, adds the heads to "increase the gradient signal that gets propagated
back". Here fresh networks are measured, with and without heads, before the first step and after some.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.network import Network

# Each auxiliary head's part of the loss, as in the paper.
AUX_WEIGHT = 0.3


class Depth(NamedTuple):
    """A network's gradients after so many `steps`.

    `layers` are the trunk's with weights, shallow to deep; `norms` the lengths of their weights' gradients,
    `relative` these divided by the lengths of the weights. `loss` is the classifier's, in nats.
    """

    steps: int
    loss: float
    layers: list[str]
    norms: list[float]
    relative: list[float]


def measure(model: Network, pixels: Tensor, labels: Tensor, steps: int = 0) -> Depth:
    """The gradients of the training loss of one batch (all heads', each auxiliary one at 0.3); weights stay."""
    total, main = _loss(model, pixels, labels)
    model.zero_grad(set_to_none=True)
    torch.autograd.backward(total)
    layers, norms, relative = [], [], []
    for name, layer in model.trunk.named_children():
        weights = [p for p in layer.parameters() if p.ndim > 1]
        if not weights:
            continue
        length = _length([p.grad for p in weights if p.grad is not None])
        layers.append(name)
        norms.append(length)
        relative.append(length / (_length([p.detach() for p in weights]) or 1.0))
    model.zero_grad(set_to_none=True)
    return Depth(steps, main.item(), layers, norms, relative)


def train_and_measure(
    build: Callable[[], Network],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    lr: float = 0.01,
    momentum: float = 0.9,
) -> list[Depth]:
    """The gradients of a fresh network before the first step, and after one step on each but the last of `batches`.

    Both are of the last batch, which is not trained on. Plain SGD, as in the solver of the public Caffe model;
    dropout as the network has it, drawn from PyTorch's global state, which is put back.
    """
    *seen, (pixels, labels) = batches
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build().train()
        optimiser = torch.optim.SGD(model.parameters(), lr, momentum=momentum)
        found = [measure(model, pixels, labels)]
        for images, truth in seen:
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(_loss(model, images, truth)[0])
            optimiser.step()
        if seen:
            found.append(measure(model, pixels, labels, len(seen)))
    return found


def _loss(model: Network, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """What is trained on, and the classifier's part of it."""
    logits, aux = model.forward_aux(pixels)
    main = F.cross_entropy(logits, labels)
    return main + AUX_WEIGHT * sum((F.cross_entropy(side, labels) for side in aux), torch.zeros(())), main


def _length(tensors: Iterable[Tensor]) -> float:
    return nn.utils.get_total_norm(list(tensors)).item()
