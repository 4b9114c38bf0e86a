"""Ensembles: the mean of the probabilities of several networks ("Going Deeper with Convolutions", section 7)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .network import Network


def to_probabilities(logits: Tensor, multilabel: bool = False) -> Tensor:
    """Return the probabilities of logits (n, classes) in float64: of one class, or with `multilabel` of each label."""
    return logits.double().sigmoid() if multilabel else logits.double().softmax(dim=1)


def average_logits(views: Sequence[Tensor], dtype: torch.dtype = torch.float64, multilabel: bool = False) -> Tensor:
    """Return logits (n, classes) of the mean probabilities of several outputs for the same images.

    Each output is logits (n, classes). The result, computed in `dtype`, is the logarithm of the mean probability, or
    with `multilabel` its log-odds, whose sigmoid is the mean probability.
    """
    if multilabel:
        logits = torch.stack([view.to(dtype) for view in views])
        return F.logsigmoid(logits).logsumexp(dim=0) - F.logsigmoid(-logits).logsumexp(dim=0)
    log_probabilities = torch.stack([view.to(dtype).log_softmax(dim=1) for view in views])
    return log_probabilities.logsumexp(dim=0) - math.log(len(views))


class Ensemble(nn.Module):
    """Networks with the same input channels and classes, as one module.

    `networks` are the members in order. `min_size` is the smallest input height and width in pixels that all of them
    accept. With `multilabel` each class has a probability of its own. Raises ValueError for an empty sequence, and if
    channels or classes differ.
    """

    def __init__(self, networks: Sequence[Network], multilabel: bool = False):
        super().__init__()
        self.multilabel = multilabel
        shapes = {(network.in_channels, network.num_classes) for network in networks}
        if len(shapes) != 1:
            raise ValueError("an ensemble needs at least one network, all with the same channels and classes")
        self.networks = nn.ModuleList(networks)
        ((self.in_channels, self.num_classes),) = shapes
        self.min_size = max(network.min_size for network in networks)

    def forward(self, x: Tensor) -> Tensor:
        """Return `average_logits` (batch, num_classes) of the networks for pixels (batch, channels, h, w)."""
        return average_logits([network(x) for network in self.networks], torch.float32, self.multilabel)


def get_networks(model: Network | Ensemble) -> list[Network]:
    """Return the members of an ensemble, or a single network as a list."""
    if isinstance(model, Ensemble):
        return [network for network in model.networks if isinstance(network, Network)]
    return [model]
