"""What each of a block's parallel paths contributes: its part of the activation, and the accuracy lost without it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..models.googlenet import Inception
from ..models.network import Network
from ..models.paths import Parallel, Residual
from .stages import layer_of, outputs


class PathRow(NamedTuple):
    """One path of one block.

    `channels` is its width, `share` its part of the sum of the block's absolute activations before the paths are
    joined (in 0..1; a block's sum to 1), `top1` the network's accuracy while the path gives zeros, `lost` how much
    less that is than the whole network's, and `error` the standard error of `lost` over the pictures.
    """

    block: str
    path: str
    channels: int
    share: float
    top1: float
    lost: float
    error: float


class Contributions(NamedTuple):
    """The whole network's `top1` on so many `images`, and a row for every path of every block."""

    top1: float
    images: int
    rows: list[PathRow]


def path_ends(layer: nn.Module) -> Mapping[str, nn.Module]:
    """The last module of each parallel path of a block, by the path's name in the table; none for other layers.

    A path that forks again inside is one path. Of a residual block these are the paths beside the shortcut.
    """
    match layer:
        case Inception():
            return {
                "conv1x1": layer.conv1x1,
                "conv3x3": layer.conv3x3,
                "conv5x5": layer.conv5x5,
                "pool": layer.pool_proj,
            }
        case Parallel():
            return dict(layer.named_children())
        case Residual():
            return dict(layer.paths.named_children())
        case _:
            return {}


@contextmanager
def silenced(end: nn.Module) -> Iterator[None]:
    """Inside the context the path that `end` is the last module of gives zeros."""
    handle = end.register_forward_hook(lambda _, __, out: torch.zeros_like(out))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _heard(ends: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Inside the context each path's last output is kept."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_: nn.Module, __: object, out: Tensor) -> None:
            found[name] = out

        return hook

    handles = [end.register_forward_hook(keep(name)) for name, end in ends.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def path_widths(model: Network, layer: str, pixels: Tensor) -> dict[str, int]:
    """How many of the channels of `layer` each of its parallel paths gives, in the order in which they are joined.

    None for a layer that does not join paths. `pixels` are normalised, (n, channels, height, width), any of them.
    """
    ends = path_ends(layer_of(model, layer))
    with torch.inference_mode(), _heard(ends) as heard:
        *_, (_, out) = outputs(model, pixels, upto=layer)
    widths = {path: heard[path].shape[1] for path in ends}
    return widths if sum(widths.values()) == out.shape[1] else {}


def contributions(model: Network, batches: Iterable[tuple[Tensor, Tensor]]) -> Contributions:
    """Measure every path on batches of (pixels, labels), by a network in evaluation mode.

    What lies before a block is computed once for all its paths. ValueError for a network without parallel paths.
    """
    layers = dict(model.trunk.named_children())
    blocks = {name: ends for name, layer in layers.items() if (ends := path_ends(layer))}
    if not blocks:
        raise ValueError("no layer of this network has parallel paths")
    keys = [(block, path) for block, ends in blocks.items() for path in ends]
    sums, widths = dict.fromkeys(keys, 0.0), dict.fromkeys(keys, 0)
    whole: list[Tensor] = []
    without: dict[tuple[str, str], list[Tensor]] = {key: [] for key in keys}
    device = next(model.parameters()).device
    with torch.inference_mode():
        for pixels, labels in batches:
            x, truth = pixels.to(device), labels.to(device)
            following = list(layers.items())
            while following:
                name, layer = following[0]
                for path, end in blocks.get(name, {}).items():
                    with silenced(end):
                        without[name, path].append(_right(model, x, following, truth))
                with _heard(blocks.get(name, {})) as outs:
                    x = layer(x)
                for path, out in outs.items():
                    sums[name, path] += float(out.abs().sum(dtype=torch.float64))
                    widths[name, path] = out.shape[1]
                following = following[1:]
            whole.append((model.forward_head(x).argmax(1) == truth).cpu())
    right = torch.cat(whole)
    totals = {block: sum(sums[block, path] for path in ends) for block, ends in blocks.items()}
    rows = [
        _row(key, widths[key], sums[key] / (totals[key[0]] or 1.0), right, torch.cat(without[key])) for key in keys
    ]
    return Contributions(right.double().mean().item(), len(right), rows)


def _right(model: Network, x: Tensor, layers: Iterable[tuple[str, nn.Module]], truth: Tensor) -> Tensor:
    """Which pictures are answered right from the map `x` on, through `layers`."""
    for _, layer in layers:
        x = layer(x)
    return (model.forward_head(x).argmax(1) == truth).cpu()


def _row(key: tuple[str, str], channels: int, share: float, right: Tensor, without: Tensor) -> PathRow:
    # Of each picture: 1 where it was right only with the path, -1 where only without it.
    change = right.double() - without.double()
    error = change.std(correction=0).item() / len(change) ** 0.5
    return PathRow(*key, channels, share, without.double().mean().item(), change.mean().item(), error)
