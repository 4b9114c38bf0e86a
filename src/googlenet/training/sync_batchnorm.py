"""Batch normalization over the batches of all processes, equal to that of one process with the full batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .distributed import all_reduce_sum


def convert_sync_batchnorm(model: nn.Module) -> bool:
    """Replace every ``BatchNorm2d`` of `model` by a `SynchronizedBatchNorm`; returns whether there is any.

    Parameters and state-dict keys stay the same. PyTorch's SyncBatchNorm does not run on CPUs; this one runs on both.
    """
    norms = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    for path, norm in norms:
        # On the same device: copies of the model, such as a moving average, may be made before the model is moved.
        synchronized = SynchronizedBatchNorm(
            norm.num_features, norm.eps, norm.momentum, device=norm.weight.device, dtype=norm.weight.dtype
        )
        synchronized.weight, synchronized.bias = norm.weight, norm.bias
        synchronized.load_state_dict(norm.state_dict())
        model.set_submodule(path, synchronized.train(norm.training))
    return bool(norms)


@contextmanager
def no_sync(model: nn.Module) -> Iterator[None]:
    """Disable the synchronization, so that a single process can run `model` in training mode."""
    norms = [module for module in model.modules() if isinstance(module, SynchronizedBatchNorm)]
    for norm in norms:
        norm.synced = False
    try:
        yield
    finally:
        for norm in norms:
            norm.synced = True


class _Normalize(torch.autograd.Function):
    """Batch normalization with one all-reduce in the forward and one in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        pixels = x.shape[0] * x.shape[2] * x.shape[3]
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0) if pixels else x.new_zeros(2, x.shape[1])
        # Sums of values and squares in float64, where their difference is accurate enough.
        mean, variance = mean.double(), variance.double()
        local = torch.cat((mean, variance + mean.square(), mean.new_ones(1))) * pixels
        sums, squares, count = torch.split(all_reduce_sum(local), [len(mean), len(mean), 1])
        mean = sums / count
        variance = squares / count - mean.square()
        invstd = torch.rsqrt(variance + eps).to(x.dtype)
        x_hat = (x - _per_channel(mean.to(x.dtype))) * _per_channel(invstd)
        ctx.save_for_backward(x_hat, weight, invstd, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return x_hat * _per_channel(weight) + _per_channel(bias), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        x_hat, weight, invstd, count = ctx.saved_tensors
        grad_bias, grad_weight = grad.sum((0, 2, 3)), (grad * x_hat).sum((0, 2, 3))
        sums = all_reduce_sum(torch.cat((grad_bias, grad_weight)).double())
        mean_grad, mean_grad_x_hat = (sums / count).to(grad.dtype).chunk(2)
        centered = grad - _per_channel(mean_grad) - x_hat * _per_channel(mean_grad_x_hat)
        return centered * _per_channel(weight * invstd), grad_weight, grad_bias, None


def _per_channel(values: Tensor) -> Tensor:
    """Reshape one value per channel for broadcasting over (n, c, h, w)."""
    return values.view(1, -1, 1, 1)


class SynchronizedBatchNorm(nn.BatchNorm2d):
    """``BatchNorm2d`` with the statistics of the batches of all processes.

    The batches may differ in size and be empty. Statistics are computed in at least float32.
    """

    synced = True

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (n, channels, h, w); in training every process has to call it."""
        if not (self.training and self.synced):
            return super().forward(x)
        pixels = x.to(torch.promote_types(x.dtype, torch.float32))
        out, mean, variance, count = _Normalize.apply(pixels, self.weight, self.bias, self.eps)
        for running, value in ((self.running_mean, mean), (self.running_var, variance * (count / (count - 1)))):
            assert running is not None
            running.lerp_(value.to(running.dtype), self.momentum or 0.0)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        result: Tensor = out.to(x.dtype)
        return result
