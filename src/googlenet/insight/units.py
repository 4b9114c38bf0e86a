"""Which units of a layer go together: the statistics that the Inception block was drawn from.

"Going Deeper with Convolutions", section 3, after Arora et al. (2013): look at the correlations of a layer's
activations, cluster the units whose outputs are highly correlated (neurons that fire together, wire together), and
gather what is sparse into dense blocks. Here the correlations are measured, the units clustered, and it is counted
how much of the squared correlation the blocks hold, against chance in two ways.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import FailedError
from ..models.network import Network
from .stages import outputs

Array = NDArray[np.float64]


class Activity(NamedTuple):
    """The correlations of a layer's units (channels) over pictures and positions.

    `matrix` (units, units), `units` their numbers among the layer's channels, `dead` how many channels never changed
    and have no correlation, `samples` the number of positions of all pictures.
    """

    matrix: Array
    units: list[int]
    dead: int
    samples: int


class Blocks(NamedTuple):
    """Units in an order that puts correlated ones side by side, cut into `sizes` of blocks along the diagonal.

    Of the squared correlation off the diagonal the blocks hold the share `held`; in a random order blocks of these
    sizes hold `by_chance` on average, which is their share of the area. Both in 0..1.
    """

    order: list[int]
    sizes: list[int]
    held: float
    by_chance: float


def layer_samples(model: Network, layer: str, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterable[Tensor]:
    """The layer's activations, a batch at a time: float64 (pictures x positions, channels)."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        for pixels, _ in batches:
            *_, (_, out) = outputs(model, pixels.to(device), upto=layer)
            yield out.permute(0, 2, 3, 1).flatten(0, 2).double().cpu()


def correlations(samples: Iterable[Tensor]) -> Activity:
    """Pearson's correlation of every pair of columns, over all rows of `samples` (rows, columns), in one pass."""
    count, mean, scatter = 0, torch.zeros(()), torch.zeros(())
    for rows in samples:
        new = rows.mean(0)
        centred = rows - new
        if count == 0:
            mean, scatter = torch.zeros_like(new), torch.zeros(len(new), len(new), dtype=new.dtype)
        # Chan et al.'s update of two parts' moments: no large sums that cancel.
        step, total = new - mean, count + len(rows)
        scatter += centred.T @ centred + torch.outer(step, step) * (count * len(rows) / total)
        mean, count = mean + step * (len(rows) / total), total
    power = scatter.diagonal()
    alive = power > 1e-12 * power.max().clamp_min(1e-30)
    units = alive.nonzero().flatten().tolist()
    kept = scatter[alive][:, alive]
    scale = kept.diagonal().rsqrt()
    matrix = (kept * torch.outer(scale, scale)).clamp(-1, 1)
    matrix.fill_diagonal_(1.0)
    return Activity(matrix.numpy(), units, len(power) - len(units), count)


def independent(units: int, samples: int, seed: int = 0) -> Array:
    """The correlations of so many units that have nothing to do with each other, from so many samples (2 at least).

    Clustering finds blocks in any matrix: these are what it finds where there are none.
    """
    found: Array = np.asarray(np.corrcoef(np.random.default_rng(seed).standard_normal((units, samples))))
    return found


def cluster(matrix: Array, blocks: int | None = None) -> Blocks:
    """Ward's clustering of the units, cut into so many `blocks` (unset: the root of the number of units).

    The distance of two units is that of their standardised outputs, sqrt(2 - 2 correlation). ValueError for fewer
    than three units; FailedError without SciPy.
    """
    count = len(matrix)
    if count < 3:
        raise ValueError(f"only {count} of the layer's units ever change: there is nothing to cluster")
    order, sizes = _clustered(matrix, min(count, blocks or max(2, round(count**0.5))))
    area = sum(size * (size - 1) for size in sizes) / (count * (count - 1))
    return Blocks(order, sizes, held_by_blocks(matrix, order, sizes), area)


def held_by_blocks(matrix: Array, order: list[int], sizes: list[int]) -> float:
    """The share of the squared correlation, off the diagonal, that lies in blocks of `sizes` along it; in 0..1."""
    squared = matrix[np.ix_(order, order)] ** 2
    np.fill_diagonal(squared, 0.0)
    ends = np.cumsum(sizes)
    inside = sum(squared[end - size : end, end - size : end].sum() for end, size in zip(ends, sizes, strict=True))
    total = squared.sum()
    return float(inside / total) if total else 0.0


def _clustered(matrix: Array, blocks: int) -> tuple[list[int], list[int]]:
    """The units' order, and the sizes of the blocks in that order."""
    try:
        from scipy.cluster.hierarchy import cut_tree, leaves_list, linkage
        from scipy.spatial.distance import squareform
    except ImportError:
        raise FailedError("clustering needs SciPy: pip install 'googlenet[insight]'") from None
    distance = np.sqrt(2 * np.clip(1.0 - matrix, 0.0, 2.0))
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance, checks=False), method="ward")
    order = leaves_list(tree)
    labels = cut_tree(tree, blocks).ravel()[order]
    # A cluster's leaves lie side by side in the tree's order.
    starts = np.flatnonzero(np.diff(labels, prepend=-1))
    sizes = np.diff(np.append(starts, len(labels)))
    return order.tolist(), sizes.tolist()
