"""Correlated units: against NumPy, and on matrices whose blocks are known."""

import numpy as np
import pytest
import torch

import googlenet
from googlenet.insight.units import cluster, correlations, held_by_blocks, independent, layer_samples


def blocky(sizes: list[int], inside: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A correlation matrix of blocks in a random order, and each unit's block."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    labels = labels[np.random.default_rng(seed).permutation(len(labels))]
    matrix = np.where(labels[:, None] == labels, inside, 0.0)
    np.fill_diagonal(matrix, 1.0)
    return matrix, labels


def test_correlations_are_numpys_however_the_samples_come() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 6, generator=generator).double()
    samples = torch.randn(500, 6, generator=generator).double() @ mixing + 1e3
    expected = np.corrcoef(samples.numpy().T)
    for parts in ([500], [1, 99, 400]):
        activity = correlations(samples.split(parts))
        np.testing.assert_allclose(activity.matrix, expected, atol=1e-10)
        assert (activity.units, activity.dead, activity.samples) == (list(range(6)), 0, 500)


def test_units_that_never_change_are_counted_and_left_out() -> None:
    samples = torch.randn(100, 4, generator=torch.Generator().manual_seed(0)).double()
    samples[:, 1] = 3.0
    activity = correlations([samples])
    assert (activity.units, activity.dead) == ([0, 2, 3], 1)
    np.testing.assert_allclose(activity.matrix, np.corrcoef(samples[:, [0, 2, 3]].T.numpy()), atol=1e-12)
    with pytest.raises(ValueError, match="only 2 of the layer's units"):
        cluster(correlations([samples[:, :3]]).matrix)


def test_a_layers_samples_are_its_channels_at_every_position() -> None:
    model = googlenet.create("googlenet_bn", 5, 1, width=0.25, pools="padded").eval()
    pixels = torch.randn(3, 1, 28, 28)
    (rows,) = layer_samples(model, "inception_3b", [(pixels, torch.zeros(3))])
    out = model.features(pixels)["inception_3b"].detach()
    assert rows.shape == (3 * out.shape[2] * out.shape[3], out.shape[1])
    np.testing.assert_allclose(rows[-1].numpy(), out[2, :, -1, -1].numpy(), rtol=1e-6)


def test_blocks_that_are_there_hold_everything() -> None:
    sizes = [12, 5, 8]
    matrix, labels = blocky(sizes, 0.7)
    found = cluster(matrix, 3)
    assert sorted(found.sizes) == sorted(sizes)
    assert found.held == pytest.approx(1.0)
    assert found.by_chance == pytest.approx(sum(s * (s - 1) for s in sizes) / (25 * 24))
    assert len(set(np.split(labels[found.order], np.cumsum(found.sizes)[:-1])[0])) == 1
    assert sorted(found.order) == list(range(25))


def test_a_random_order_holds_what_the_area_says() -> None:
    matrix, _ = blocky([20, 20, 20], 0.5)
    random = np.random.default_rng(0)
    held = [held_by_blocks(matrix, random.permutation(60).tolist(), [20, 20, 20]) for _ in range(200)]
    assert np.mean(held) == pytest.approx(3 * 20 * 19 / (60 * 59), abs=0.01)


def test_unrelated_units_are_hardly_in_blocks() -> None:
    noise, matrix = independent(100, 2000), blocky([10] * 10, 0.4)[0]
    found, real = cluster(noise), cluster(matrix)
    assert found.held / found.by_chance < 3 < real.held / real.by_chance
