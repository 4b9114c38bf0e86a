"""The Frechet distance against mpmath and SciPy, merged statistics, the interval and FID-infinity."""

from itertools import pairwise

import mpmath
import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from googlenet.fidelity.statistics import (
    Gaussian,
    Moments,
    can_estimate_interval,
    frechet_distance,
    frechet_distance_of_features,
    frechet_infinity,
    frechet_interval,
    merge_moments,
    moments_of,
    moments_of_blocks,
)


def random_features(count: int, size: int, seed: int = 0, shift: float = 0.0) -> Tensor:
    """Features like a network's: not negative, correlated, with variances over four orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(99))
    noise = torch.randn(count, size, dtype=torch.float64, generator=generator) + shift
    return (noise @ mixing * torch.logspace(0, -2, size, dtype=torch.float64)).relu()


def gaussian(features: Tensor, known_count: bool = True) -> Gaussian:
    result = moments_of(features).gaussian()
    return result if known_count else result._replace(num_images=None)


def reference_distance(first: Gaussian, second: Gaussian) -> float:
    """The formula in 60 digits: the roots of the eigenvalues of the product of the covariances."""
    with mpmath.workdps(60):
        s1, s2 = (mpmath.matrix(each.covariance.tolist()) for each in (first, second))
        values, vectors = mpmath.eigsy(s1)
        positive = [value if value > mpmath.mpf(10) ** -14 * max(values) else mpmath.mpf(0) for value in values]
        root = vectors * mpmath.diag([mpmath.sqrt(value) for value in positive]) * vectors.T
        inner = mpmath.eigsy(root * s2 * root, eigvals_only=True)
        trace = sum((mpmath.sqrt(value) for value in inner if value > 0), mpmath.mpf(0))
        difference = [
            mpmath.mpf(a) - mpmath.mpf(b) for a, b in zip(first.mean.tolist(), second.mean.tolist(), strict=True)
        ]
        total = sum((value**2 for value in difference), mpmath.mpf(0))
        size = len(difference)
        return float(total + sum(s1[i, i] + s2[i, i] for i in range(size)) - 2 * trace)


CASES = {
    "well-conditioned": (random_features(200, 8), random_features(150, 8, 1, 0.3)),
    "singular": (random_features(6, 12), random_features(7, 12, 1, 0.3)),
    "one singular": (random_features(6, 12), random_features(100, 12, 1)),
    "two images": (random_features(2, 6), random_features(100, 6, 1)),
    "constant": (torch.ones(5, 6, dtype=torch.float64), random_features(100, 6, 1)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("known_count", [True, False])
def test_the_distance_is_that_of_mpmath(name: str, known_count: bool) -> None:
    # Without the number of images, the rank follows from the eigenvalues.
    first, second = (gaussian(features, known_count) for features in CASES[name])
    # The rounding errors of eigenvalues are near 1e-16 of the largest one; their roots would be near 1e-8.
    assert frechet_distance(first, second) == pytest.approx(reference_distance(first, second), rel=1e-8)
    assert frechet_distance(second, first) == pytest.approx(frechet_distance(first, second), rel=1e-8)


def test_the_distance_is_that_of_scipy() -> None:
    first, second = (gaussian(random_features(300, 64, seed, seed * 0.1)) for seed in range(2))
    product = first.covariance.numpy() @ second.covariance.numpy()
    trace = np.trace(scipy.linalg.sqrtm(product)).real
    difference = first.mean - second.mean
    expected = float(difference @ difference + first.covariance.trace() + second.covariance.trace()) - 2 * trace
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-8)


def test_nearly_equal_sets() -> None:
    first = random_features(300, 16)
    second = first + 1e-5 * random_features(300, 16, 1)
    expected = reference_distance(gaussian(first), gaussian(second))
    assert 0 < expected < 1e-6
    # The eigenvalues of the product have errors near 1e-16 of the largest one, 1e3. The root of the smallest one, 1e-6,
    # has an error of 1e-10 therefore.
    assert frechet_distance(gaussian(first), gaussian(second)) == pytest.approx(expected, abs=1e-10)
    assert frechet_distance(gaussian(first), gaussian(first)) == pytest.approx(0, abs=1e-10)


def test_normal_distributions_with_diagonal_covariances() -> None:
    first = Gaussian(torch.zeros(3).double(), torch.diag(torch.tensor([1.0, 4.0, 9.0])).double())
    second = Gaussian(torch.ones(3).double(), torch.diag(torch.tensor([4.0, 4.0, 1.0])).double())
    # 3 of the means, and (1 - 2)^2 + 0 + (3 - 1)^2 of the standard deviations.
    assert frechet_distance(first, second) == pytest.approx(8.0, rel=1e-12)


@pytest.mark.parametrize("counts", [(30, 40), (7, 40), (5, 6)])
def test_the_distance_of_features_is_that_of_statistics(counts: tuple[int, int]) -> None:
    first, second = random_features(counts[0], 20), random_features(counts[1], 20, 1, 0.2)
    expected = frechet_distance(gaussian(first), gaussian(second))
    assert frechet_distance_of_features(first, second) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite(value: float) -> None:
    features = random_features(10, 4)
    features[3, 2] = value
    with pytest.raises(ValueError, match="not finite"):
        gaussian(features)


def test_one_image() -> None:
    with pytest.raises(ValueError, match="1 image: a covariance needs 2 or more"):
        gaussian(random_features(1, 4))


def test_statistics_of_another_size() -> None:
    with pytest.raises(ValueError, match="4 and 5 features: they are of different networks"):
        frechet_distance(gaussian(random_features(10, 4)), gaussian(random_features(10, 5)))


@pytest.mark.parametrize("bounds", [(0, 2500), (0, 1, 2500), (0, 700, 700, 1800, 2500)])
def test_merged_statistics_are_those_of_all_images(bounds: tuple[int, ...]) -> None:
    # A large mean, with which sums of squares would lose the variance.
    features = random_features(2500, 6) + 1e4
    total = Moments(0, torch.zeros(6, dtype=torch.float64), torch.zeros(6, 6, dtype=torch.float64))
    for start, stop in pairwise(bounds):
        if start < stop:
            total = merge_moments(total, moments_of(features[start:stop]))
        total = merge_moments(total, total._replace(num_images=0))
    expected = torch.cov(features.T)
    # Relative to the mean's square, 1e8, that is the rounding error of float64.
    torch.testing.assert_close(total.gaussian().covariance, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moments_of_blocks(features).gaussian().covariance, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(total.mean, features.mean(0), rtol=1e-13, atol=0)


def coverage(size: int, count: int, trials: int) -> tuple[float, float, float]:
    """The share of intervals that contain the full set's value, and the means of the plain and the corrected value."""
    population = random_features(40_000, size, 5, 0.15)
    real = gaussian(random_features(40_000, size, 6))
    exact = frechet_distance(real, gaussian(population))
    generator = torch.Generator().manual_seed(7)
    contained, plain, corrected = 0, 0.0, 0.0
    for _ in range(trials):
        subset = population[torch.randperm(len(population), generator=generator)[:count]]
        interval = frechet_interval(real, subset, torch.randperm(count, generator=generator))
        contained += interval.low <= exact <= interval.high
        plain += frechet_distance(real, gaussian(subset)) / exact / trials
        corrected += interval.estimate / exact / trials
    return contained / trials, plain, corrected


