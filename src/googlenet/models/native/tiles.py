"""Padded 3x3 convolutions in fewer multiplications: Winograd's minimal filtering, forward and back, in float32.

After Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016). The kernels are in tiles.h; the
products of matrices are PyTorch's. Both directions are exact but for rounding.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .calls import call

# Bytes of the tiles that are worked on at once: they should stay in the processor's caches.
ROOM = 8 << 20


def tile_side(weight: Tensor, x: Tensor) -> int | None:
    """The side of the tiles of the output, 2, 3 or 4, for this padded convolution; None where it is not worth it."""
    out, into, k, _ = weight.shape
    if k != 3 or x.dtype != torch.float32 or out % 16 or into % 16:
        return None
    _, _, h, w = x.shape
    products = {side: -(-h // side) * -(-w // side) * (side + 2) ** 2 for side in (2, 3, 4)}
    side = min(products, key=lambda side: (products[side], side))
    return side if products[side] < 0.6 * 9 * h * w else None


def convolve_tiles(x: Tensor, weight: Tensor, bias: Tensor | None, side: int) -> Tensor:
    """(n, c, h, w) -> the matrix of the convolution's output."""
    n, c, h, w = x.shape
    out = weight.shape[0]
    filters = _weight_tiles(weight, side)
    result = x.new_empty(n * h * w, out)
    for part, rows, tiles, products in _parts(x, out, side):
        size = len(part), h, w
        call(f"tiles_of_map_{side}", x.dtype, *size, c, part, tiles)
        torch.bmm(tiles, filters.transpose(1, 2), out=products)
        call(f"map_of_tiles_{side}", x.dtype, *size, out, products, 0 if bias is None else bias, result[rows])
    return result


def convolve_tiles_backward(
    grad: Tensor, x: Tensor, weight: Tensor, side: int, need_input: bool
) -> tuple[Tensor | None, Tensor]:
    """Gradient matrix of the output -> (gradient matrix of the input, gradient of the weight)."""
    n, c, h, w = x.shape
    out = weight.shape[0]
    filters = _weight_tiles(weight, side) if need_input else None
    into = x.new_empty(n * h * w, c) if need_input else None
    dfilters = x.new_zeros((side + 2) ** 2, out, c)
    for part, rows, tiles, products in _parts(x, out, side):
        size = len(part), h, w
        call(f"map_of_tiles_backward_{side}", x.dtype, *size, out, grad[rows], products)
        call(f"tiles_of_map_{side}", x.dtype, *size, c, part, tiles)
        dfilters.baddbmm_(products.transpose(1, 2), tiles)
        if into is not None and filters is not None:
            torch.bmm(products, filters, out=tiles)
            call(f"tiles_of_map_backward_{side}", x.dtype, *size, c, tiles, into[rows])
    dweight = torch.empty_like(weight, memory_format=torch.channels_last)
    call(f"tiles_of_weight_backward_{side}", x.dtype, out, c, dfilters, dweight)
    return into, dweight


def _weight_tiles(weight: Tensor, side: int) -> Tensor:
    """(out, in, 3, 3) -> (places, out, in)."""
    out, into, _, _ = weight.shape
    tiles = weight.new_empty((side + 2) ** 2, out, into)
    weight = weight.contiguous(memory_format=torch.channels_last)
    call(f"tiles_of_weight_{side}", weight.dtype, out, into, weight, tiles)
    return tiles


def _parts(x: Tensor, out: int, side: int) -> Iterator[tuple[Tensor, slice, Tensor, Tensor]]:
    """The pictures of `x` a few at a time: those, their rows in a matrix of the map, and room for the tiles of their
    input and output, a matrix (tiles, channels) for each place of a tile."""
    n, c, h, w = x.shape
    tiles, places = -(-h // side) * -(-w // side), (side + 2) ** 2
    step = min(n, max(1, ROOM // (4 * places * tiles * (c + out))))
    room = x.new_empty(places * tiles * step * (c + out))
    for first in range(0, n, step):
        part = x[first : first + step]
        count = len(part) * tiles
        inputs, outputs = room[: places * count * c], room[places * count * c : places * count * (c + out)]
        yield (
            part,
            slice(first * h * w, (first + len(part)) * h * w),
            inputs.view(places, count, c),
            outputs.view(places, count, out),
        )
