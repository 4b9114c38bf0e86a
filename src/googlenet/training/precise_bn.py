"""Precise BN: recompute the running statistics of batch normalization for the weights and size that are delivered.

After training at several sizes the running statistics belong to the mixture of sizes, and a moving average of weights
has statistics of older weights. Both differ from the delivered network's statistics at the evaluation size. (Wu &
Johnson, "Rethinking 'Batch' in BatchNorm", 2021, section 3.)
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..config.schema import Recipe
from ..data.augment import Augment
from ..data.dataset import Split
from ..data.loader import full_batch_spec, steps_per_epoch, training_batch
from ..data.preprocess import Preprocess


def recompute_bn_stats(model: Any, batches: Iterable[Tensor]) -> None:
    """Replace the running mean and variance of each batch normalization by their averages over `batches` of pixels.

    Unlike `torch.optim.swa_utils.update_bn`, this also runs the auxiliary heads, disables dropout, and keeps the
    statistics of frozen layers (whose weight takes no gradient).
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.weight.requires_grad]
    modes = {module: module.training for module in model.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    device = next(model.parameters()).device
    model.eval()
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # the cumulative average
    with torch.no_grad():
        for pixels in batches:
            model.forward_aux(pixels.to(device))
    for norm, momentum in momenta.items():
        norm.momentum = momentum
    for module, mode in modes.items():
        module.training = mode


def clean_batches(recipe: Recipe, train: Split, preprocess: Preprocess) -> Iterator[Tensor]:
    """Yield training images without augmentation, in the order of the first epoch, at the size of `preprocess`.

    There are `recipe.precise_bn_batches` batches of the recipe's batch size; 0 for one epoch.
    """
    count, batch_size = len(train.labels), recipe.batch_size
    epoch = steps_per_epoch(count, batch_size)
    for step in range(min(recipe.precise_bn_batches or epoch, epoch)):
        spec = full_batch_spec(count, batch_size, step=step, size=preprocess.size, seed=recipe.seed)
        yield training_batch(train, preprocess, Augment(), spec).images
