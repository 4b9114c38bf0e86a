"""Optimizers and the moving average of the weights."""

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ...config.schema import OptimizerConfig
from ...models.network import trunk_name
from .muon import Muon
from .normalized_sgd import LayerwiseNormalizedSGD

Tensors = tuple[Tensor, ...] | list[Tensor]


def build_optimizer(options: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer with two parameter groups: weights of convolutions and linear layers (decayed) and others.

    Each learning-rate scale has groups of its own, with `lr_scale` in them. Frozen parameters are left out.
    """
    by_group: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            by_group.setdefault((parameter.ndim > 1, lr_scale_of(options, model, name)), []).append(parameter)
    if not by_group:
        raise ValueError("model.freeze: all layers are frozen, so nothing can be trained")
    _skip_import_of_dynamo()
    groups: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": options.weight_decay if decays else 0.0, "lr_scale": scale}
        for (decays, scale), parameters in by_group.items()
    ]
    match options.name:
        case "sgd":
            return torch.optim.SGD(groups, options.lr, momentum=options.momentum, nesterov=options.nesterov, fused=True)
        case "normalized_sgd":
            return LayerwiseNormalizedSGD(groups, options.lr, momentum=options.momentum, nesterov=options.nesterov)
        case "muon":
            return Muon(groups, options.lr, momentum=options.momentum, nesterov=options.nesterov)
        case "adamw":
            return torch.optim.AdamW(groups, options.lr, eps=options.eps, fused=True)
        case "rmsprop":
            return torch.optim.RMSprop(
                groups, options.lr, alpha=options.alpha, eps=options.eps, momentum=options.momentum
            )


def _skip_import_of_dynamo() -> None:
    """Keep PyTorch's optimizers from importing its compiler, which takes about a second.

    They import it to exclude some of their methods from compiled functions; here only networks are compiled, and
    PyTorch looks for the attribute that is set before it imports anything.
    """
    for name in ("__init__", "add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        method = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if method is not None and "torch._dynamo" not in sys.modules:
            method.__dynamo_disable = method


def lr_scale_of(options: OptimizerConfig, model: nn.Module, name: str) -> float:
    """Return the learning-rate scale of parameter `name`: 1 in the heads, lower in the trunk, by depth."""
    trunk = trunk_name(model)
    if not name.startswith(f"{trunk}."):
        return 1.0
    layers = [child for child, layer in model.get_submodule(trunk).named_children() if list(layer.parameters())]
    depth = len(layers) - 1 - layers.index(name.removeprefix(f"{trunk}.").split(".")[0])
    return float(options.trunk_lr_scale * options.layer_decay**depth)


def build_ema(model: nn.Module, decay: float) -> AveragedModel:
    """Return a copy of `model` that tracks its weights and statistics as an exponential moving average.

    After n updates the decay is min(decay, (1 + n) / (10 + n)), so that the first weights are forgotten quickly.
    """

    def update(averaged: Tensors, current: Tensors, count: Tensor | int) -> None:
        if not averaged[0].is_floating_point():
            torch._foreach_copy_(averaged, current)
            return
        updates = torch.as_tensor(count).to(averaged[0].dtype)
        weight = 1 - torch.clamp((1 + updates) / (10 + updates), max=decay)
        weight = weight.to(averaged[0].device, non_blocking=averaged[0].is_cuda)
        torch._foreach_lerp_(averaged, current, [weight] * len(averaged))

    ema_model = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    # Every update reads the counter: on the device that would wait for it.
    ema_model.n_averaged = ema_model.n_averaged.cpu()
    return ema_model
