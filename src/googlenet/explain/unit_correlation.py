"""Correlations of a layer's units, clustered: the statistics that motivated the Inception block.

"Going Deeper with Convolutions", section 3, after Arora et al. (2013): analyze the correlations of a layer's
activations, cluster highly correlated units, and approximate the sparse structure by dense blocks. The share of the
squared correlation inside the blocks is compared with chance, with independent units, and with an untrained network.
"""

from collections.abc import Iterable
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import FailedError
from ..models.network import Network
from . import plotting
from .branch_ablation import branch_widths
from .context import AnalysisResult, ExplainContext, OutputImage, iter_layer_outputs, stage_names

Array = NDArray[np.float64]

# Samples of the independent units; more do not change their result.
MAX_SAMPLES = 5000


class Correlations(NamedTuple):
    """The correlations (units, units) of a layer's channels `units` over `samples` positions; `dead` are constant."""

    matrix: Array
    units: list[int]
    dead: int
    samples: int


class Clustering(NamedTuple):
    """An `order` of the units that places correlated ones next to each other, and the `sizes` of diagonal blocks.

    `block_share` (0..1) is the blocks' share of the squared correlation off the diagonal, `chance_share` its mean over
    random orders, which is the blocks' share of the area.
    """

    order: list[int]
    sizes: list[int]
    block_share: float
    chance_share: float


def layer_samples(model: Network, layer: str, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterable[Tensor]:
    """Yield the layer's activations for each batch: float64 (images x positions, channels)."""
    with torch.inference_mode():
        for pixels, _ in batches:
            *_, (_, out) = iter_layer_outputs(model, pixels, until=layer)
            yield out.permute(0, 2, 3, 1).flatten(0, 2).cpu().double()


def correlate(samples: Iterable[Tensor]) -> Correlations:
    """Compute Pearson's correlation of every pair of columns of `samples`, (rows, columns) each, in one pass."""
    count, mean, scatter = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for rows in samples:
        batch_mean = rows.mean(0)
        centered = rows - batch_mean
        # The update of Chan et al. (1979) avoids large sums that cancel.
        step, total = batch_mean - mean, count + len(rows)
        scatter = scatter + (centered.T @ centered + torch.outer(step, step) * (count * len(rows) / total))
        mean, count = mean + step * (len(rows) / total), total
    power = scatter.diagonal()
    alive = power > 1e-12 * power.max().clamp_min(1e-30)
    units = alive.nonzero().flatten().tolist()
    scatter = scatter[alive][:, alive]
    scale = scatter.diagonal().rsqrt()
    matrix = (scatter * torch.outer(scale, scale)).clamp(-1, 1)
    matrix.fill_diagonal_(1.0)
    return Correlations(matrix.numpy(), units, len(power) - len(units), count)


def independent_correlations(units: int, samples: int, seed: int = 0) -> Array:
    """Return the correlations of independent units, estimated from `samples`: clustering finds blocks there too."""
    return np.asarray(np.corrcoef(np.random.default_rng(seed).standard_normal((units, samples))), dtype=np.float64)


def cluster(matrix: Array, num_blocks: int | None = None) -> Clustering:
    """Cluster the units by Ward's method into `num_blocks` (unset: the square root of the number of units).

    The distance of two units is that of their standardized outputs, sqrt(2 - 2 correlation). ValueError for fewer
    than three units; FailedError without SciPy.
    """
    count = len(matrix)
    if count < 3:
        raise ValueError(f"only {count} of the layer's units are not constant: clustering needs at least 3")
    try:
        from scipy.cluster.hierarchy import cut_tree, leaves_list, linkage
        from scipy.spatial.distance import squareform
    except ImportError:
        raise FailedError("clustering needs SciPy: pip install 'googlenet[explain]'") from None
    distance = np.sqrt(2 * np.clip(1.0 - matrix, 0.0, 2.0))
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance, checks=False), method="ward")
    order = leaves_list(tree)
    # The leaves of a cluster are adjacent in the tree's order.
    labels = cut_tree(tree, min(count, num_blocks or max(2, round(count**0.5)))).ravel()[order]
    sizes = [len(list(block)) for _, block in groupby(labels)]
    area = sum(size * (size - 1) for size in sizes) / (count * (count - 1))
    return Clustering(order.tolist(), sizes, block_share(matrix, order.tolist(), sizes), area)


def block_share(matrix: Array, order: list[int], sizes: list[int]) -> float:
    """Return the share of the squared correlation, off the diagonal, inside diagonal blocks of `sizes`; in 0..1."""
    squared = matrix[np.ix_(order, order)] ** 2
    np.fill_diagonal(squared, 0.0)
    ends = np.cumsum(sizes)
    inside = sum(squared[end - size : end, end - size : end].sum() for end, size in zip(ends, sizes, strict=True))
    total = squared.sum()
    return float(inside / total) if total else 0.0


def run(context: ExplainContext) -> AnalysisResult:
    """Cluster the units of a layer, of independent units and of an untrained network."""
    _, name, split = context.data
    stages = stage_names(context.model)
    layer = context.stage or stages[len(stages) // 2]
    trained, initial = (
        correlate(layer_samples(model, layer, context.batches(split)))
        for model in (context.model, context.untrained_model())
    )
    result = cluster(trained.matrix)
    num_units, num_blocks = len(trained.units), len(result.sizes)
    noise = cluster(independent_correlations(num_units, min(trained.samples, MAX_SAMPLES)), num_blocks)
    untrained = cluster(initial.matrix, num_blocks)
    shares, noise_shares, untrained_shares = (
        {"block_share": item.block_share, "chance_share": item.chance_share} for item in (result, noise, untrained)
    )
    document = {
        "split": name, "layer": layer, "units": num_units, "dead": trained.dead, "samples": trained.samples,
        "blocks": result.sizes, **shares, "independent": noise_shares,
        "untrained": {"units": len(initial.units), **untrained_shares},
        "order": [trained.units[index] for index in result.order],
    }  # fmt: skip
    lines = [
        f"{layer}: {num_units} units at {trained.samples:,} positions of {name}",
        f"{num_blocks} blocks of {min(result.sizes)} to {max(result.sizes)} units contain {_ratio(result)} as in a "
        f"random order ({result.chance_share:.3f} of the squared correlation)",
        f"untrained network: {_ratio(untrained)}",
        f"independent units: {_ratio(noise)}",
    ]
    if trained.dead:
        lines.append(f"{trained.dead} constant units are excluded")
    pixels, _ = next(iter(context.batches(split)))
    widths = branch_widths(context.model, layer, pixels[:2])
    stops = np.cumsum([0, *widths.values()])
    alive = np.diff(np.searchsorted(trained.units, stops)).tolist()
    png = plotting.draw_units(trained.matrix, result, layer, dict(zip(widths, alive, strict=True)))
    image = OutputImage("units.png", png, f"Correlations of the units of {layer}.")
    return AnalysisResult("Correlated units", document, [image], lines)


def _ratio(clustering: Clustering) -> str:
    ratio = clustering.block_share / clustering.chance_share
    return f"{clustering.block_share:.3f} of the squared correlation, {ratio:.2f} times as much"
