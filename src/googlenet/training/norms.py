"""Batch normalisation's running statistics, estimated anew for the size that the network will be used at.

A network that was trained at several sizes carries the statistics of their mixture, and a moving average of weights
the average of old ones. Neither are those of the delivered weights on pictures of the test size.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..data.dataset import Split
from ..data.loader import Augment, steps_per_epoch, training_batch
from ..data.preprocess import Preprocess
from .recipe import Recipe


def reestimate(model: Any, batches: Iterable[Tensor]) -> None:
    """Replace the running mean and variance of each normalisation by their averages over `batches` of pixels.

    What `torch.optim.swa_utils.update_bn` does, with three differences: auxiliary heads are run too, dropout is off,
    and frozen normalisations (whose gain takes no gradient) keep what they have.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.weight.requires_grad]
    modes = {module: module.training for module in model.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    device = next(model.parameters()).device
    model.eval()
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
    with torch.no_grad():
        for pixels in batches:
            model.forward_aux(pixels.to(device))
    for norm, momentum in momenta.items():
        norm.momentum = momentum
    for module, mode in modes.items():
        module.training = mode


def plain_batches(recipe: Recipe, train: Split, preprocess: Preprocess) -> Iterator[Tensor]:
    """Training pictures at the size of `preprocess`, unchanged, in the order of the first epoch.

    `recipe.reestimate_norm` batches of the recipe's batch size; 0 for all of them.
    """
    once = steps_per_epoch(len(train.labels), recipe.batch_size)
    for step in range(min(recipe.reestimate_norm or once, once)):
        yield training_batch(
            train, preprocess, Augment(),
            step=step, batch_size=recipe.batch_size, size=preprocess.size, seed=recipe.seed,
        ).images  # fmt: skip
