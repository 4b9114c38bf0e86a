"""Batch normalisation over the pictures of all processes, as one process would normalise them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .processes import total


def synchronise_norms(model: nn.Module) -> bool:
    """Let the batch normalisations of `model` see the batch of all processes; answers whether it has any.

    They become `SynchronisedBatchNorm`; the parameters and the state's keys stay. PyTorch's SyncBatchNorm has no
    version for CPUs, and this one runs on both.
    """
    norms = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.BatchNorm2d)
    ]
    for parent, name, norm in norms:
        synchronised = SynchronisedBatchNorm(norm.num_features, norm.eps, norm.momentum)
        synchronised.weight, synchronised.bias = norm.weight, norm.bias
        synchronised.load_state_dict(norm.state_dict())
        setattr(parent, name, synchronised.train(norm.training))
    return bool(norms)


@contextmanager
def apart(model: nn.Module) -> Iterator[None]:
    """Every process by itself for a while: no normalisation of `model` asks for the others' pictures."""
    norms = [module for module in model.modules() if isinstance(module, SynchronisedBatchNorm)]
    for norm in norms:
        norm.together = False
    try:
        yield
    finally:
        for norm in norms:
            norm.together = True


class _Normalise(torch.autograd.Function):
    """One exchange on the way forward and one on the way back; the formulas are those of batch normalisation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        pixels = x.shape[0] * x.shape[2] * x.shape[3]
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0) if pixels else x.new_zeros(2, x.shape[1])
        # Sums of values and of squares, in double: there the difference of the two is exact enough.
        mean, variance = mean.double(), variance.double()
        here = torch.cat((mean, variance + mean.square(), mean.new_ones(1))) * pixels
        sums, squares, count = torch.split(total(here), [len(mean), len(mean), 1])
        mean = sums / count
        variance = squares / count - mean.square()
        inverse = torch.rsqrt(variance + eps).to(x.dtype)
        normal = (x - _spread(mean.to(x.dtype))) * _spread(inverse)
        ctx.save_for_backward(normal, gain, inverse, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return normal * _spread(gain) + _spread(bias), mean, variance, count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        normal, gain, inverse, count = ctx.saved_tensors
        bias_grad, gain_grad = grad.sum((0, 2, 3)), (grad * normal).sum((0, 2, 3))
        shift, slope = (total(torch.cat((bias_grad, gain_grad)).double()) / count).to(grad.dtype).chunk(2)
        into = (grad - _spread(shift) - normal * _spread(slope)) * _spread(gain * inverse)
        return into, gain_grad, bias_grad, None


def _spread(values: Tensor) -> Tensor:
    """One value per channel, as a map."""
    return values.view(1, -1, 1, 1)


class SynchronisedBatchNorm(nn.BatchNorm2d):
    """``BatchNorm2d`` whose mean and variance in training are of all processes' pictures together.

    The parts may differ in size, and be empty. Computed in float32 at least.
    """

    together = True

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) -> the same shape; in training every process has to call it."""
        if not (self.training and self.together):
            return super().forward(x)
        pixels = x.to(torch.promote_types(x.dtype, torch.float32))
        out, mean, variance, count = _Normalise.apply(pixels, self.weight, self.bias, self.eps)
        for running, value in ((self.running_mean, mean), (self.running_var, variance * (count / (count - 1)))):
            assert running is not None
            running.lerp_(value.to(running.dtype), self.momentum or 0.0)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        result: Tensor = out.to(x.dtype)
        return result
