"""Gradients by depth of untrained networks, with and without auxiliary heads.

"Going Deeper with Convolutions", section 5, adds the heads to "increase the gradient signal that gets propagated back".
The gradients are measured before the first step and after some steps.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoint.format import build_network
from ..models.factory import create_model
from ..models.network import Network
from . import plotting
from .context import AnalysisResult, ExplainContext, OutputImage

# The weight of each auxiliary loss, as in the paper.
AUX_WEIGHT = 0.3
BATCH_SIZE, NUM_STEPS = 32, 20
LR, MOMENTUM = 0.01, 0.9
INITS = {"truncated_normal": "He", "xavier": "Xavier"}
# The smallest input that the paper's pooling (ceil mode) accepts.
MIN_CEIL_SIZE = 31


class GradientNorms(NamedTuple):
    """L2 norms of the gradients of the trunk's `layers` with weights, after `steps` training steps.

    `relative` norms are divided by those of the weights. `loss` is the classifier's, in nats.
    """

    steps: int
    loss: float
    layers: list[str]
    norms: list[float]
    relative: list[float]


def measure_gradients(model: Network, pixels: Tensor, labels: Tensor, steps: int = 0) -> GradientNorms:
    """Measure the gradients of the training loss, with auxiliary losses, of one batch; the weights do not change."""
    total, classifier_loss = _losses(model, pixels, labels)
    model.zero_grad(set_to_none=True)
    torch.autograd.backward(total)
    layers, norms, relative = [], [], []
    for name, layer in model.trunk.named_children():
        if weights := [p for p in layer.parameters() if p.ndim > 1]:
            norm = nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None]).item()
            layers.append(name)
            norms.append(norm)
            relative.append(norm / (nn.utils.get_total_norm([p.detach() for p in weights]).item() or 1.0))
    model.zero_grad(set_to_none=True)
    return GradientNorms(steps, classifier_loss.item(), layers, norms, relative)


def train_and_measure(build: Callable[[], Network], batches: Iterable[tuple[Tensor, Tensor]]) -> list[GradientNorms]:
    """Measure a new network's gradients before the first step, and after a step on each but the last of `batches`.

    Both are measured on the last batch. Trains with SGD as the public Caffe model; the random state is restored.
    """
    *train_batches, (pixels, labels) = batches
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build().train()
        optimizer = torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM)
        results = [measure_gradients(model, pixels, labels)]
        for images, targets in train_batches:
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(_losses(model, images, targets)[0])
            optimizer.step()
        if train_batches:
            results.append(measure_gradients(model, pixels, labels, len(train_batches)))
    return results


def _losses(model: Network, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the training loss, and the classifier's share of it."""
    logits, aux_logits = model.forward_aux(pixels)
    loss = F.cross_entropy(logits, labels)
    return loss + AUX_WEIGHT * sum((F.cross_entropy(aux, labels) for aux in aux_logits), torch.zeros(())), loss


def run(context: ExplainContext) -> AnalysisResult:
    """Measure the plain GoogLeNet with and without auxiliary heads, and the network of the run's recipe."""
    train, preprocess, seed = context.data.train, context.checkpoint.preprocess, context.checkpoint.recipe.seed
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(seed))
    indices = [part for part in torch.split(order, BATCH_SIZE)[: NUM_STEPS + 1] if len(part) > 1]
    batches = [
        (preprocess(pixels, context.size), train.labels[part])
        for part, pixels in zip(indices, train.pixels(indices), strict=True)
    ]
    results = {name: train_and_measure(build, batches) for name, build in _networks(context).items()}
    after = f"after {len(batches) - 1} steps"
    lines = [
        "gradient norm / weight norm of the first and the last layer:",
        f"{'':<40}{'before the first step':>24}{after:>24}{'loss':>8}",
    ]
    for name, steps in results.items():
        columns = "".join(f"{f'{s.relative[0]:.4f}  {s.relative[-1]:.4f}':>24}" for s in (steps[0], steps[-1]))
        lines.append(f"{name:<40}{columns}{steps[-1].loss:>8.3f}")
    lines.append(f"untrained networks; SGD with lr {LR}, momentum {MOMENTUM}, batch size {len(indices[0])}")
    document = [{"network": name, **step._asdict()} for name, steps in results.items() for step in steps]
    png = plotting.draw_gradients(results)
    image = OutputImage("gradients.png", png, "Gradients by depth, with and without auxiliary heads.")
    return AnalysisResult("Gradients by depth", document, [image], lines)


def _networks(context: ExplainContext) -> dict[str, Callable[[], Network]]:
    """Return functions that build the compared networks, by name."""
    recipe, classes = context.checkpoint.recipe, len(context.checkpoint.classes)
    config, channels = recipe.model, context.checkpoint.preprocess.channels
    options = {
        "pool_mode": "ceil" if context.size >= MIN_CEIL_SIZE else "same", "width_mult": config.width_mult or 1.0,
        "stem_stride": config.stem_stride or 4, "seed": recipe.seed,
    }  # fmt: skip
    networks: dict[str, Callable[[], Network]] = {
        f"googlenet, {label}{', auxiliary heads' if aux else ''}": partial(
            create_model, "googlenet", classes, channels, aux, init=init, **options
        )
        for init, label in INITS.items()
        for aux in (False, True)
    }
    return networks | {f"{config.name}, as in the run": partial(build_network, recipe, classes, channels)}
