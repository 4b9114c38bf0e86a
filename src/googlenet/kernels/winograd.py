"""Padded 3x3 convolutions with fewer multiplications: Winograd's minimal filtering, forward and backward, in float32.

After Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016). The transforms are in winograd.h,
the matrix products are PyTorch's. Forward and backward are exact up to rounding. `tile_size` is the height and width
of an output tile.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .ffi import call

# Bytes of the transformed tiles that are processed at once; they should fit in the processor's caches.
WORKSPACE_BYTES = 8 << 20


def select_tile_size(weight: Tensor, x: Tensor) -> int | None:
    """Return the best tile size, 2, 3 or 4, for a padded convolution; None if another algorithm is faster."""
    out_channels, in_channels, k, _ = weight.shape
    if k != 3 or x.dtype != torch.float32 or out_channels % 16 or in_channels % 16:
        return None
    _, _, h, w = x.shape
    products = {size: -(-h // size) * -(-w // size) * (size + 2) ** 2 for size in (2, 3, 4)}
    best = min(products, key=lambda size: (products[size], size))
    return best if products[best] < 0.6 * 9 * h * w else None


def winograd_conv(x: Tensor, weight: Tensor, bias: Tensor | None, tile_size: int) -> Tensor:
    """Convolve x (n, c, h, w); return the output as a matrix (n * h * w, out_channels)."""
    n, c, h, w = x.shape
    out_channels = weight.shape[0]
    filters = _transform_filters(weight, tile_size)
    out = x.new_empty(n * h * w, out_channels)
    for images, rows, inputs, outputs in _chunks(x, out_channels, tile_size):
        size = len(images), h, w
        call(f"input_transform_{tile_size}", x.dtype, *size, c, images, inputs)
        torch.bmm(inputs, filters.transpose(1, 2), out=outputs)
        bias_pointer = 0 if bias is None else bias
        call(f"output_transform_{tile_size}", x.dtype, *size, out_channels, outputs, bias_pointer, out[rows])
    return out


def winograd_conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, tile_size: int, need_input_grad: bool
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of the input, as a matrix, and of the weight, from the gradient matrix of the output."""
    n, c, h, w = x.shape
    out_channels = weight.shape[0]
    filters = _transform_filters(weight, tile_size) if need_input_grad else None
    grad_input = x.new_empty(n * h * w, c) if need_input_grad else None
    grad_filters = x.new_zeros((tile_size + 2) ** 2, out_channels, c)
    for images, rows, inputs, outputs in _chunks(x, out_channels, tile_size):
        size = len(images), h, w
        call(f"output_transform_backward_{tile_size}", x.dtype, *size, out_channels, grad[rows], outputs)
        call(f"input_transform_{tile_size}", x.dtype, *size, c, images, inputs)
        grad_filters.baddbmm_(outputs.transpose(1, 2), inputs)
        if grad_input is not None and filters is not None:
            torch.bmm(outputs, filters, out=inputs)
            call(f"input_transform_backward_{tile_size}", x.dtype, *size, c, inputs, grad_input[rows])
    grad_weight = torch.empty_like(weight, memory_format=torch.channels_last)
    call(f"filter_transform_backward_{tile_size}", x.dtype, out_channels, c, grad_filters, grad_weight)
    return grad_input, grad_weight


def _transform_filters(weight: Tensor, tile_size: int) -> Tensor:
    """Transform weights (out, in, 3, 3) -> (tile elements, out, in)."""
    out_channels, in_channels, _, _ = weight.shape
    filters = weight.new_empty((tile_size + 2) ** 2, out_channels, in_channels)
    weight = weight.contiguous(memory_format=torch.channels_last)
    call(f"filter_transform_{tile_size}", weight.dtype, out_channels, in_channels, weight, filters)
    return filters


def _chunks(x: Tensor, out_channels: int, tile_size: int) -> Iterator[tuple[Tensor, slice, Tensor, Tensor]]:
    """Yield some images of `x` at a time, their rows in a matrix of the map, and workspace for their tiles.

    The workspaces of inputs and outputs have a matrix (tiles, channels) per tile element.
    """
    n, c, h, w = x.shape
    num_tiles, tile_elements = -(-h // tile_size) * -(-w // tile_size), (tile_size + 2) ** 2
    step = min(n, max(1, WORKSPACE_BYTES // (4 * tile_elements * num_tiles * (c + out_channels))))
    workspace = x.new_empty(tile_elements * num_tiles * step * (c + out_channels))
    for start in range(0, n, step):
        images = x[start : start + step]
        count = len(images) * num_tiles
        tiles = workspace[: tile_elements * count * (c + out_channels)]
        inputs, outputs = torch.split(tiles, [tile_elements * count * c, tile_elements * count * out_channels])
        yield (
            images,
            slice(start * h * w, (start + len(images)) * h * w),
            inputs.view(tile_elements, count, c),
            outputs.view(tile_elements, count, out_channels),
        )
