"""The passes that a training step is made of, forward and back, on maps seen as matrices.

A map (n, c, h, w) with channels last in memory is a matrix of n*h*w rows and c columns, of float32 or bfloat16; the
weights that a map meets are of its type, and every number per column (statistics, biases, their gradients) is
float32. Functions of the kind ``x_backward`` take the gradient of what ``x`` returned.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .calls import call
from .tiles import convolve_tiles, convolve_tiles_backward, tile_side

# Above so many rows oneDNN's 1x1 convolution is faster than MKL's matrix product.
PRODUCT_ROWS = 6144


def channels_last(x: Tensor) -> Tensor:
    """The map with its channels last in memory, copied only where they are not."""
    return x.contiguous(memory_format=torch.channels_last)


def as_matrix(x: Tensor) -> Tensor:
    """(n, c, h, w) with channels last -> (n*h*w, c), a view."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def as_map(matrix: Tensor, like: Tensor) -> Tensor:
    """(n*h*w, c) -> (n, c, h, w), a view; n, h and w are those of `like`."""
    n, _, h, w = like.shape
    return matrix.view(n, h, w, -1).permute(0, 3, 1, 2)


def _columns(matrix: Tensor) -> tuple[Tensor, int]:
    """The matrix and the distance of its rows, as the kernels take them."""
    return matrix, matrix.stride(0)


# Convolutions of stride 1 that keep the map's size; the first layer, of stride 2, is PyTorch's.


def dense_weight(weight: Tensor, x: Tensor) -> Tensor | None:
    """The matrix that a padded k x k convolution is on maps as small as `x`; None where it is not worth it.

    On such maps every pixel of the output sees all of the input, and most taps of the others fall on the padding.
    """
    out, into, k, _ = weight.shape
    centre, side = k // 2, x.shape[2]
    if k == 1 or side > centre + 1 or side != x.shape[3]:
        return None
    dense = weight.new_empty(side, side, out, side, side, into)
    for i in range(side):
        for j in range(side):
            taps = weight[:, :, centre - i : centre - i + side, centre - j : centre - j + side]
            dense[i, j] = taps.permute(0, 2, 3, 1)
    return dense.view(side * side * out, side * side * into)


def _taps(dense: Tensor, weight: Tensor, side: int) -> Tensor:
    """The transpose of `dense_weight`: the gradient of the matrix -> that of the weight."""
    out, into, k, _ = weight.shape
    centre = k // 2
    taps = torch.zeros_like(weight)
    parts = dense.view(side, side, out, side, side, into)
    for i in range(side):
        for j in range(side):
            part = parts[i, j].permute(0, 3, 1, 2)
            taps[:, :, centre - i : centre - i + side, centre - j : centre - j + side] += part
    return taps


