"""Correlations against NumPy, and clustering of matrices with known blocks."""

import numpy as np
import pytest
import torch

import googlenet
from googlenet.explain.unit_correlation import (
    block_share,
    cluster,
    correlate,
    independent_correlations,
    layer_samples,
)


def block_matrix(sizes: list[int], inside: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return a correlation matrix of blocks in a random order, and each unit's block."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    labels = labels[np.random.default_rng(seed).permutation(len(labels))]
    matrix = np.where(labels[:, None] == labels, inside, 0.0)
    np.fill_diagonal(matrix, 1.0)
    return matrix, labels


def test_correlations_are_those_of_numpy_for_any_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 6, generator=generator).double()
    samples = torch.randn(500, 6, generator=generator).double() @ mixing + 1e3
    expected = np.corrcoef(samples.numpy().T)
    for parts in ([500], [1, 99, 400]):
        result = correlate(samples.split(parts))
        np.testing.assert_allclose(result.matrix, expected, atol=1e-10)
        assert (result.units, result.dead, result.samples) == (list(range(6)), 0, 500)


def test_constant_units_are_counted_and_excluded() -> None:
    samples = torch.randn(100, 4, generator=torch.Generator().manual_seed(0)).double()
    samples[:, 1] = 3.0
    result = correlate([samples])
    assert (result.units, result.dead) == ([0, 2, 3], 1)
    np.testing.assert_allclose(result.matrix, np.corrcoef(samples[:, [0, 2, 3]].T.numpy()), atol=1e-12)
    with pytest.raises(ValueError, match="only 2 of the layer's units"):
        cluster(correlate([samples[:, :3]]).matrix)


def test_samples_are_the_channels_at_every_position() -> None:
    model = googlenet.create_model("googlenet_bn", 5, 1, width_mult=0.25, pool_mode="same").eval()
    pixels = torch.randn(3, 1, 28, 28)
    (rows,) = layer_samples(model, "inception_3b", [(pixels, torch.zeros(3))])
    out = model.features(pixels)["inception_3b"].detach()
    assert rows.shape == (3 * out.shape[2] * out.shape[3], out.shape[1])
    np.testing.assert_allclose(rows[-1].numpy(), out[2, :, -1, -1].numpy(), rtol=1e-6)


def test_known_blocks_are_found() -> None:
    sizes = [12, 5, 8]
    matrix, labels = block_matrix(sizes, 0.7)
    found = cluster(matrix, 3)
    assert sorted(found.sizes) == sorted(sizes)
    assert found.block_share == pytest.approx(1.0)
    assert found.chance_share == pytest.approx(sum(s * (s - 1) for s in sizes) / (25 * 24))
    assert len(set(np.split(labels[found.order], np.cumsum(found.sizes)[:-1])[0])) == 1
    assert sorted(found.order) == list(range(25))


def test_the_share_of_a_random_order_is_the_area() -> None:
    matrix, _ = block_matrix([20, 20, 20], 0.5)
    random = np.random.default_rng(0)
    shares = [block_share(matrix, random.permutation(60).tolist(), [20, 20, 20]) for _ in range(200)]
    assert np.mean(shares) == pytest.approx(3 * 20 * 19 / (60 * 59), abs=0.01)


def test_independent_units_have_few_blocks() -> None:
    noise, matrix = independent_correlations(100, 2000), block_matrix([10] * 10, 0.4)[0]
    found, real = cluster(noise), cluster(matrix)
    assert found.block_share / found.chance_share < 3 < real.block_share / real.chance_share
