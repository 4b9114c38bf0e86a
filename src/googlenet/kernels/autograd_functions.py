"""Training steps of whole modules on the CPU, with few passes over memory, as autograd functions.

A map (n, c, h, w) with channels last in memory is a matrix of n*h*w rows and c columns. On it

- the three 1x1 convolutions that read the same map are one matrix product with concatenated weights;
- batch normalization and ReLU are one pass, which writes into the block's concatenated output;
- a 1x1 convolution is a matrix product, and so is a padded 3x3 or 5x5 on a map of 1x1 (its center tap) or 2x2 (a
  dense product of 4c by 4c), and a 5x5 on one of 3x3: on such maps most filter taps fall on the padding;
- other 3x3 convolutions in float32 use Winograd's algorithm (`winograd`);
- max pooling stores the position of each maximum.

The functions are for training on the CPU in float32 or, under ``torch.autocast("cpu", torch.bfloat16)``, with maps in
bfloat16 (weights and their gradients, statistics and sums stay float32); otherwise the modules run as usual.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .build import load_kernels
from .conv_bn_relu import (
    PoolGeometry,
    as_map,
    as_matrix,
    channels_last,
    convolve,
    convolve_backward,
    dense_weight,
    max_pool_backward,
    max_pool_forward,
    norm_relu,
    norm_relu_backward,
    pool_geometry,
)
from .levels import MAX_CHANNELS

# The pooling kernels process this number of channels at once.
LANES = 16


def enable_cpu_kernels(model: nn.Module) -> bool:
    """Train `model` with the kernels in C; return False, and change nothing, if this machine cannot compile them.

    The weights get the memory format channels-last. Evaluation, other devices and other types are not affected.
    """
    if load_kernels() is None:
        return False
    to_channels_last(model)
    for module in model.modules():
        if hasattr(module, "use_cpu_kernels"):
            setattr(module, "use_cpu_kernels", True)  # noqa: B010  nn.Module types attributes as tensors
    return True


def to_channels_last(model: nn.Module) -> None:
    """Convert the weights to channels-last, which is faster on CPUs; the maps computed with them have it too."""
    model.to(memory_format=torch.channels_last)


def is_supported(x: Tensor, out_channels: int = 0, multiple_of: int = 1) -> bool:
    """Return whether the kernels can process a map: on the CPU, with gradients, not empty, of a supported type.

    `out_channels` is the largest number of channels that is computed from it; the channels must be a multiple of
    `multiple_of`.
    """
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, map_dtype())
        and map_dtype() in (torch.float32, torch.bfloat16)
        and x.shape[1] % multiple_of == 0
        and max(x.shape[1], out_channels) <= MAX_CHANNELS
        and len(x) > 0
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def map_dtype() -> torch.dtype:
    """Return the type in which maps are computed: that of autocast if it is enabled, else float32."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32


class Unit(NamedTuple):
    """The parameters of a `ConvNormAct`, or of several concatenated; `norm_weight` is None without normalization."""

    weight: Tensor
    bias: Tensor
    norm_weight: Tensor | None


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, geometry: PoolGeometry) -> Tensor:
        x = channels_last(x)
        out, argmax = max_pool_forward(x, geometry)
        ctx.save_for_backward(argmax)
        ctx.geometry, ctx.shape = geometry, x.shape
        return out.view(x.shape[0], geometry.height, geometry.width, -1).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (argmax,) = ctx.saved_tensors
        grad_input = max_pool_backward(as_matrix(channels_last(grad)), argmax, ctx.geometry, ctx.shape)
        n, c, h, w = ctx.shape
        return grad_input.view(n, h, w, c).permute(0, 3, 1, 2), None


