"""Several networks that answer as one: the mean of their probabilities, as in "Going Deeper", section 7."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .network import Network


def average_logits(views: Sequence[Tensor], dtype: torch.dtype = torch.float64) -> Tensor:
    """Logits (n, classes) of several answers to the same pictures -> logarithms of their mean probabilities.

    Computed in `dtype`. They can stand wherever logits do: softmax gives the averaged probabilities back.
    """
    logs = torch.stack([view.to(dtype).log_softmax(dim=1) for view in views])
    return logs.logsumexp(dim=0) - math.log(len(views))


class Ensemble(nn.Module):
    """Networks for the same pixels and classes, as one module.

    `networks` are the members in order, `min_size` is the least input height and width that all of them take, in
    pixels. ValueError for none, and for members whose channels or classes differ.
    """

    def __init__(self, networks: Sequence[Network]):
        super().__init__()
        ends = {(network.in_channels, network.num_classes) for network in networks}
        if len(ends) != 1:
            raise ValueError("an ensemble needs networks of the same channels and classes, one at least")
        self.networks = nn.ModuleList(networks)
        ((self.in_channels, self.num_classes),) = ends
        self.min_size = max(network.min_size for network in networks)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels (batch, in_channels, h, w) -> logarithms of the mean probabilities (batch, num_classes)."""
        return average_logits([network(x) for network in self.networks], torch.float32)


def networks_of(model: Network | Ensemble) -> list[Network]:
    """The members of an ensemble; a single network alone."""
    if isinstance(model, Ensemble):
        return [network for network in model.networks if isinstance(network, Network)]
    return [model]
