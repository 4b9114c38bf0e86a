"""Forward and backward of the network's parts as few passes over memory as they need. The same functions and weights.

A map (n, c, h, w) with channels last in memory is a matrix of n*h*w rows and c columns, and on it

- the three 1x1 convolutions that read the same map are one matrix product, with their weights side by side;
- batch normalisation and ReLU are one pass, which writes straight into the block's concatenated output;
- a 1x1 convolution is a product, and so is a padded 3x3 or 5x5 on a map of 1x1 (its centre tap) or 2x2 (a dense
  product of 4c by 4c), and a 5x5 on one of 3x3: on such maps most taps fall on the padding;
- other 3x3 convolutions go by tiles, with fewer multiplications, in float32 (`tiles`);
- max pooling remembers which pixel won.

Only training on the CPU comes here, in float32 or, under ``torch.autocast("cpu", torch.bfloat16)``, with maps in
bfloat16 (weights and their gradients, statistics and sums stay float32); everything else runs as the modules say.
"""

import ctypes
import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .build import kernels
from .passes import (
    Statistics,
    Window,
    activate,
    activate_backward,
    as_map,
    as_matrix,
    channels_last,
    convolve,
    convolve_backward,
    dense_weight,
    normalise,
    pool,
    pool_backward,
    pool_window,
)

# The kernels pool so many channels at once.
LANES = 16

# CHANNELS in kernels.c: room for one number per channel.
MOST_CHANNELS = 2048


def enable(model: nn.Module) -> bool:
    """Let the parts of `model` that know how train natively; answers whether this machine can.

    Lays the model out as `lay_out` does. Evaluation and everything that is not float32 on the CPU runs as before.
    """
    if kernels() is None:
        return False
    lay_out(model)
    for module in model.modules():
        if hasattr(module, "native"):
            setattr(module, "native", True)  # noqa: B010  a plain flag, which nn.Module types as a tensor
    return True


def lay_out(model: nn.Module) -> None:
    """What makes a CPU quick without kernels of our own, for answers as for training; the answers stay as they are.

    Puts the weights into channels-last order, which every map behind them takes on, and asks the C library to keep
    freed memory: fetching its pages anew costs a third of a training step and half of an answer.
    """
    _keep_freed_memory()
    model.to(memory_format=torch.channels_last)


def usable(x: Tensor, lanes: int = 1) -> bool:
    """Whether this map is one for the native step: on the CPU, gradients wanted, not empty, channels by `lanes`."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, map_dtype())
        and map_dtype() in (torch.float32, torch.bfloat16)
        and x.shape[1] % lanes == 0
        and x.shape[1] <= MOST_CHANNELS
        and len(x) > 0
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def map_dtype() -> torch.dtype:
    """The type that maps are computed in: autocast's where it is on."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32


