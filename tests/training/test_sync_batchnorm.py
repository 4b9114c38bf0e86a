"""Conversion to synchronized batch normalization in one process; `sync_batchnorm_worker.py` compares several."""

import copy

import pytest
import torch
from torch import nn

import googlenet
from googlenet.training.optim import build_ema
from googlenet.training.sync_batchnorm import SynchronizedBatchNorm, convert_sync_batchnorm


@pytest.mark.parametrize("name", ["googlenet_bn", "inception_v3"])
@pytest.mark.parametrize(
    ("device", "dtype"), [("meta", torch.float32), ("meta", torch.float16), ("cpu", torch.float64)]
)
def test_norms_stay_on_the_device(name: str, device: str, dtype: torch.dtype) -> None:
    """The moving average copies the model before anything else could move its new layers."""
    model = googlenet.create_model(name, 5, 1).to(device, dtype)
    expected = {key: (value.device, value.dtype) for key, value in model.state_dict().items()}
    assert convert_sync_batchnorm(model)
    average = build_ema(model, 0.9)
    for network in (model, average.module):
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        assert norms and all(isinstance(norm, SynchronizedBatchNorm) for norm in norms)
        assert {key: (value.device, value.dtype) for key, value in network.state_dict().items()} == expected
    average.update_parameters(model)


@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (2, 5, 1, 3), (6, 1, 4, 4)])
def test_it_cannot_be_differentiated_twice(shape: tuple[int, ...]) -> None:
    """The backward pass treats sums over the processes as constants, so a second derivative would be wrong."""
    plain = nn.BatchNorm2d(shape[1])
    synchronized = nn.Sequential(copy.deepcopy(plain))
    assert convert_sync_batchnorm(synchronized)
    gradients = []
    for norm in (plain, synchronized):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
        (gradient,) = torch.autograd.grad(norm(x).pow(3).sum(), x, create_graph=True)
        gradients.append((gradient, x))
    torch.testing.assert_close(gradients[0][0], gradients[1][0], atol=1e-5, rtol=1e-4)
    gradients[0][0].square().sum().backward()
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradients[1][0].square().sum().backward()
