"""Metrics of stored features: KID, Inception Score, precision, recall, density and coverage.

Random choices are those of NumPy's generator `RandomState` with a seed, in the order in which torch-fidelity and
clean-fid draw them, so that the same features and seed give the same value.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .statistics import BLOCK_ROWS

DEFAULT_SEED = 2020  # torch-fidelity's
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
NUM_SPLITS = 10
# Neighbors: those of the papers' experiments.
PRECISION_NEIGHBORS, DENSITY_NEIGHBORS = 3, 5
# Distances that are in memory at a time.
MAX_DISTANCES = 2**24


class Head(NamedTuple):
    """The classifier of a network: `weight` (classes, d) and `bias` (classes,); None without one."""

    weight: Tensor
    bias: Tensor | None = None

    def logits(self, features: Tensor) -> Tensor:
        """Return float64 (n, classes) of features (n, d)."""
        logits = features.double() @ self.weight.double().T
        return logits if self.bias is None else logits + self.bias.double()


class MeanWithSd(NamedTuple):
    """A mean, and the standard deviation (with n, not n - 1) of the values it is taken over."""

    mean: float
    sd: float

    @classmethod
    def of(cls, values: list[float]) -> "MeanWithSd":
        """Summarize values, at least one."""
        return cls(float(np.mean(values)), float(np.std(values)))


def kernel_inception_distance(
    real: Tensor, fake: Tensor, seed: int = DEFAULT_SEED, subsets: int = KID_SUBSETS, subset_size: int = KID_SUBSET_SIZE
) -> MeanWithSd:
    """Return KID of features (n, d) and (m, d): mean and standard deviation over random subsets.

    The unbiased estimate of the squared maximum mean discrepancy with the kernel (x.y / d + 1)^3 ("Demystifying MMD
    GANs", 2018). Subsets have `subset_size` images, or all if there are fewer. Products are computed in float32.
    """
    size = min(subset_size, len(real), len(fake))
    if size < 2:
        raise ValueError("KID needs 2 or more images in each set")
    generator = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        y = fake[torch.from_numpy(generator.choice(len(fake), size, replace=False))]
        x = real[torch.from_numpy(generator.choice(len(real), size, replace=False))]
        values.append(_squared_mmd(x, y))
    return MeanWithSd.of(values)


def _squared_mmd(x: Tensor, y: Tensor) -> float:
    """Return the unbiased estimate for two sets of the same size m: float (m, d)."""
    count = len(x)
    within = 0.0
    for features in (x, y):
        kernel = _polynomial_kernel(features, features)
        within += float(kernel.sum() - kernel.diagonal().sum())
    between = float(_polynomial_kernel(x, y).sum())
    return within / (count * (count - 1)) - 2 * between / count**2


def _polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    return ((x @ y.T).double() / x.shape[1] + 1) ** 3


def inception_score(features: Tensor, head: Head, seed: int = DEFAULT_SEED, splits: int = NUM_SPLITS) -> MeanWithSd:
    """Return the Inception Score: mean and standard deviation over `splits` parts of the shuffled images.

    The score of a part is the exponential of the mean KL divergence between the probabilities of an image and their
    mean ("Improved Techniques for Training GANs", 2016). ValueError for fewer images than parts.
    """
    if len(features) < splits:
        raise ValueError(f"the Inception Score needs {splits} or more images, not {len(features)}")
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(features)))
    bounds = [index * len(features) // splits for index in range(splits + 1)]
    return MeanWithSd.of([
        _score(features, order[start:stop], head) for start, stop in pairwise(bounds)
    ])  # fmt: skip


def _score(features: Tensor, rows: Tensor, head: Head) -> float:
    total = torch.zeros(len(head.weight), dtype=torch.float64)
    negative_entropy = 0.0
    for block in torch.split(rows, BLOCK_ROWS):
        log_probabilities = head.logits(features[block]).log_softmax(1)
        probabilities = log_probabilities.exp()
        total += probabilities.sum(0)
        negative_entropy += float((probabilities * log_probabilities).sum())
    mean = total / len(rows)
    # A class of probability 0 contributes 0.
    return float(np.exp(negative_entropy / len(rows) - float(torch.xlogy(mean, mean).sum())))


class Manifold(NamedTuple):
    """Precision and recall (Kynkaanniemi et al., 2019), density and coverage (Naeem et al., 2020)."""

    precision: float
    recall: float
    density: float
    coverage: float


def manifold_metrics(real: Tensor, fake: Tensor) -> Manifold:
    """Return the share of images of each set within the other's neighborhoods, of features (n, d) and (m, d).

    A neighborhood reaches to the 3rd nearest image of the same set for precision and recall, and to the 5th of the
    real ones for density and coverage. ValueError for sets that have no more images than that.
    """
    if min(len(real), len(fake)) <= DENSITY_NEIGHBORS:
        raise ValueError(f"precision, recall, density and coverage need more than {DENSITY_NEIGHBORS} images per set")
    center = real[:BLOCK_ROWS].double().mean(0)
    fake_radius = neighbor_distances(fake, PRECISION_NEIGHBORS, center)[:, -1]
    real_distances = neighbor_distances(real, DENSITY_NEIGHBORS, center)
    real_radius, density_radius = real_distances[:, PRECISION_NEIGHBORS - 1], real_distances[:, -1]
    is_recalled = torch.zeros(len(real), dtype=torch.bool)
    nearest = torch.full((len(real),), torch.inf, dtype=torch.float64)
    num_precise, num_within = 0, 0
    for start, distances in distance_blocks(fake, real, center):
        num_precise += int((distances <= real_radius).any(1).sum())
        num_within += int((distances < density_radius).sum())
        radius = fake_radius[start : start + len(distances)]
        is_recalled |= (distances <= radius[:, None]).any(0)
        nearest = torch.minimum(nearest, distances.amin(0))
    return Manifold(
        precision=num_precise / len(fake),
        recall=float(is_recalled.double().mean()),
        density=num_within / (DENSITY_NEIGHBORS * len(fake)),
        coverage=float((nearest < density_radius).double().mean()),
    )


def neighbor_distances(features: Tensor, count: int, center: Tensor) -> Tensor:
    """Return the distances to the `count` nearest other images, ascending: float64 (n, count)."""
    parts = []
    for start, distances in distance_blocks(features, features, center):
        rows = torch.arange(len(distances))
        distances[rows, rows + start] = torch.inf
        parts.append(distances.topk(count, largest=False).values)
    return torch.cat(parts)


def distance_blocks(first: Tensor, second: Tensor, center: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the first row of each block of `first` (n, d), and its distances float64 (rows, m) to `second` (m, d).

    `center` (d,) is near both: products of centered features have smaller rounding errors.
    """
    rows = max(1, min(BLOCK_ROWS, MAX_DISTANCES // len(second)))
    for start in range(0, len(first), rows):
        block = first[start : start + rows].double() - center
        parts = []
        for other in torch.split(second, BLOCK_ROWS):
            columns = other.double() - center
            squares = block.square().sum(1)[:, None] + columns.square().sum(1) - 2 * block @ columns.T
            parts.append(squares.clamp_min_(0).sqrt_())
        yield start, torch.cat(parts, dim=1)
