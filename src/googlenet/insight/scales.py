"""The same picture at several sizes: what one network answers to each.

Global average pooling lets a network take any size; whether it knows the object at another size than it has learned
is another question, which this asks of one picture. (`evaluation.scales` asks it of a whole split.)
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.preprocess import Preprocess
from ..models.network import Network

# Times the size that the network has learned.
FACTORS = (0.5, 0.625, 0.75, 0.875, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)


def usual_sizes(model: Network, size: int) -> list[int]:
    """Sizes in pixels around the network's own `size`, none under its minimum."""
    return sorted({max(model.min_size, round(size * factor)) for factor in FACTORS})


def probabilities(model: Network, preprocess: Preprocess, picture: Tensor, sizes: Sequence[int]) -> Tensor:
    """Each class's probability, (sizes, classes) in 0..1, for one picture: uint8 (1, channels, h, w).

    The picture's square is resized to each of `sizes` from the original. A network in evaluation mode; ValueError for
    a size under its minimum.
    """
    device = next(model.parameters()).device
    with torch.no_grad():
        rows = [model(preprocess(picture, size).to(device)).double().softmax(-1).cpu() for size in sizes]
    return torch.cat(rows)