def _keep_freed_memory() -> None:
    """Tell glibc to hold on to large freed blocks; other C libraries are left as they are."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, -1)
        mallopt(m_top_pad, 64 << 20)


# The parts, as functions that autograd knows.


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, window: Window) -> Tensor:
        x = channels_last(x)
        out, choice = pool(x, window)
        ctx.save_for_backward(choice)
        ctx.window, ctx.shape = window, x.shape
        return out.view(x.shape[0], window.height, window.width, -1).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (choice,) = ctx.saved_tensors
        into = pool_backward(as_matrix(channels_last(grad)), choice, ctx.window, ctx.shape, None)
        n, c, h, w = ctx.shape
        return into.view(n, h, w, c).permute(0, 3, 1, 2), None


class _ConvUnit(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, stride: int, norms: list[Any], weight: Tensor, bias: Tensor, gain: Tensor | None
    ) -> Tensor:
        dtype = map_dtype()
        x, weight = channels_last(x.to(dtype)), weight.to(dtype)
        dense = dense_weight(weight, x) if stride == 1 else None
        pre = convolve(x, weight, dense, bias.to(dtype) if gain is None else None, stride)
        found = normalise(pre, norms, gain, bias)
        out = torch.empty_like(pre)
        activate(pre, found, out)
        ctx.save_for_backward(x, weight, dense, out, *(() if found is None else (pre, *found)))
        ctx.stride = stride
        n, _, h, w = x.shape
        return out.view(n, -(-h // stride), -(-w // stride), -1).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, dense, out, *rest = ctx.saved_tensors
        pre, found = (rest[0], Statistics(*rest[1:])) if rest else (None, None)
        matrix, bias, gain = activate_backward([as_matrix(channels_last(grad))], pre, found, [out])
        into, dweight = convolve_backward(matrix, x, weight, dense, ctx.stride, ctx.needs_input_grad[0])
        return (None if into is None else as_map(into, x)), None, None, dweight.float(), bias, gain


class _Inception(torch.autograd.Function):
    """All four paths; `parameters` are weight, bias and gain of the merged 1x1s, the 3x3, the 5x5, the projection."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, block: Any, norms: list[list[Any]], *parameters: Tensor | None) -> Tensor:
        dtype = map_dtype()
        x = channels_last(x.to(dtype))
        units = [Unit(*parameters[i : i + 3]) for i in range(0, 12, 3)]  # type: ignore[arg-type]
        weights = [unit.weight.to(dtype) for unit in units]
        dense = [dense_weight(weight, x) for weight in weights]
        row, rows = block.row, x.shape[0] * x.shape[2] * x.shape[3]
        out = x.new_empty(rows, row.out)
        one, three, five, proj = torch.split(out, [row.conv1x1, row.conv3x3, row.conv5x5, row.pool_proj], dim=1)
        inner3, inner5 = x.new_empty(rows, row.reduce3x3), x.new_empty(rows, row.reduce5x5)
        window = pool_window(block.pool, x)
        pooled, choice = pool(x, window)
        saved: list[Tensor] = []
        for unit, weight, matrix, norm, source, outputs in zip(
            units,
            weights,
            dense,
            norms,
            (x, as_map(inner3, x), as_map(inner5, x), as_map(pooled, x)),
            ((one, inner3, inner5), (three,), (five,), (proj,)),
            strict=True,
        ):
            pre = convolve(source, weight, matrix, unit.bias.to(dtype) if unit.gain is None else None)
            found = normalise(pre, norm, unit.gain, unit.bias)
            activate(pre, found, *outputs)
            if found is not None:
                saved += [pre, *found]
        ctx.save_for_backward(x, inner3, inner5, pooled, choice, out, *weights, *dense, *saved)
        ctx.row, ctx.window = row, window
        return as_map(out, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, inner3, inner5, pooled, choice, out, *rest = ctx.saved_tensors
        weights, dense, saved, row = rest[:4], rest[4:8], rest[8:], ctx.row
        widths = [row.conv1x1, row.conv3x3, row.conv5x5, row.pool_proj]
        grads = torch.split(as_matrix(channels_last(grad)), widths, dim=1)
        outs = torch.split(out, widths, dim=1)

        def back(number: int, source: Tensor, grads: list[Tensor], outputs: list[Tensor]) -> tuple[Any, ...]:
            """Through unit `number`: gradients of its input, weight, bias and gain."""
            mine = saved[5 * number : 5 * number + 5]
            pre, found = (mine[0], Statistics(*mine[1:])) if mine else (None, None)
            matrix, bias, gain = activate_backward(grads, pre, found, outputs)
            into, weight = convolve_backward(matrix, source, weights[number], dense[number])
            return into, weight.float(), bias, gain

        into3, *three = back(1, as_map(inner3, x), [grads[1]], [outs[1]])
        into5, *five = back(2, as_map(inner5, x), [grads[2]], [outs[2]])
        into_pool, *proj = back(3, as_map(pooled, x), [grads[3]], [outs[3]])
        into, *merged = back(0, x, [grads[0], into3, into5], [outs[0], inner3, inner5])
        into = pool_backward(into_pool, choice, ctx.window, x.shape, into)
        return (as_map(into, x), None, None, *merged, *three, *five, *proj)


class Unit(NamedTuple):
    """One ConvUnit, or several side by side: weight, and bias with or without a normalisation's gain."""

    weight: Tensor
    bias: Tensor
    gain: Tensor | None


def _unit(*units: Any) -> Unit:
    """The parameters of units that read the same map, side by side; autograd splits their gradients again."""

    def join(tensors: list[Tensor]) -> Tensor:
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors)

    weight = join([unit.conv.weight for unit in units])
    if isinstance(units[0].norm, nn.Identity):
        return Unit(weight, join([unit.conv.bias for unit in units]), None)
    return Unit(weight, join([unit.norm.bias for unit in units]), join([unit.norm.weight for unit in units]))


def conv_unit(unit: Any, x: Tensor) -> Tensor:
    """What ``ConvUnit.forward`` computes."""
    out: Tensor = _ConvUnit.apply(x, unit.conv.stride[0], [unit.norm], *_unit(unit))
    return out


def max_pool(module: nn.MaxPool2d, x: Tensor) -> Tensor:
    """What a 3x3 ``MaxPool2d`` computes."""
    out: Tensor = _MaxPool.apply(x, pool_window(module, x))
    return out


def inception(block: Any, x: Tensor) -> Tensor:
    """What ``Inception.forward`` computes."""
    groups = [
        (block.conv1x1, block.reduce3x3, block.reduce5x5),
        (block.conv3x3,),
        (block.conv5x5,),
        (block.pool_proj,),
    ]
    parameters = [tensor for group in groups for tensor in _unit(*group)]
    norms = [[unit.norm for unit in group] for group in groups]
    out: Tensor = _Inception.apply(x, block, norms, *parameters)
    return out
