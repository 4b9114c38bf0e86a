"""Layer-wise normalized SGD: by hand, and the native kernels against PyTorch."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from googlenet import kernels
from googlenet.training.optim.normalized_sgd import LayerwiseNormalizedSGD, scale_to_weight_norm

pytestmark = pytest.mark.cpu


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 5), nn.Linear(5, 1)
    )
    net[3].weight.data.mul_(20)  # longer than 1
    return net.to(memory_format=torch.channels_last)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4) -> None:
    for step in range(steps):
        torch.manual_seed(step)
        net.zero_grad()
        net(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()


def test_one_step_by_hand() -> None:
    net = network()
    optimizer = LayerwiseNormalizedSGD(net.parameters(), lr=0.01)
    before = copy.deepcopy(dict(net.named_parameters()))
    train(net, optimizer, 1)
    for name, after in net.named_parameters():
        length = before[name].norm().clamp_min(1) if after.ndim > 1 else torch.tensor(1.0)
        moved = (after - before[name]).norm()
        torch.testing.assert_close(moved, 0.01 * length, rtol=1e-3, atol=1e-6)


@pytest.mark.skipif(kernels.load_kernels() is None, reason="GOOGLENET_NATIVE=0, or no C compiler with OpenMP")
@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}],
    ids=["plain", "momentum", "nesterov, decay"],
)
def test_one_pass_is_pytorchs_step(options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    fast, plain = network(), network()
    mine, theirs = (LayerwiseNormalizedSGD(net.parameters(), lr=0.05, **options) for net in (fast, plain))
    train(fast, mine)
    monkeypatch.setattr(kernels, "is_supported_param", lambda weight: False)
    train(plain, theirs)
    for p, q in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    # What one wrote the other goes on from.
    if options:
        theirs.load_state_dict(copy.deepcopy(mine.state_dict()))
        plain.load_state_dict(fast.state_dict())
        train(plain, theirs)
        monkeypatch.undo()
        train(fast, mine)
        for p, q in zip(fast.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_gradients_in_another_order_of_memory() -> None:
    torch.manual_seed(1)
    weight = nn.Parameter(torch.randn(6, 5, 3, 3).to(memory_format=torch.channels_last))
    grad = torch.randn(6, 5, 3, 3)
    expected = weight.detach() - 0.1 * grad * weight.detach().norm() / grad.norm()
    weight.grad = grad
    LayerwiseNormalizedSGD([weight], lr=0.1, momentum=0.9).step()
    torch.testing.assert_close(weight.detach(), expected)


def test_a_frozen_layer_is_left() -> None:
    net = network()
    net[0].weight.requires_grad_(False)
    kept = net[0].weight.clone()
    train(net, LayerwiseNormalizedSGD(net.parameters(), lr=0.05, momentum=0.9))
    assert torch.equal(net[0].weight, kept)


def test_scaled_gradients_have_their_weights_length() -> None:
    net = network()
    net(torch.randn(4, 3, 8, 8)).square().mean().backward()
    scale_to_weight_norm(net.parameters())
    assert net[3].weight.grad.norm().item() == pytest.approx(net[3].weight.norm().item(), rel=1e-4)
    assert net[4].bias.grad.norm().item() == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}], ids=str)
def test_hooks_are_called_once_per_step(options: dict, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.optim.SGD([torch.zeros(1, requires_grad=True)])  # PyTorch adds the hooks to a class at its first instance
    if not native:
        monkeypatch.setattr(kernels, "is_supported_param", lambda weight: False)
    net, calls = network(), []
    optimizer = LayerwiseNormalizedSGD(net.parameters(), lr=0.05, **options)
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    train(net, optimizer, 3)
    assert calls == ["before", "after"] * 3


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.9}, {"momentum": 0.5, "nesterov": True, "weight_decay": 0.1}],
    ids=["plain", "momentum", "nesterov, decay"],
)
def test_without_kernels_it_is_pytorchs_sgd_on_scaled_gradients(options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "is_supported_param", lambda weight: False)
    ours, reference = network(), network()
    optimizers = (
        LayerwiseNormalizedSGD(ours.parameters(), 0.05, **options),
        torch.optim.SGD(reference.parameters(), 0.05, **options),
    )
    optimizers[1].register_step_pre_hook(lambda *_: scale_to_weight_norm(reference.parameters()))
    train(ours, optimizers[0])
    train(reference, optimizers[1])
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), reference.parameters(), strict=True))


@pytest.mark.slow
def test_the_compiler_of_pytorch_is_not_imported(tmp_path: Path) -> None:
    """Building and using an optimizer would import it, which takes more than a second of every training."""
    program = (
        "import sys; from googlenet.cli.main import main; code = main(sys.argv[1:]); "
        "sys.exit(code or 2 * ('torch._dynamo' in sys.modules))"
    )
    arguments = ["train", "fashion-mnist-slim", "--data.max_samples=600", f"--out={tmp_path / 'run'}"]
    assert subprocess.run([sys.executable, "-c", program, *arguments]).returncode == 0
