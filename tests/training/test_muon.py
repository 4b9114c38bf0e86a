"""Muon against the singular value decomposition, and step by step."""

import copy

import pytest
import torch
from torch import nn

from googlenet.training.optim.muon import QUINTIC, Muon, orthogonalize, orthogonalize_weight

pytestmark = pytest.mark.cpu


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (12, 12), (1, 9)])
def test_directions_are_those_of_the_decomposition(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonalize(matrix, 5)
    # In the decomposition's own axes the result is diagonal, and its values near 1.
    inside = left.T @ result @ right.T
    values = inside.diagonal()
    assert (values > 0.6).all() and (values < 1.3).all()
    # The rounding of the Gram matrix, 6e-8, grows by at most the square of the slope in each of five iterations.
    assert (inside - values.diag()).abs().max() < 6e-8 * QUINTIC[0] ** 10


@pytest.mark.parametrize("iterations", [0, 1, 2, 3])
@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (12, 12), (1, 9)])
def test_equals_the_iteration_on_the_matrix(shape: tuple[int, int], iterations: int) -> None:
    """The Newton-Schulz iteration as the paper writes it, in float64."""
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    a, b, c = QUINTIC
    expected = matrix / torch.linalg.svdvals(matrix).pow(4).sum().pow(0.25)
    for _ in range(iterations):
        square = expected @ expected.T
        expected = a * expected + b * square @ expected + c * square @ square @ expected
    # The Gram matrix squares the condition number: 1e-16 grows to at most 1e-12 in three iterations.
    torch.testing.assert_close(orthogonalize(matrix, iterations), expected, rtol=0, atol=1e-11)


def test_memory_format_does_not_matter() -> None:
    update = torch.randn(6, 5, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    last = update.contiguous(memory_format=torch.channels_last)
    result = orthogonalize_weight(last, 2)
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result, orthogonalize_weight(update, 2), rtol=0, atol=1e-12)
    vector = torch.ones(3)
    assert torch.equal(orthogonalize_weight(vector, 2), vector)


def test_zero_stays_zero() -> None:
    assert not orthogonalize(torch.zeros(3, 5), 5).any()


def test_every_layer_changes_by_the_same_relative_amount() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 5))
    net[3].weight.data.mul_(20)
    net[0].weight.data.mul_(0.01)  # shorter than 1, which counts as 1
    before = copy.deepcopy(dict(net.named_parameters()))
    optimizer = Muon(net.parameters(), lr=0.01)
    net(torch.randn(4, 3, 8, 8)).square().mean().backward()
    optimizer.step()
    for name, after in net.named_parameters():
        if name == "0.bias":
            continue  # its gradient is zero but for rounding: normalization takes the bias away
        length = before[name].norm() if name == "3.weight" else torch.tensor(1.0)
        torch.testing.assert_close((after - before[name]).norm(), 0.01 * length, rtol=1e-3, atol=1e-6)


def test_resuming_from_its_state() -> None:
    def steps(net: nn.Linear, optimizer: Muon, numbers: range) -> None:
        for number in numbers:
            torch.manual_seed(number)
            optimizer.zero_grad()
            net(torch.randn(6, 7)).square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    whole = nn.Linear(7, 4)
    first = copy.deepcopy(whole)
    steps(whole, Muon(whole.parameters(), 0.1), range(4))
    optimizer = Muon(first.parameters(), 0.1)
    steps(first, optimizer, range(2))
    second = copy.deepcopy(first)
    resumed = Muon(second.parameters(), 0.1)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(second, resumed, range(2, 4))
    assert torch.equal(whole.weight, second.weight)
