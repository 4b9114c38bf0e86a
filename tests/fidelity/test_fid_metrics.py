"""KID, Inception Score, precision, recall, density and coverage against their definitions and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from googlenet.fidelity import metrics
from googlenet.fidelity.metrics import Head, inception_score, kernel_inception_distance, manifold_metrics


def sets(real: int = 90, fake: int = 70, size: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(real, size, generator=generator), torch.randn(fake, size, generator=generator) * 1.1 + 0.3


def unbiased_mmd(x: np.ndarray, y: np.ndarray) -> float:
    xx, yy, xy = (polynomial_kernel(a, b, degree=3, coef0=1) for a, b in ((x, x), (y, y), (x, y)))
    count = len(x)
    within = (xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)) / (count * (count - 1))
    return float(within - 2 * xy.mean())


def test_kid_is_the_mean_over_random_subsets() -> None:
    real, fake = sets()
    result = kernel_inception_distance(real, fake, seed=3, subsets=5, subset_size=20)
    generator = np.random.RandomState(3)
    values = []
    for _ in range(5):
        y = fake.numpy()[generator.choice(70, 20, replace=False)]
        x = real.numpy()[generator.choice(90, 20, replace=False)]
        values.append(unbiased_mmd(x.astype(np.float64), y.astype(np.float64)))
    # Products are computed in float32.
    assert result.mean == pytest.approx(np.mean(values), rel=1e-4)
    assert result.sd == pytest.approx(np.std(values), rel=1e-4)


def test_kid_of_fewer_images_than_a_subset() -> None:
    real, fake = sets(30, 25)
    result = kernel_inception_distance(real, fake, subsets=2)
    assert result.sd > 0, "25 of 30 real images differ between subsets"
    with pytest.raises(ValueError, match="KID needs 2 or more"):
        kernel_inception_distance(real[:1], fake)


@pytest.mark.parametrize("bias", [None, torch.linspace(-1, 1, 7)])
def test_inception_score_is_the_exponential_of_the_mean_divergence(bias: Tensor | None) -> None:
    features = sets(real=95)[0]
    head = Head(torch.randn(7, 12, generator=torch.Generator().manual_seed(1)), bias)
    result = inception_score(features, head, seed=4, splits=3)
    logits = features.double() @ head.weight.double().T + (0 if bias is None else bias.double())
    probabilities = logits.softmax(1).numpy()[np.random.RandomState(4).permutation(95)]
    scores = []
    for part in (probabilities[:31], probabilities[31:63], probabilities[63:]):
        divergence = (part * np.log(part / part.mean(0))).sum(1)
        scores.append(np.exp(divergence.mean()))
    assert result.mean == pytest.approx(np.mean(scores), rel=1e-10)
    assert result.sd == pytest.approx(np.std(scores), rel=1e-8)


def test_inception_score_of_classes_that_never_occur() -> None:
    # Probabilities of exactly 0 in float64.
    head = Head(torch.tensor([[1000.0], [-1000.0], [-1000.0]]))
    assert inception_score(torch.ones(20, 1), head, splits=2).mean == 1.0
    with pytest.raises(ValueError, match="10 or more images, not 9"):
        inception_score(torch.ones(9, 1), head)


def within(points: Tensor, centers: Tensor, neighbors: int, strict: bool) -> np.ndarray:
    """Which of `points` (n) are in the neighborhoods of `centers` (m): bool (n, m)."""
    search = NearestNeighbors(n_neighbors=neighbors + 1, algorithm="brute").fit(centers.double().numpy())
    radius = search.kneighbors(centers.double().numpy())[0][:, -1]
    distances = torch.cdist(points.double(), centers.double()).numpy()
    return distances < radius if strict else distances <= radius


def test_manifold_metrics_are_those_of_nearest_neighbors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_DISTANCES", 90 * 13)  # several blocks, of which the last is smaller
    real, fake = sets()
    result = manifold_metrics(real, fake)
    assert result.precision == within(fake, real, 3, strict=False).any(1).mean()
    assert result.recall == within(real, fake, 3, strict=False).any(1).mean()
    inside = within(fake, real, 5, strict=True)
    assert result.density == pytest.approx(inside.sum() / (5 * len(fake)))
    assert result.coverage == inside.any(0).mean()
    assert 0.1 < result.precision < 1 and 0.1 < result.recall < 1 and 0.1 < result.coverage < 1


def test_a_set_compared_with_itself() -> None:
    features = sets()[0]
    result = manifold_metrics(features, features)
    assert (result.precision, result.recall, result.coverage) == (1, 1, 1)
    with pytest.raises(ValueError, match="more than 5 images"):
        manifold_metrics(features[:5], features)