@pytest.mark.slow
def test_the_interval_contains_the_value_of_the_full_set() -> None:
    share, plain, corrected = coverage(size=32, count=400, trials=200)
    # 95 % +- 3 standard deviations of a share of 200.
    assert 0.90 <= share <= 0.99
    # The bias of 400 images is far larger than the error of its correction.
    assert plain > 1.02
    assert abs(corrected - 1) < 0.25 * (plain - 1)


def test_the_interval_needs_enough_images_per_feature() -> None:
    assert can_estimate_interval(4096, 2048)
    assert not can_estimate_interval(4000, 2048)
    assert not can_estimate_interval(19, 2)


@pytest.mark.slow
def test_fid_infinity_removes_the_bias() -> None:
    real, population = gaussian(random_features(20_000, 16)), random_features(20_000, 16, 1, 0.2)
    exact = frechet_distance(real, gaussian(population))
    subsets = [population[start : start + 500] for start in range(0, 10_000, 500)]
    plain = np.mean([frechet_distance(real, gaussian(subset)) for subset in subsets])
    generator = torch.Generator().manual_seed(0)
    corrected = np.mean([frechet_infinity(real, subset, generator) for subset in subsets])
    assert plain > exact
    assert abs(corrected - exact) < 0.5 * (plain - exact)
