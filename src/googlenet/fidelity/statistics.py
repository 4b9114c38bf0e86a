"""Mean and covariance of features, the Frechet distance, its interval, and FID-infinity: pure functions in float64."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

EPS = torch.finfo(torch.float64).eps
# Groups of the jackknife, and the 97.5 % quantile of Student's t distribution with one degree of freedom less.
NUM_GROUPS, T_QUANTILE = 10, 2.2621571628
INFINITY_POINTS, INFINITY_MIN_IMAGES = 15, 5000
# The jackknife's correction is linear in 1 / n. With fewer images per feature the bias has other terms.
MIN_IMAGES_PER_FEATURE = 2.0
BLOCK_ROWS = 1024


class Moments(NamedTuple):
    """Sums over images: `mean` of their features float64 (d,), and `scatter` (d, d) of the differences from it."""

    num_images: int
    mean: Tensor
    scatter: Tensor

    def gaussian(self) -> "Gaussian":
        """Return mean and unbiased covariance; ValueError for fewer than two images or features that are not finite."""
        if self.num_images < 2:
            raise ValueError(f"{self.num_images} image{'s' * (self.num_images != 1)}: a covariance needs 2 or more")
        return Gaussian(self.mean, self.scatter / (self.num_images - 1), self.num_images).checked("the images")


class Gaussian(NamedTuple):
    """A normal distribution: `mean` float64 (d,), `covariance` (d, d), and the number of images; None if unknown."""

    mean: Tensor
    covariance: Tensor
    num_images: int | None = None

    def checked(self, origin: str) -> "Gaussian":
        """Return it; ValueError that names `origin` for shapes that do not fit or values that are not finite."""
        size = self.mean.numel()
        if self.mean.shape != (size,) or self.covariance.shape != (size, size) or not size:
            shapes = f"{tuple(self.mean.shape)} and {tuple(self.covariance.shape)}"
            raise ValueError(f"{origin}: mean and covariance have the shapes {shapes}, not (d,) and (d, d)")
        if not (self.mean.isfinite().all() and self.covariance.isfinite().all()):
            raise ValueError(f"{origin}: the features are not finite; the weights or the statistics are damaged")
        return self


def empty_moments(size: int) -> Moments:
    """Return the moments of no features."""
    return Moments(0, torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64))


def moments_of(features: Tensor) -> Moments:
    """Return the moments of features (n, d), n >= 1."""
    features = features.to(torch.float64)
    mean = features.mean(0)
    centered = features - mean
    return Moments(len(features), mean, centered.T @ centered)


def merge_moments(first: Moments, second: Moments) -> Moments:
    """Return the moments of both sets together ("Updating formulae ... sample variances", Chan et al., 1979)."""
    if not first.num_images or not second.num_images:
        return first if first.num_images else second
    count = first.num_images + second.num_images
    difference = second.mean - first.mean
    mean = first.mean + difference * (second.num_images / count)
    correction = torch.outer(difference, difference) * (first.num_images * second.num_images / count)
    return Moments(count, mean, first.scatter + second.scatter + correction)


def moments_of_blocks(features: Tensor) -> Moments:
    """Return the moments of features (n, d), which may be a memory-mapped file, in blocks of `BLOCK_ROWS`."""
    total = empty_moments(features.shape[1])
    for block in torch.split(features, BLOCK_ROWS):
        total = merge_moments(total, moments_of(block))
    return total


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """Return |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), 0 or more ("GANs Trained by a Two Time-Scale ...", 2017).

    The trace of the root is that of F' S2 F, with F F' = S1: two symmetric eigendecompositions, whose eigenvalues are
    real. ValueError for statistics of different size.
    """
    if first.mean.shape != second.mean.shape:
        sizes = f"{first.mean.numel()} and {second.mean.numel()}"
        raise ValueError(f"the statistics have {sizes} features: they are of different networks")
    if (second_rank := rank_of(second)) < (first_rank := rank_of(first)):
        first, second, first_rank, second_rank = second, first, second_rank, first_rank
    factor = root_factor(first.covariance, first_rank)
    product = factor.T @ second.covariance @ factor
    scale = first.covariance.trace() * second.covariance.trace()
    trace = trace_of_root(product, min(first_rank, second_rank), float(scale))
    return assemble(first, second.mean, float(second.covariance.trace()), trace)


def assemble(first: Gaussian, mean: Tensor, trace: float, trace_of_product_root: float) -> float:
    """Return the distance of `first` and another Gaussian, of which the mean and the traces are given."""
    difference = first.mean - mean
    distance = float(difference @ difference + first.covariance.trace()) + trace - 2 * trace_of_product_root
    return max(0.0, distance)


def rank_of(gaussian: Gaussian) -> int:
    """Return the largest possible rank of the covariance: by the number of images, else by its eigenvalues."""
    size = gaussian.mean.numel()
    if gaussian.num_images is not None:
        return min(size, gaussian.num_images - 1)
    return int(torch.linalg.matrix_rank(gaussian.covariance, hermitian=True))


def root_factor(covariance: Tensor, rank: int) -> Tensor:
    """Return F (d, r) with F F' = `covariance`, r <= `rank`.

    Eigenvalues of zero are computed as numbers of either sign near the rounding error. Their roots, 1e-8 instead of 0,
    would add up, so they are left out.
    """
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    values, vectors = values[-rank:], vectors[:, -rank:]
    keep = values > len(covariance) * EPS * values[-1:].clamp_min(0)
    factor: Tensor = vectors[:, keep] * values[keep].sqrt()
    return factor


def trace_of_root(product: Tensor, rank: int, scale: float) -> float:
    """Return the trace of the root of a symmetric matrix (r, r) of at most this rank; `scale` is its largest norm."""
    if not product.numel() or not rank:
        return 0.0
    values = torch.linalg.eigvalsh((product + product.T) / 2)[-rank:]
    return float(values[values > EPS * scale / len(product)].sqrt().sum())


class Interval(NamedTuple):
    """The value for infinitely many images as the jackknife estimates it, and its 95 % interval."""

    estimate: float
    low: float
    high: float


def can_estimate_interval(count: int, size: int) -> bool:
    """Return whether there are enough images per feature for `frechet_interval`."""
    return count >= MIN_IMAGES_PER_FEATURE * size and count >= 2 * NUM_GROUPS


def frechet_interval(real: Gaussian, features: Tensor, order: Tensor) -> Interval:
    """Estimate the distance of `real` and the distribution that `features` (n, d) are drawn from.

    The distance of n images is too large by a bias of about b / n. The jackknife leaves out one of `NUM_GROUPS` groups
    at a time (Quenouille 1956, Tukey 1958): its estimate has no such bias, and the spread over the groups gives the
    interval. `order` is a random permutation of the n images. `real` is taken as exact.
    """
    factor = root_factor(real.covariance, rank_of(real))
    groups = [_Projected.of(features, group, factor) for group in torch.tensor_split(order, NUM_GROUPS)]
    total = _Projected.merge(groups)
    full = _distance(real, [total])
    left_out = [_distance(real, [total, group.negative()]) for group in groups]
    pseudo = torch.tensor([NUM_GROUPS * full - (NUM_GROUPS - 1) * value for value in left_out], dtype=torch.float64)
    margin = T_QUANTILE * float(pseudo.std()) / math.sqrt(NUM_GROUPS)
    estimate = float(pseudo.mean())
    return Interval(estimate, estimate - margin, estimate + margin)


def frechet_infinity(real: Gaussian, features: Tensor, generator: torch.Generator) -> float:
    """Extrapolate the distance to infinitely many images ("Effectively Unbiased FID ...", Chong & Forsyth, 2020).

    A line in 1 / n is fitted to the distances of `INFINITY_POINTS` random subsets. Their sizes are evenly spaced from
    `INFINITY_MIN_IMAGES`, or half of the images if that is less, to all images.
    """
    factor = root_factor(real.covariance, rank_of(real))
    sizes = torch.linspace(min(INFINITY_MIN_IMAGES, len(features) // 2), len(features), INFINITY_POINTS).long()
    subsets = (torch.randperm(len(features), generator=generator)[: int(size)] for size in sizes)
    distances = [_distance(real, [_Projected.of(features, subset, factor)]) for subset in subsets]
    design = torch.stack([torch.ones(len(sizes), dtype=torch.float64), 1 / sizes.double()], dim=1)
    solution = torch.linalg.lstsq(design, torch.tensor(distances, dtype=torch.float64)[:, None]).solution
    return float(solution[0])


class _Projected(NamedTuple):
    """A group of features: the moments of F'x, the mean of x, and the trace of the scatter of x."""

    projected: Moments
    mean: Tensor
    trace: float

    @classmethod
    def of(cls, features: Tensor, rows: Tensor, factor: Tensor) -> "_Projected":
        parts = [
            cls._of_block(features[block].double(), factor) for block in torch.split(rows.sort().values, BLOCK_ROWS)
        ]
        return cls.merge(parts)

    @classmethod
    def _of_block(cls, block: Tensor, factor: Tensor) -> "_Projected":
        mean = block.mean(0)
        return cls(moments_of(block @ factor), mean, float((block - mean).square().sum()))

    def negative(self) -> "_Projected":
        """Return what removes this group when it is merged: the formulas hold for negative numbers of images."""
        count, mean, scatter = self.projected
        return _Projected(Moments(-count, mean, -scatter), self.mean, -self.trace)

    @classmethod
    def merge(cls, parts: Sequence["_Projected"]) -> "_Projected":
        total = parts[0]
        for part in parts[1:]:
            first, second = total.projected.num_images, part.projected.num_images
            difference, count = part.mean - total.mean, first + second
            trace = total.trace + part.trace + float(difference @ difference) * first * second / count
            projected = merge_moments(total.projected, part.projected)
            total = cls(projected, total.mean + difference * (second / count), trace)
        return total


def _distance(real: Gaussian, groups: Sequence[_Projected]) -> float:
    """Return the distance of `real` and the features of all groups."""
    total = _Projected.merge(groups)
    count = total.projected.num_images
    covariance, trace = total.projected.scatter / (count - 1), total.trace / (count - 1)
    rank = min(len(covariance), count - 1)
    return assemble(real, total.mean, trace, trace_of_root(covariance, rank, float(real.covariance.trace()) * trace))


def frechet_distance_of_features(first: Tensor, second: Tensor) -> float:
    """Return the distance of features (n, d) and (m, d); fast if n or m is much smaller than d.

    The trace of the root is the sum of the singular values of the (n, m) product of the centered features.
    """
    first, second = first.double(), second.double()
    means = first.mean(0), second.mean(0)
    factors = [(x - mean) / math.sqrt(len(x) - 1) for x, mean in zip((first, second), means, strict=True)]
    trace = float(torch.linalg.svdvals(factors[0] @ factors[1].T).sum())
    total = sum(float(factor.square().sum()) for factor in factors)
    return max(0.0, float((means[0] - means[1]).square().sum()) + total - 2 * trace)