class _ConvNormAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, module: Any, *parameters: Tensor | None) -> Tensor:
        dtype, stride = map_dtype(), module.conv.stride[0]
        weight, bias, norm_weight = Unit(*parameters)  # type: ignore[arg-type]
        x, weight = channels_last(x.to(dtype)), weight.to(dtype)
        dense = dense_weight(weight, x) if stride == 1 else None
        pre = convolve(x, weight, dense, bias.to(dtype) if norm_weight is None else None, stride)
        out = torch.empty_like(pre)
        stats = norm_relu(pre, [module.norm], norm_weight, bias, [out])
        ctx.save_for_backward(x, weight, dense, out, *(() if stats is None else (pre, stats)))
        ctx.stride = stride
        n, _, h, w = x.shape
        return out.view(n, -(-h // stride), -(-w // stride), -1).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, dense, out, *saved = ctx.saved_tensors
        pre, stats = saved or (None, None)
        matrix, *grads = norm_relu_backward([as_matrix(channels_last(grad))], pre, stats, [out])
        grad_input, grad_weight = convolve_backward(matrix, x, weight, dense, ctx.stride, ctx.needs_input_grad[0])
        return (None if grad_input is None else as_map(grad_input, x)), None, grad_weight.float(), *grads


class _Inception(torch.autograd.Function):
    """All four branches; `parameters` are four `Unit`s: the merged 1x1s, the 3x3, the 5x5, the projection."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, block: Any, *parameters: Tensor | None) -> Tensor:
        dtype = map_dtype()
        x = channels_last(x.to(dtype))
        units = [Unit(*parameters[i : i + 3]) for i in range(0, 12, 3)]  # type: ignore[arg-type]
        weights = [unit.weight.to(dtype) for unit in units]
        dense = [dense_weight(weight, x) for weight in weights]
        row, rows = block.row, x.shape[0] * x.shape[2] * x.shape[3]
        out = x.new_empty(rows, row.out)
        one, three, five, proj = torch.split(out, [row.conv1x1, row.conv3x3, row.conv5x5, row.pool_proj], dim=1)
        reduced3, reduced5 = x.new_empty(rows, row.reduce3x3), x.new_empty(rows, row.reduce5x5)
        geometry = pool_geometry(block.pool, x)
        pooled, argmax = max_pool_forward(x, geometry)
        saved: list[Tensor] = []
        for unit, weight, matrix, modules, source, outputs in zip(
            units,
            weights,
            dense,
            _grouped_modules(block),
            (x, as_map(reduced3, x), as_map(reduced5, x), as_map(pooled, x)),
            ((one, reduced3, reduced5), (three,), (five,), (proj,)),
            strict=True,
        ):
            pre = convolve(source, weight, matrix, unit.bias.to(dtype) if unit.norm_weight is None else None)
            stats = norm_relu(pre, [module.norm for module in modules], unit.norm_weight, unit.bias, outputs)
            if stats is not None:
                saved += [pre, stats]
        ctx.save_for_backward(x, reduced3, reduced5, pooled, argmax, out, *weights, *dense, *saved)
        ctx.row, ctx.geometry = row, geometry
        return as_map(out, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, reduced3, reduced5, pooled, argmax, out, *rest = ctx.saved_tensors
        weights, dense, saved, row = rest[:4], rest[4:8], rest[8:], ctx.row
        widths = [row.conv1x1, row.conv3x3, row.conv5x5, row.pool_proj]
        grads = torch.split(as_matrix(channels_last(grad)), widths, dim=1)
        outs = torch.split(out, widths, dim=1)

        def backward(index: int, source: Tensor, grads: list[Tensor], outputs: list[Tensor]) -> tuple[Any, ...]:
            """Return the gradients of the input, weight, bias and normalization weight of the unit `index`."""
            pre, stats = saved[2 * index : 2 * index + 2] or (None, None)
            matrix, grad_bias, grad_norm_weight = norm_relu_backward(grads, pre, stats, outputs)
            grad_input, grad_weight = convolve_backward(matrix, source, weights[index], dense[index])
            return grad_input, grad_weight.float(), grad_bias, grad_norm_weight

        grad3, *three = backward(1, as_map(reduced3, x), [grads[1]], [outs[1]])
        grad5, *five = backward(2, as_map(reduced5, x), [grads[2]], [outs[2]])
        grad_pool, *proj = backward(3, as_map(pooled, x), [grads[3]], [outs[3]])
        grad_input, *merged = backward(0, x, [grads[0], grad3, grad5], [outs[0], reduced3, reduced5])
        grad_input = max_pool_backward(grad_pool, argmax, ctx.geometry, x.shape, grad_input)
        return (as_map(grad_input, x), None, *merged, *three, *five, *proj)


def _merge(modules: tuple[Any, ...]) -> Unit:
    """Concatenate the parameters of `ConvNormAct` modules that read the same map; autograd splits their gradients."""

    def join(tensors: list[Tensor]) -> Tensor:
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors)

    weight = join([module.conv.weight for module in modules])
    if isinstance(modules[0].norm, nn.Identity):
        return Unit(weight, join([module.conv.bias for module in modules]), None)
    norms = [module.norm for module in modules]
    return Unit(weight, join([norm.bias for norm in norms]), join([norm.weight for norm in norms]))


def _grouped_modules(block: Any) -> tuple[tuple[Any, ...], ...]:
    return (block.conv1x1, block.reduce3x3, block.reduce5x5), (block.conv3x3,), (block.conv5x5,), (block.pool_proj,)


def conv_norm_act(module: Any, x: Tensor) -> Tensor:
    """Compute ``ConvNormAct.forward``."""
    out: Tensor = _ConvNormAct.apply(x, module, *_merge((module,)))
    return out


def max_pool(module: nn.MaxPool2d, x: Tensor) -> Tensor:
    """Compute ``MaxPool.forward``."""
    out: Tensor = _MaxPool.apply(x, pool_geometry(module, x))
    return out


def inception(block: Any, x: Tensor) -> Tensor:
    """Compute ``Inception.forward``."""
    parameters = [tensor for modules in _grouped_modules(block) for tensor in _merge(modules)]
    out: Tensor = _Inception.apply(x, block, *parameters)
    return out
