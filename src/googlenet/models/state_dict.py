"""Check the tensors of a state dict against a network."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def check_state_dict(
    expected: Mapping[str, torch.Size], tensors: Mapping[str, Tensor], origin: str, max_listed: int = 5
) -> None:
    """Raise ValueError that lists missing, unexpected and wrongly shaped keys unless `tensors` are as `expected`.

    Values that are not finite are an error too; see `check_finite`.
    """
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
    check_finite({key: tensors[key] for key in expected}, origin)


def check_finite(tensors: Mapping[str, Tensor], origin: str) -> None:
    """Raise ValueError that names the first tensor with a value that is NaN or infinite."""
    counts = {key: int((~value.isfinite()).sum()) for key, value in tensors.items() if not value.is_meta}
    invalid = {key: count for key, count in counts.items() if count}
    if invalid:
        key, count = next(iter(invalid.items()))
        more = f", and {len(invalid) - 1} more tensors" if len(invalid) > 1 else ""
        raise ValueError(
            f"{origin}: {count:,} of {tensors[key].numel():,} values of {key} are not finite (NaN or infinite){more}: "
            "training diverged or the file is corrupt; use weights from before that"
        )


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    """Return the shape of every tensor of a network."""
    return {key: value.shape for key, value in model.state_dict().items()}
