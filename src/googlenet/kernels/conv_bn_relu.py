"""The parts of a training step on maps as matrices: convolution, batch normalization and ReLU, max pooling.

A map (n, c, h, w) with channels last in memory is a matrix of n*h*w rows and c columns, of float32 or bfloat16.
Weights have the type of the map; everything per channel (statistics, biases and their gradients) is float32. A
function ``x_backward`` takes the gradient of the output of ``x``.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..devices import has_amx
from .ffi import call, pack
from .levels import MAX_CHANNELS, NUM_CHUNKS
from .winograd import select_tile_size, winograd_conv, winograd_conv_backward

# For more rows of float32, oneDNN's 1x1 convolution is faster than the matrix product.
MAX_MATMUL_ROWS = 6144

# Bytes of `im2col`.
MAX_IM2COL_BYTES = 128 << 20


def channels_last(x: Tensor) -> Tensor:
    """Return the map with channels last in memory, copied only if necessary."""
    return x.contiguous(memory_format=torch.channels_last)


def as_matrix(x: Tensor) -> Tensor:
    """View a map (n, c, h, w) with channels last as a matrix (n*h*w, c)."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def as_map(matrix: Tensor, like: Tensor) -> Tensor:
    """View a matrix (n*h*w, c) as a map (n, c, h, w) with n, h and w of `like`."""
    n, _, h, w = like.shape
    return matrix.view(n, h, w, -1).permute(0, 3, 1, 2)


def _with_ld(matrix: Tensor) -> tuple[Tensor, int]:
    """Return the matrix and the distance of its rows, as the kernels take them."""
    return matrix, matrix.stride(0)


def _workspace(columns: int, num_sums: int) -> Tensor:
    """Return memory for `num_sums` sums per column in a kernel; ValueError for more columns than its buffers have."""
    if columns > MAX_CHANNELS:
        raise ValueError(f"the native kernels support {MAX_CHANNELS} channels, not {columns}")
    return torch.empty((NUM_CHUNKS + 1) * num_sums * columns, dtype=torch.float64)


# Convolutions, with padding of half of the filter.


def _is_product(x: Tensor, weight: Tensor, stride: int) -> bool:
    """Return whether a 1x1 convolution is computed as a matrix product."""
    rows = x.shape[0] * x.shape[2] * x.shape[3]
    return stride == 1 and weight.shape[2] == 1 and (x.dtype != torch.float32 or rows <= MAX_MATMUL_ROWS)


