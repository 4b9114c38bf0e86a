"""Convolutions by tiles against PyTorch's in double precision, forward and back."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from googlenet.models import native
from googlenet.models.native import tiles

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(native.kernels() is None, reason="GOOGLENET_NATIVE=0, or no C compiler with OpenMP"),
]
# Of the largest number. Tiles of 4 pixels add and subtract numbers up to 20 times as large as their result, in sums
# of 48 products for each of 9 weights: 20 * sqrt(432) * 6e-8 = 2.5e-5. In 500 draws at each level: 8e-6 at most.
BOUND = 2.5e-5


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def matrix(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).contiguous()


def error(mine: Tensor, exact: Tensor) -> float:
    return float((mine.double() - exact).abs().max() / exact.abs().max())


@settings(max_examples=40, deadline=None)
@given(
    side=st.sampled_from([2, 3, 4]),
    height=st.integers(1, 13),
    width=st.integers(1, 13),
    into=st.sampled_from([16, 48]),
    out=st.sampled_from([16, 32]),
    count=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_same_convolution(side: int, height: int, width: int, into: int, out: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, into, height, width, generator=generator)
    weight, bias = torch.randn(out, into, 3, 3, generator=generator), torch.randn(out, generator=generator)
    grad = torch.randn(count, out, height, width, generator=generator)
    exact_x, exact_weight = x.double().requires_grad_(), weight.double().requires_grad_()
    exact = F.conv2d(exact_x, exact_weight, bias.double(), padding=1)
    exact.backward(grad.double())
    assert error(tiles.convolve_tiles(last(x), last(weight), bias, side), matrix(exact.detach())) < BOUND
    into_grad, weight_grad = tiles.convolve_tiles_backward(matrix(grad), last(x), last(weight), side, True)
    assert exact_x.grad is not None and exact_weight.grad is not None and into_grad is not None
    assert error(into_grad, matrix(exact_x.grad)) < BOUND
    assert error(weight_grad, exact_weight.grad) < BOUND


def test_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = last(torch.randn(7, 32, 9, 6)), last(torch.randn(16, 32, 3, 3))
    grad = torch.randn(7 * 9 * 6, 16)
    whole = tiles.convolve_tiles(x, weight, None, 4)
    _, weight_grad = tiles.convolve_tiles_backward(grad, x, weight, 4, False)
    monkeypatch.setattr(tiles, "ROOM", 1)  # picture by picture
    torch.testing.assert_close(tiles.convolve_tiles(x, weight, None, 4), whole)
    nothing, in_parts = tiles.convolve_tiles_backward(grad, x, weight, 4, False)
    assert nothing is None
    torch.testing.assert_close(in_parts, weight_grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("weight", "x", "side"),
    [
        ((32, 16, 3, 3), (1, 16, 12, 12), 4),
        ((32, 16, 3, 3), (1, 16, 3, 3), 3),
        ((32, 16, 3, 3), (1, 16, 1, 1), None),  # most of a tile would be padding
        ((32, 16, 5, 5), (1, 16, 12, 12), None),
        ((32, 24, 3, 3), (1, 24, 12, 12), None),  # not whole lanes
    ],
)
def test_where_it_pays(weight: tuple[int, ...], x: tuple[int, ...], side: int | None) -> None:
    assert tiles.tile_side(torch.empty(weight), torch.empty(x)) == side
    assert tiles.tile_side(torch.empty(weight, dtype=torch.bfloat16), torch.empty(x, dtype=torch.bfloat16)) is None
