"""What a step does with the gradients: apply them, and average the weights that come of it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..data.transfer import send
from ..models.network import trunk_name
from .layerwise import LayerwiseSGD
from .muon import Muon
from .recipe import Optimiser

Tensors = tuple[Tensor, ...] | list[Tensor]


def build_optimiser(options: Optimiser, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser over two groups: weights of convolutions and linear layers, which decay, and the rest.

    There are more groups where the learning rate differs by depth: each has a `factor` to multiply it by. Frozen
    parameters are in none.
    """
    chosen: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            chosen.setdefault((parameter.ndim > 1, rate_factor(options, model, name)), []).append(parameter)
    if not chosen:
        raise ValueError("every layer is frozen: there is nothing to train")
    groups: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": options.weight_decay if decays else 0.0, "factor": factor}
        for (decays, factor), parameters in chosen.items()
    ]
    match options.name:
        case "sgd":
            momentum, nesterov = options.momentum, options.nesterov
            if options.layerwise:
                return LayerwiseSGD(groups, options.lr, momentum=momentum, nesterov=nesterov)
            return torch.optim.SGD(groups, options.lr, momentum=momentum, nesterov=nesterov, fused=True)
        case "muon":
            return Muon(groups, options.lr, momentum=options.momentum, nesterov=options.nesterov)
        case "adamw":
            return torch.optim.AdamW(groups, options.lr, eps=options.eps, fused=True)
        case "rmsprop":
            return torch.optim.RMSprop(
                groups, options.lr, alpha=options.alpha, eps=options.eps, momentum=options.momentum
            )


def rate_factor(options: Optimiser, model: nn.Module, name: str) -> float:
    """What to multiply the learning rate of parameter `name` by: 1 in the heads, less in the trunk, by depth."""
    trunk = trunk_name(model)
    if not name.startswith(f"{trunk}."):
        return 1.0
    layers = [child for child, layer in model.get_submodule(trunk).named_children() if list(layer.parameters())]
    depth = len(layers) - 1 - layers.index(name.removeprefix(f"{trunk}.").split(".")[0])
    return float(options.backbone * options.layer_decay**depth)


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of `model` whose weights and statistics follow it as an exponential moving average.

    The decay rises to `decay` as (1 + n) / (10 + n) over the updates n, so that the first weights are soon forgotten.
    """

    def update(averaged: Tensors, current: Tensors, count: Tensor | int) -> None:
        if not averaged[0].is_floating_point():
            torch._foreach_copy_(averaged, current)
            return
        seen = torch.as_tensor(count).to(averaged[0].dtype)
        part = send(1 - torch.clamp((1 + seen) / (10 + seen), max=decay), averaged[0].device)
        torch._foreach_lerp_(averaged, current, [part] * len(averaged))

    average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    # Every update asks whether it is the first: a count on the device would be waited for.
    average.n_averaged = average.n_averaged.cpu()
    return average