def _fits(x: Tensor, weight: Tensor, stride: int) -> bool:
    """Return whether `im2col` may be used: its result is not too large."""
    k, (n, c, h, w) = weight.shape[2], x.shape
    return n * -(-h // stride) * -(-w // stride) * k * k * c * x.element_size() <= MAX_IM2COL_BYTES


def _uses_im2col(x: Tensor, weight: Tensor, stride: int) -> bool:
    """Return whether a convolution of one channel, such as gray images, is a product with `im2col`: it is faster."""
    return x.shape[1] == 1 and weight.shape[2] > 1 and _fits(x, weight, stride)


def _filters(weight: Tensor) -> Tensor:
    """Return the weight as a matrix (out, k * k * in), in the order of `im2col`."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


def im2col(x: Tensor, k: int, stride: int) -> Tensor:
    """Return the k x k windows of a map, padded by k // 2, as a matrix (n * out_h * out_w, k * k * c)."""
    (n, c, h, w), out_h, out_w = x.shape, -(-x.shape[2] // stride), -(-x.shape[3] // stride)
    columns = x.new_empty(n * out_h * out_w, k * k * c)
    call("im2col", x.dtype, n, h, w, c, k, stride, out_h, out_w, channels_last(x), columns)
    return columns


def _im2col_weight_grad(grad: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    out_channels, in_channels, k, _ = weight.shape
    product = torch.mm(grad.t(), im2col(x, k, stride))
    return product.view(out_channels, k, k, in_channels).permute(0, 3, 1, 2)


def dense_weight(weight: Tensor, x: Tensor) -> Tensor | None:
    """Return a padded k x k convolution on a map as small as `x` as a dense matrix; None if that is not worthwhile.

    On such maps every output pixel depends on the whole input, and most filter taps fall on the padding.
    """
    out_channels, in_channels, k, _ = weight.shape
    size = x.shape[2]
    if k == 1 or size > k // 2 + 1 or size != x.shape[3]:
        return None
    dense = weight.new_empty(size * size * out_channels, size * size * in_channels)
    call("dense_weight", weight.dtype, size, k, out_channels, in_channels, channels_last(weight), dense)
    return dense


def dense_weight_backward(grad: Tensor, weight: Tensor, size: int) -> Tensor:
    """Return the gradient of the weight from that of its `dense_weight` for maps of `size` x `size`."""
    out_channels, in_channels, k, _ = weight.shape
    grad_weight = torch.empty_like(weight, memory_format=torch.channels_last)
    call("dense_weight_backward", grad.dtype, size, k, out_channels, in_channels, grad, grad_weight)
    return grad_weight


def convolve(x: Tensor, weight: Tensor, dense: Tensor | None, bias: Tensor | None, stride: int = 1) -> Tensor:
    """Convolve a map (n, c, h, w); return the output as a matrix. `dense` is the weight's `dense_weight`."""
    k, size, rows = weight.shape[2], x.shape[2], x.shape[0] * x.shape[2] * x.shape[3]
    if (one := _is_product(x, weight, stride)) or _uses_im2col(x, weight, stride):
        columns = as_matrix(x) if one else im2col(x, k, stride)
        filters = _filters(weight).t()
        return torch.mm(columns, filters) if bias is None else torch.addmm(bias, columns, filters)
    if dense is not None:
        flat = as_matrix(x).view(x.shape[0], -1)
        out = torch.mm(flat, dense.t()) if bias is None else torch.addmm(bias.repeat(size * size), flat, dense.t())
        return out.view(rows, -1)
    if stride == 1 and (tile_size := select_tile_size(weight, x)):
        return winograd_conv(x, weight, bias, tile_size)
    return as_matrix(channels_last(F.conv2d(x, weight, bias, stride, k // 2)))


def convolve_backward(
    grad: Tensor, x: Tensor, weight: Tensor, dense: Tensor | None, stride: int = 1, need_input_grad: bool = True
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of the input, as a matrix, and of the weight, from the gradient matrix of the output."""
    k, size, rows = weight.shape[2], x.shape[2], x.shape[0] * x.shape[2] * x.shape[3]
    if _is_product(x, weight, stride):
        grad_input = torch.mm(grad, weight.flatten(1)) if need_input_grad else None
        return grad_input, torch.mm(grad.t(), as_matrix(x)).view_as(weight)
    if not need_input_grad and _uses_im2col(x, weight, stride):
        return None, _im2col_weight_grad(grad, x, weight, stride)
    if dense is not None:
        flat, flat_grad = as_matrix(x).view(x.shape[0], -1), grad.view(x.shape[0], -1)
        grad_input = torch.mm(flat_grad, dense).view(rows, -1) if need_input_grad else None
        return grad_input, dense_weight_backward(torch.mm(flat_grad.t(), flat), weight, size)
    if stride == 1 and (tile_size := select_tile_size(weight, x)):
        return winograd_conv_backward(grad, x, weight, tile_size, need_input_grad)
    n, in_channels, h, w = x.shape
    # With AMX, oneDNN's bfloat16 gradient of the weight takes two to four times as long as a product on small maps.
    # With a stride, it leaves taps that see only padding undefined.
    slow = stride == 1 and in_channels >= 32 and h * w <= 49 and x.dtype == torch.bfloat16 and has_amx()
    product = (slow and _fits(x, weight, 1)) or (stride > 1 and min(h, w) <= k // 2)
    out_size = (n, -(-h // stride), -(-w // stride), -1)
    grad_map, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad.view(out_size).permute(0, 3, 1, 2), x, weight, None,
        [stride] * 2, [k // 2] * 2, [1, 1], False, [0, 0], 1, [need_input_grad, not product, False],
    )  # fmt: skip
    if product:
        grad_weight = _im2col_weight_grad(grad, x, weight, stride)
    return (as_matrix(channels_last(grad_map)) if need_input_grad else None), grad_weight


# Batch normalization and ReLU, or ReLU alone.


def norm_relu(
    pre: Tensor, norms: Sequence[Any], weight: Tensor | None, bias: Tensor, outputs: Sequence[Tensor]
) -> Tensor | None:
    """Normalize and rectify `pre` into the `outputs`, which take consecutive columns; update the statistics of `norms`.

    Each of `norms` belongs to one output. Returns what the backward needs per channel: scale = weight * invstd,
    shift = bias - mean * scale, mean and invstd, (4, channels); None without normalization (`weight` is None).
    """
    if weight is None:
        start = 0
        for out in outputs:
            part = pre[:, start : start + out.shape[1]]
            start += out.shape[1]
            call("relu_forward", pre.dtype, *out.shape, *_with_ld(part), *_with_ld(out))
        return None
    channels = pre.shape[1]
    stats, parts = (
        torch.empty(4, channels),
        pack(
            [
                (out.shape[1], *_with_ld(out), norm.running_mean, norm.running_var, norm.num_batches_tracked)
                for norm, out in zip(norms, outputs, strict=True)
            ]
        ),
    )
    call(
        "batch_norm_relu_forward", pre.dtype, *pre.shape, *_with_ld(pre), weight, bias, float(norms[0].eps),
        float(norms[0].momentum), stats, len(outputs), parts, _workspace(channels, 2),
    )  # fmt: skip
    return stats


def norm_relu_backward(
    grads: Sequence[Tensor], pre: Tensor | None, stats: Tensor | None, outputs: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of `pre`, of the bias and of the normalization's weight from those of the outputs."""
    rows, columns = len(outputs[0]), sum(out.shape[1] for out in outputs)
    grad_input, grad_bias = outputs[0].new_empty(rows, columns), torch.empty(columns)
    if stats is not None and pre is not None:
        parts, grad_weight = pack([(grad.shape[1], *_with_ld(grad)) for grad in grads]), torch.empty(columns)
        call(
            "batch_norm_relu_backward", pre.dtype, rows, columns, pre, stats, grad_input, grad_weight, grad_bias,
            len(grads), parts, _workspace(columns, 2),
        )  # fmt: skip
        return grad_input, grad_bias, grad_weight
    start = 0
    for grad, out in zip(grads, outputs, strict=True):
        part = slice(start, start + out.shape[1])
        start = part.stop
        call(
            "relu_backward", out.dtype, *out.shape, *_with_ld(grad), *_with_ld(out), *_with_ld(grad_input[:, part]),
            grad_bias[part], _workspace(out.shape[1], 1),
        )  # fmt: skip
    return grad_input, grad_bias, None


# Max pooling, 3x3.


class PoolGeometry(NamedTuple):
    """Stride, padding and output size of a 3x3 pool."""

    stride: int
    padding: int
    height: int
    width: int


def pool_geometry(module: nn.MaxPool2d, x: Tensor) -> PoolGeometry:
    """Return the geometry of a 3x3 pool over the map `x`."""
    stride, padding = int(module.stride), int(module.padding)  # type: ignore[arg-type]

    def out_size(size: int) -> int:
        span = size + 2 * padding - 3
        out = (-(-span // stride) if module.ceil_mode else span // stride) + 1
        # As in PyTorch, the last window must start inside the map or its left padding.
        return out - 1 if module.ceil_mode and (out - 1) * stride >= size + padding else out

    return PoolGeometry(stride, padding, out_size(x.shape[2]), out_size(x.shape[3]))


def max_pool_forward(x: Tensor, geometry: PoolGeometry) -> tuple[Tensor, Tensor]:
    """Return the maxima of a map (n, c, h, w) as a matrix, and their positions in their windows."""
    n, c, h, w = x.shape
    out = x.new_empty(n * geometry.height * geometry.width, c)
    argmax = torch.empty_like(out, dtype=torch.int16)
    call("max_pool_forward", x.dtype, n, h, w, c, *geometry, x, out, argmax)
    return out, argmax


def max_pool_backward(
    grad: Tensor, argmax: Tensor, geometry: PoolGeometry, shape: torch.Size, accumulate_into: Tensor | None = None
) -> Tensor:
    """Return the gradient matrix of the map from that of the maxima, added to `accumulate_into` if it is given."""
    n, c, h, w = shape
    grad_input = grad.new_empty(n * h * w, c) if accumulate_into is None else accumulate_into
    sizes = (n, h, w, c, *geometry, int(accumulate_into is not None))
    call("max_pool_backward", grad_input.dtype, *sizes, grad.contiguous(), argmax, grad_input)
    return grad_input
