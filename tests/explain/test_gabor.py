"""Fits of Gabor functions to known functions, to noise and to colors."""

import numpy as np
import pytest
import torch

import googlenet
from googlenet.explain.gabor import Gabor, evaluate_gabor, first_layer_filters, fit_filters, shuffle_pixels

GABORS = [
    Gabor(0.8, 0.5, -0.4, 1.6, 2.0, 0.6, 0.21, 0.9),
    Gabor(-1.2, -0.8, 0.3, 1.3, 2.5, 2.2, 0.12, -0.4),
    Gabor(0.3, 0.0, 0.0, 2.0, 1.5, 1.1, 0.35, 2.0),
]


def as_filters(patterns: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(patterns)).float().unsqueeze(1)


@pytest.mark.parametrize("gabor", GABORS, ids=str)
def test_a_gabor_function_is_recovered(gabor: Gabor) -> None:
    (fit,) = fit_filters(as_filters([evaluate_gabor(gabor, 7, 7)]))
    assert fit.residual < 1e-6
    fitted = fit.color[0] * evaluate_gabor(fit.gabor, 7, 7)
    np.testing.assert_allclose(fitted, evaluate_gabor(gabor, 7, 7), atol=1e-3 * abs(gabor.amplitude))
    assert fit.gabor.frequency == pytest.approx(gabor.frequency, abs=0.01)
    assert (fit.gabor.angle - gabor.angle + np.pi / 2) % np.pi == pytest.approx(np.pi / 2, abs=0.03)
    assert (fit.gabor.sigma_u, fit.gabor.sigma_v) == pytest.approx((gabor.sigma_u, gabor.sigma_v), abs=0.05)
    assert (fit.gabor.x, fit.gabor.y) == pytest.approx((gabor.x, gabor.y), abs=0.25)


def test_shuffled_pixels_and_noise_have_a_residual() -> None:
    pattern = as_filters([evaluate_gabor(gabor, 7, 7) for gabor in GABORS])
    assert min(fit.residual for fit in fit_filters(shuffle_pixels(pattern))) > 0.3
    noise = torch.randn(pattern.shape, generator=torch.Generator().manual_seed(1))
    noise *= 0.1 * pattern.flatten(1).norm(dim=1).view(-1, 1, 1, 1) / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert all(0.003 < fit.residual <= 0.0101 for fit in fit_filters(pattern + noise)), "1 % of the power is noise"


def test_color_is_a_factor_and_the_rest_is_residual() -> None:
    gabor = torch.from_numpy(evaluate_gabor(GABORS[0], 7, 7)).float()
    color = torch.tensor([2.0, -1.0, 2.0]) / 3
    filters = (color.view(3, 1, 1) * gabor).unsqueeze(0)
    (fit,) = fit_filters(filters)
    assert fit.residual < 1e-5
    assert np.abs(fit.color) == pytest.approx(color.abs().numpy(), abs=1e-4)
    # Half of the power is in a second pattern with an orthogonal color: at least that half is residual.
    other = torch.from_numpy(evaluate_gabor(GABORS[1], 7, 7)).float()
    other *= gabor.norm() / other.norm()
    second = torch.tensor([1.0, 2.0, 0.0]) / 5**0.5
    mixed = filters + (second.view(3, 1, 1) * other).unsqueeze(0)
    (fit,) = fit_filters(mixed)
    power = torch.linalg.svdvals(mixed[0].flatten(1)) ** 2
    assert fit.residual >= 1 - (power[0] / power.sum()).item() - 1e-6


def test_a_zero_filter_has_no_residual() -> None:
    (fit,) = fit_filters(torch.zeros(1, 1, 7, 7))
    assert (fit.residual, fit.gabor.amplitude) == (0.0, 0.0)


def test_filters_are_those_of_the_first_convolution() -> None:
    model = googlenet.create_model("googlenet", 5, 3, width_mult=0.25)
    assert first_layer_filters(model).shape == (16, 3, 7, 7)
    torch.testing.assert_close(first_layer_filters(model), model.trunk.conv1.conv.weight.detach())
    mixed = shuffle_pixels(first_layer_filters(model))
    torch.testing.assert_close(mixed.flatten(2).sort().values, first_layer_filters(model).flatten(2).sort().values)
