"""Check the tensors of a state dict against a network."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def check_state_dict(
    expected: Mapping[str, torch.Size], tensors: Mapping[str, Tensor], origin: str, max_listed: int = 5
) -> None:
    """Raise ValueError that lists missing, unexpected and wrongly shaped keys unless `tensors` are as `expected`."""
    problems = [f"missing {key}" for key in expected.keys() - tensors.keys()]
    problems += [f"unexpected {key}" for key in tensors.keys() - expected.keys()]
    problems += [
        f"{key} is {tuple(tensors[key].shape)}, not {tuple(expected[key])}"
        for key in expected.keys() & tensors.keys()
        if tensors[key].shape != expected[key]
    ]
    if problems:
        more = f" and {len(problems) - max_listed} more" if len(problems) > max_listed else ""
        raise ValueError(f"{origin}: does not fit the network: {'; '.join(sorted(problems)[:max_listed])}{more}")


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    """Return the shape of every tensor of a network."""
    return {key: value.shape for key, value in model.state_dict().items()}
