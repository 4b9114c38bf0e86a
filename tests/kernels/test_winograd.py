"""Winograd convolutions against PyTorch's in double precision, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from googlenet import kernels
from googlenet.kernels import winograd

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(kernels.load_kernels() is None, reason="GOOGLENET_NATIVE=0, or no C compiler with OpenMP"),
]
# Relative to the largest value. Tiles of 4 pixels add and subtract numbers up to 20 times as large as their result, in
# sums of 48 products for each of 9 weights: 20 * sqrt(432) * 6e-8 = 2.5e-5. In 500 draws at each level: at most 8e-6.
MAX_ERROR = 2.5e-5


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def matrix(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).contiguous()


def error(result: Tensor, exact: Tensor) -> float:
    return float((result.double() - exact).abs().max() / exact.abs().max())


@settings(max_examples=40, deadline=None)
@given(
    tile_size=st.sampled_from([2, 3, 4]),
    height=st.integers(1, 13),
    width=st.integers(1, 13),
    in_channels=st.sampled_from([16, 48]),
    out_channels=st.sampled_from([16, 32]),
    batch=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_same_convolution(
    tile_size: int, height: int, width: int, in_channels: int, out_channels: int, batch: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = channels_last(torch.randn(batch, in_channels, height, width, generator=generator))
    weight, bias = (
        torch.randn(out_channels, in_channels, 3, 3, generator=generator),
        torch.randn(out_channels, generator=generator),
    )
    grad = torch.randn(batch, out_channels, height, width, generator=generator)
    exact_x, exact_weight = x.double().requires_grad_(), weight.double().requires_grad_()
    exact = F.conv2d(exact_x, exact_weight, bias.double(), padding=1)
    exact.backward(grad.double())
    assert (
        error(winograd.winograd_conv(channels_last(x), channels_last(weight), bias, tile_size), matrix(exact.detach()))
        < MAX_ERROR
    )
    grad_input, grad_weight = winograd.winograd_conv_backward(
        matrix(grad), channels_last(x), channels_last(weight), tile_size, True
    )
    assert exact_x.grad is not None and exact_weight.grad is not None and grad_input is not None
    assert error(grad_input, matrix(exact_x.grad)) < MAX_ERROR
    assert error(grad_weight, exact_weight.grad) < MAX_ERROR


def test_chunks_give_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = channels_last(torch.randn(7, 32, 9, 6)), channels_last(torch.randn(16, 32, 3, 3))
    grad = torch.randn(7 * 9 * 6, 16)
    expected = winograd.winograd_conv(x, weight, None, 4)
    _, grad_weight = winograd.winograd_conv_backward(grad, x, weight, 4, False)
    monkeypatch.setattr(winograd, "WORKSPACE_BYTES", 1)  # image by image
    torch.testing.assert_close(winograd.winograd_conv(x, weight, None, 4), expected)
    grad_input, chunked = winograd.winograd_conv_backward(grad, x, weight, 4, False)
    assert grad_input is None
    torch.testing.assert_close(chunked, grad_weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("weight", "x", "tile_size"),
    [
        ((32, 16, 3, 3), (1, 16, 12, 12), 4),
        ((32, 16, 3, 3), (1, 16, 3, 3), 3),
        ((32, 16, 3, 3), (1, 16, 1, 1), None),  # most of a tile would be padding
        ((32, 16, 5, 5), (1, 16, 12, 12), None),
        ((32, 24, 3, 3), (1, 24, 12, 12), None),  # not a multiple of the vector length
    ],
)
def test_select_tile_size(weight: tuple[int, ...], x: tuple[int, ...], tile_size: int | None) -> None:
    assert winograd.select_tile_size(torch.empty(weight), torch.empty(x)) == tile_size
    bfloat16 = (torch.empty(shape, dtype=torch.bfloat16) for shape in (weight, x))
    assert winograd.select_tile_size(*bfloat16) is None
