"""Gabor functions: found again where they were put, and told from noise."""

import numpy as np
import pytest
import torch

import googlenet
from googlenet.insight.filters import Gabor, first_filters, fit_filters, shuffled, values

MADE = [
    Gabor(0.8, 0.5, -0.4, 1.6, 2.0, 0.6, 0.21, 0.9),
    Gabor(-1.2, -0.8, 0.3, 1.3, 2.5, 2.2, 0.12, -0.4),
    Gabor(0.3, 0.0, 0.0, 2.0, 1.5, 1.1, 0.35, 2.0),
]


def as_filters(found: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(found)).float().unsqueeze(1)


@pytest.mark.parametrize("made", MADE, ids=str)
def test_a_gabor_function_is_found_again(made: Gabor) -> None:
    (fit,) = fit_filters(as_filters([values(made, 7, 7)]))
    assert fit.residual < 1e-6
    again = fit.colour[0] * values(fit.gabor, 7, 7)
    np.testing.assert_allclose(again, values(made, 7, 7), atol=1e-3 * abs(made.amplitude))
    assert fit.gabor.frequency == pytest.approx(made.frequency, abs=0.01)
    assert (fit.gabor.angle - made.angle + np.pi / 2) % np.pi == pytest.approx(np.pi / 2, abs=0.03)
    assert (fit.gabor.sigma_u, fit.gabor.sigma_v) == pytest.approx((made.sigma_u, made.sigma_v), abs=0.05)
    assert (fit.gabor.x, fit.gabor.y) == pytest.approx((made.x, made.y), abs=0.25)


def test_noise_is_told_from_a_gabor_function() -> None:
    pattern = as_filters([values(made, 7, 7) for made in MADE])
    assert min(fit.residual for fit in fit_filters(shuffled(pattern))) > 0.3
    noise = torch.randn(pattern.shape, generator=torch.Generator().manual_seed(1))
    noise *= 0.1 * pattern.flatten(1).norm(dim=1).view(-1, 1, 1, 1) / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert all(0.003 < fit.residual <= 0.0101 for fit in fit_filters(pattern + noise)), "1 % of the power is noise"


def test_colour_is_a_factor_and_what_it_leaves_is_residual() -> None:
    gabor = torch.from_numpy(values(MADE[0], 7, 7)).float()
    colour = torch.tensor([2.0, -1.0, 2.0]) / 3
    filters = (colour.view(3, 1, 1) * gabor).unsqueeze(0)
    (fit,) = fit_filters(filters)
    assert fit.residual < 1e-5
    assert np.abs(fit.colour) == pytest.approx(colour.abs().numpy(), abs=1e-4)
    # Half of the power in a second pattern, of a colour at right angles: at least that half is left.
    other = torch.from_numpy(values(MADE[1], 7, 7)).float()
    other *= gabor.norm() / other.norm()
    second = torch.tensor([1.0, 2.0, 0.0]) / 5**0.5
    mixed = filters + (second.view(3, 1, 1) * other).unsqueeze(0)
    (fit,) = fit_filters(mixed)
    power = torch.linalg.svdvals(mixed[0].flatten(1)) ** 2
    assert fit.residual >= 1 - (power[0] / power.sum()).item() - 1e-6


def test_no_filter_at_all() -> None:
    (fit,) = fit_filters(torch.zeros(1, 1, 7, 7))
    assert (fit.residual, fit.gabor.amplitude) == (0.0, 0.0)


def test_the_filters_are_those_of_the_first_convolution() -> None:
    model = googlenet.create("googlenet", 5, 3, width=0.25)
    assert first_filters(model).shape == (16, 3, 7, 7)
    torch.testing.assert_close(first_filters(model), model.trunk.conv1.conv.weight.detach())
    mixed = shuffled(first_filters(model))
    torch.testing.assert_close(mixed.flatten(2).sort().values, first_filters(model).flatten(2).sort().values)