def convolve(x: Tensor, weight: Tensor, dense: Tensor | None, bias: Tensor | None, stride: int = 1) -> Tensor:
    """(n, c, h, w) -> the matrix of the convolution's output; `dense` is the weight's `dense_weight`."""
    k, side, rows = weight.shape[2], x.shape[2], x.shape[0] * x.shape[2] * x.shape[3]
    if stride == 1 and k == 1 and rows <= PRODUCT_ROWS:
        columns = weight.flatten(1).t()
        return torch.mm(as_matrix(x), columns) if bias is None else torch.addmm(bias, as_matrix(x), columns)
    if dense is not None:
        flat = as_matrix(x).view(x.shape[0], -1)
        out = torch.mm(flat, dense.t()) if bias is None else torch.addmm(bias.repeat(side * side), flat, dense.t())
        return out.view(rows, -1)
    if stride == 1 and (tile := tile_side(weight, x)):
        return convolve_tiles(x, weight, bias, tile)
    return as_matrix(channels_last(F.conv2d(x, weight, bias, stride, k // 2)))


def convolve_backward(
    grad: Tensor, x: Tensor, weight: Tensor, dense: Tensor | None, stride: int = 1, need_input: bool = True
) -> tuple[Tensor | None, Tensor]:
    """Gradient matrix of the output -> (gradient matrix of the input, gradient of the weight)."""
    k, side, rows = weight.shape[2], x.shape[2], x.shape[0] * x.shape[2] * x.shape[3]
    if stride == 1 and k == 1 and rows <= PRODUCT_ROWS:
        into = torch.mm(grad, weight.flatten(1)) if need_input else None
        return into, torch.mm(grad.t(), as_matrix(x)).view_as(weight)
    if dense is not None:
        flat, flat_grad = as_matrix(x).view(x.shape[0], -1), grad.view(x.shape[0], -1)
        into = torch.mm(flat_grad, dense).view(rows, -1) if need_input else None
        return into, _taps(torch.mm(flat_grad.t(), flat), weight, side)
    if stride == 1 and (tile := tile_side(weight, x)):
        return convolve_tiles_backward(grad, x, weight, tile, need_input)
    n, _, h, w = x.shape
    out_size = (n, -(-h // stride), -(-w // stride), -1)
    dx, dweight, _ = torch.ops.aten.convolution_backward(
        grad.view(out_size).permute(0, 3, 1, 2), x, weight, None,
        [stride] * 2, [k // 2] * 2, [1, 1], False, [0, 0], 1, [need_input, True, False],
    )  # fmt: skip
    return (as_matrix(channels_last(dx)) if need_input else None), dweight


# Batch normalisation and ReLU, or ReLU alone.


class Statistics(NamedTuple):
    """What going back through one batch normalisation needs; one number per column."""

    scale: Tensor
    shift: Tensor
    mean: Tensor
    inverse: Tensor


def normalise(pre: Tensor, norms: list[Any], gain: Tensor | None, bias: Tensor) -> Statistics | None:
    """The batch's statistics of `pre`, folded with gain and bias; moves the running ones. None without norms."""
    if gain is None:
        return None
    mean, variance = torch.empty(2, pre.shape[1])
    call("column_statistics", pre.dtype, *pre.shape, *_columns(pre), mean, variance)
    inverse = torch.rsqrt(variance + norms[0].eps)
    scale = gain * inverse
    unbiased = variance * (len(pre) / max(len(pre) - 1, 1))
    widths = [norm.num_features for norm in norms]
    running = [norm.running_mean for norm in norms] + [norm.running_var for norm in norms]
    torch._foreach_lerp_(running, [*mean.split(widths), *unbiased.split(widths)], norms[0].momentum)
    torch._foreach_add_([norm.num_batches_tracked for norm in norms], 1)
    return Statistics(scale, bias - mean * scale, mean, inverse)


def activate(pre: Tensor, found: Statistics | None, *outputs: Tensor) -> None:
    """Normalise and rectify the columns of `pre` into the `outputs`, side by side."""
    column = 0
    for out in outputs:
        part = slice(column, column + out.shape[1])
        column = part.stop
        if found is None:
            call("relu_forward", pre.dtype, *out.shape, *_columns(pre[:, part]), *_columns(out))
        else:
            scale, shift = found.scale[part], found.shift[part]
            call("scale_relu_forward", pre.dtype, *out.shape, *_columns(pre[:, part]), scale, shift, *_columns(out))


def activate_backward(
    grads: list[Tensor], pre: Tensor | None, found: Statistics | None, outputs: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of `activate`'s outputs -> those of `pre`, the bias and the gain."""
    columns = sum(out.shape[1] for out in outputs)
    into = outputs[0].new_empty(len(outputs[0]), columns)
    bias_grad = torch.empty(columns)
    gain_grad = None if found is None else torch.empty(columns)
    column = 0
    for grad, out in zip(grads, outputs, strict=True):
        part = slice(column, column + out.shape[1])
        column = part.stop
        if found is None or pre is None or gain_grad is None:
            call(
                "relu_backward", out.dtype, *out.shape,
                *_columns(grad), *_columns(out), *_columns(into[:, part]), bias_grad[part],
            )  # fmt: skip
        else:
            call(
                "norm_relu_backward", out.dtype, *out.shape, *_columns(grad), *_columns(pre[:, part]),
                *(values[part] for values in found), *_columns(into[:, part]), gain_grad[part], bias_grad[part],
            )  # fmt: skip
    return into, bias_grad, gain_grad


# Max pooling, 3x3.


class Window(NamedTuple):
    """A 3x3 pool's stride, padding and output size."""

    stride: int
    padding: int
    height: int
    width: int


def pool_window(module: nn.MaxPool2d, x: Tensor) -> Window:
    """The window of a 3x3 pool over the map `x`."""
    stride, padding = int(module.stride), int(module.padding)  # type: ignore[arg-type]

    def size(side: int) -> int:
        span = side + 2 * padding - 3
        out = (-(-span // stride) if module.ceil_mode else span // stride) + 1
        # As PyTorch: the last window must start inside the map or its left padding.
        return out - 1 if module.ceil_mode and (out - 1) * stride >= side + padding else out

    return Window(stride, padding, size(x.shape[2]), size(x.shape[3]))


def pool(x: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """(n, c, h, w) -> the matrix of the maxima, and which of its window's pixels each was."""
    n, c, h, w = x.shape
    out = x.new_empty(n * window.height * window.width, c)
    choice = torch.empty_like(out, dtype=torch.int16)
    call("pool_forward", x.dtype, n, h, w, c, *window, x, out, choice)
    return out, choice


def pool_backward(grad: Tensor, choice: Tensor, window: Window, shape: torch.Size, onto: Tensor | None) -> Tensor:
    """Gradient matrix of the maxima -> that of the map, added `onto` a matrix where one is given."""
    n, c, h, w = shape
    into = grad.new_empty(n * h * w, c) if onto is None else onto
    call("pool_backward", into.dtype, n, h, w, c, *window, int(onto is not None), grad.contiguous(), choice, into)
    return into
