"""Pictures of what was measured over layers, blocks, filters and units; see `drawing` for their common look."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray
from torch import Tensor

from .depth import HeadRow, Probe
from .drawing import MARKS, PALETTE, grid, png, readable_on, sheet
from .filters import Fit, values
from .gradients import Depth
from .paths import Contributions
from .units import Blocks

ACROSS = 8  # filters in a row
# Of numbers of either sign: white is zero, and what is no filter is grey. Red and green are not in it.
SIGNED = matplotlib.colormaps["PuOr_r"].with_extremes(bad="#9ca3af")


def draw_filters(filters: Tensor, fits: Sequence[Fit], chance: Sequence[Fit]) -> bytes:
    """The filters (n, channels, h, w), best fitted first; the Gabor function of each; the residuals' distribution."""
    order = sorted(range(len(fits)), key=lambda number: fits[number].residual)
    height, width = filters.shape[-2:]
    closest = torch.stack(
        [torch.tensor(fit.colour).view(-1, 1, 1) * torch.from_numpy(values(fit.gabor, height, width)) for fit in fits]
    )
    tall = 1.0 + 0.45 * -(-len(filters) // ACROSS)
    figure = sheet(tall + 2.2)
    top, bottom = figure.subfigures(2, 1, height_ratios=(tall, 2.2), squeeze=False)[:, 0]
    for axis, title, tiles in zip(
        top.subplots(1, 2),
        ("filters, the best fitted first", "closest Gabor functions"),
        (filters, closest),
        strict=True,
    ):
        drawn = axis.imshow(_mosaic(tiles[order], filters[order]), cmap=SIGNED, vmin=-1, vmax=1)
        axis.set(title=title, xlabel=f"{ACROSS} in a row, each of {height}x{width} pixels", xticks=[], yticks=[])
        axis.title.set_fontsize(9)
    if filters.shape[1] == 1:
        top.colorbar(drawn, ax=top.axes, label="weight / the filter's largest", shrink=0.8)
    axis = bottom.subplots()
    bins = np.linspace(0, 1, 26)
    axis.hist([f.residual for f in fits], bins, color=PALETTE[0], alpha=0.85, label="the filters")
    axis.hist(
        [f.residual for f in chance], bins, histtype="step", lw=2, color=PALETTE[1], label="pixels in random order"
    )
    axis.set(xlabel="residual (share of the filter's sum of squares that no Gabor function gives)", ylabel="filters")
    grid(axis)
    axis.legend(frameon=False, fontsize=8)
    return png(figure)


def _mosaic(tiles: Tensor, scales: Tensor) -> NDArray[np.float64]:
    """Tiles in rows, each by the largest weight of its filter: (h, w) in -1..1, or (h, w, 3) in 0..1 for colour."""
    count, channels, height, width = tiles.shape
    rows = -(-count // ACROSS)
    shown = tiles.double() / scales.double().abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
    if channels == 3:
        shown = (shown + 1) / 2
    else:
        shown = shown.mean(1, keepdim=True)
    depth = shown.shape[1]
    sheet_of = np.full((rows * (height + 1) + 1, ACROSS * (width + 1) + 1, depth), 1.0 if depth == 3 else np.nan)
    for number, tile in enumerate(shown.clamp(-1, 1).permute(0, 2, 3, 1).numpy()):
        y, x = (number // ACROSS) * (height + 1) + 1, (number % ACROSS) * (width + 1) + 1
        sheet_of[y : y + height, x : x + width] = tile
    return sheet_of if depth == 3 else sheet_of[..., 0]


def draw_paths(found: Contributions) -> bytes:
    """For each block, from the top: each path's part of the activation, and the accuracy lost without it."""
    blocks = list(dict.fromkeys(row.block for row in found.rows))
    paths = list(dict.fromkeys(row.path for row in found.rows))
    figure = sheet(1.5 + 0.34 * len(blocks))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.3))
    starts = dict.fromkeys(blocks, 0.0)
    for number, path in enumerate(paths):
        colour, mark = PALETTE[number % 7], MARKS[number % 7][0]
        rows = [row for row in found.rows if row.path == path]
        places = np.array([blocks.index(row.block) for row in rows])
        bars = left.barh(
            places, [r.share for r in rows], left=[starts[r.block] for r in rows], color=colour, label=path
        )
        left.bar_label(bars, [f"{r.share:.0%}" if r.share > 0.07 else "" for r in rows], label_type="center",
                       color=readable_on(colour), fontsize=7)  # fmt: skip
        for row in rows:
            starts[row.block] += row.share
        shift = 0.6 * ((number + 0.5) / len(paths) - 0.5)
        right.errorbar([r.lost for r in rows], places + shift, xerr=[r.error for r in rows], fmt=mark, color=colour,
                       ms=5, lw=1, label=path)  # fmt: skip
    left.set_xlabel("share of the block's activation", fontsize=9)
    left.set(xlim=(0, 1), yticks=range(len(blocks)))
    left.xaxis.set_major_formatter(PercentFormatter(1.0))
    left.set_yticklabels(blocks, fontsize=8)
    left.invert_yaxis()
    right.locator_params(axis="x", nbins=6)
    right.axvline(0, color="#6b7280", lw=0.8)
    right.set(xlabel=f"top-1 (of {found.top1:.3f}) lost without the path, and its standard error")
    right.xaxis.label.set_fontsize(9)
    for axis in (left, right):
        grid(axis)
    figure.legend(
        *right.get_legend_handles_labels(), loc="outside upper center", ncols=min(7, len(paths)), frameon=False
    )
    return png(figure)


def draw_depth(probes: Sequence[Probe], untrained: Sequence[Probe], heads: Sequence[HeadRow], guess: float) -> bytes:
    """Top-1 of each layer's probe, before training too, of the own heads, and of naming the commonest class."""
    figure = sheet(4.0)
    axis = figure.subplots()
    layers = [probe.layer for probe in probes]
    axis.plot(range(len(layers)), [p.top1 for p in probes], MARKS[0], color=PALETTE[0], label="linear probe")
    axis.plot(range(len(layers)), [p.top1 for p in untrained], MARKS[2], color=PALETTE[2], lw=1,
              label="the same before training")  # fmt: skip
    places = [layers.index(h.head) if h.head in layers else len(layers) - 1 for h in heads]
    axis.plot(
        places, [h.top1 for h in heads], "D", color=PALETTE[1], ms=7, ls="none", label="the network's own heads"
    )
    axis.axhline(guess, color="#6b7280", ls=":", label="the commonest class")
    axis.set(xlabel="layer, shallow to deep", ylabel="top-1 accuracy", ylim=(0, 1), xticks=range(len(layers)))
    axis.set_xticklabels(layers, rotation=60, ha="right", fontsize=8)
    grid(axis)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return png(figure)


def draw_gradients(networks: Mapping[str, Sequence[Depth]]) -> bytes:
    """Each layer's gradient by its weights' length, before the first step and after the last; a line a network."""
    moments = max(len(found) for found in networks.values())
    figure = sheet(4.4)
    for number, axis in enumerate(np.atleast_1d(figure.subplots(1, moments, sharey=True))):
        for line, (name, found) in enumerate(networks.items()):
            axis.plot(found[number].relative, MARKS[line % 7], color=PALETTE[line % 7], ms=4, lw=1.2, label=name)
            layers, steps = found[number].layers, found[number].steps
        axis.set(yscale="log", xlabel="layer, shallow to deep", xticks=range(len(layers)))
        axis.set_title("before the first step" if steps == 0 else f"after {steps} steps", fontsize=10)
        axis.set_xticklabels(layers, rotation=60, ha="right", fontsize=7)
        grid(axis)
        if number == 0:
            axis.set_ylabel("length of the gradient / of the weights")
            handles = axis.get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return png(figure)


def draw_units(matrix: NDArray[np.float64], blocks: Blocks, layer: str, parts: Mapping[str, int]) -> bytes:
    """The correlations' absolute values in the layer's own order, and clustered, with the blocks' outlines.

    `parts` are the paths that the units belong to in the layer's own order, and how many of them each has.
    """
    figure = sheet(4.4)
    left, right = figure.subplots(1, 2)
    drawn: Any = None
    for axis, order, title in (
        (left, list(range(len(matrix))), f"{layer}: the layer's own order"),
        (
            right,
            blocks.order,
            f"clustered: {len(blocks.sizes)} blocks hold {blocks.held:.0%} (chance {blocks.by_chance:.0%})",
        ),
    ):
        drawn = axis.imshow(np.abs(matrix[np.ix_(order, order)]), cmap="viridis", vmin=0, vmax=1)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("unit (channel), by position in the order")
    left.set_ylabel("unit (channel), by path" if parts else "unit (channel)")
    if parts:
        ends = np.cumsum(list(parts.values()))
        left.set_yticks(ends - np.array(list(parts.values())) / 2, list(parts), fontsize=8)
        for end in ends[:-1]:
            left.axhline(end - 0.5, color="white", lw=0.8, ls="--")
            left.axvline(end - 0.5, color="white", lw=0.8, ls="--")
    start = 0
    for size in blocks.sizes:
        right.add_patch(Rectangle((start - 0.5, start - 0.5), size, size, fill=False, ec="white", lw=0.9))
        start += size
    figure.colorbar(drawn, ax=[left, right], label="absolute correlation", shrink=0.8)
    return png(figure)
