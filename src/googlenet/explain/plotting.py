"""Charts of the analyses: 800 pixels wide, with named axes and units, and colors of `palette`."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullFormatter, PercentFormatter
from numpy.typing import NDArray
from torch import Tensor
from torchvision.utils import make_grid

from ..data.decode import to_display
from ..evaluation.plots import legend_label, new_figure, style_axes, to_png
from ..palette import GRAY, PALETTE, VERMILLION

if TYPE_CHECKING:
    from ..evaluation.linear_probes import Probe
    from .branch_ablation import BranchContributions
    from .gradient_norms import GradientNorms
    from .unit_correlation import Clustering

MARKERS = ("o-", "s--", "^-.", "D:", "v-", "P--", "X-.")
FILTERS_PER_ROW = 8
# For values of either sign: zero is white, the space between filters is gray.
DIVERGING = matplotlib.colormaps["PuOr_r"].with_extremes(bad="#9ca3af")

CAM_NOTE = (
    "Top: the map, one square\nper position. Bottom:\nthe map over the image,\nsmoothed; + is the peak.\n\n"
    "The mean of a map plus\nthe class's bias is its\nlogit."
)
GRADCAM_NOTE = (
    "Each map has its own scale,\nin logits. Grad-CAM is not\nnegative; activation x\ngradient has either sign.\n"
    "+ is the peak."
)


class DisplayImage(NamedTuple):
    """An image at the network's input size: its `name`, and `pixels` float 0..255 (channels, h, w)."""

    name: str
    pixels: Tensor


def figure_of_height(height: float) -> Figure:
    """Return an empty figure, 800 pixels wide and `height` inches high."""
    return new_figure(8.0, height, dpi=100)


def text_color(background: str) -> str:
    """Return black or white, whichever has more contrast with a color "#rrggbb" (WCAG 2)."""
    red, green, blue = (int(background[start : start + 2], 16) / 255 for start in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "black"


def upsample_maps(maps: Tensor, height: int, width: int) -> Tensor:
    """Upsample maps (n, k, h, w) to the pixels of an image, (n, k, height, width)."""
    # Unlike those of bilinear interpolation, bicubic peaks can lie between the centers of the positions.
    return F.interpolate(maps, (height, width), mode="bicubic", align_corners=False)


def peak_positions(maps: Tensor, height: int, width: int) -> Tensor:
    """Return row and column, in pixels, of the maximum of each upsampled map, of ties their mean: (n, k, 2)."""
    upsampled = upsample_maps(maps, height, width)
    maximum = upsampled.amax((-2, -1), keepdim=True)
    is_peak = (upsampled >= maximum - 1e-5 * maximum.abs()).to(upsampled)
    weights = is_peak / is_peak.sum((-2, -1), keepdim=True)
    rows, columns = (torch.arange(length).to(upsampled) for length in (height, width))
    return torch.stack((weights.sum(-1) @ rows, weights.sum(-2) @ columns), dim=-1)


def show_image(axis: Any, image: DisplayImage, gray: bool = False) -> None:
    """Draw an image in pixel coordinates; `gray` as the background of a map."""
    height, width = image.pixels.shape[-2:]
    values = np.atleast_3d(np.asarray(to_display(image.pixels.round().to(torch.uint8))))
    if values.shape[-1] == 1 or gray:
        values = values.mean(-1)
    axis.imshow(values, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0), interpolation="nearest")


def overlay_map(axis: Any, image: DisplayImage, values: Tensor, limits: tuple[float, float]) -> Any:
    """Draw an upsampled map (h, w) over the image, with its peak unless it is constant; return it for a color bar."""
    height, width = image.pixels.shape[-2:]
    show_image(axis, image, gray=True)
    upsampled = upsample_maps(values[None, None], height, width)[0, 0].numpy()
    drawn = axis.imshow(upsampled, cmap="viridis", clim=limits, alpha=0.65, extent=(0, width, height, 0))
    if np.ptp(upsampled) > 0:
        y, x = peak_positions(values[None, None], height, width)[0, 0].tolist()
        axis.plot(x + 0.5, y + 0.5, "+", color="white", ms=12, mew=2.5)
        axis.plot(x + 0.5, y + 0.5, "+", color=VERMILLION, ms=10, mew=1.2)
    return drawn


def value_limits(values: Tensor) -> tuple[float, float]:
    """Return the minimum and the maximum, or a range around a constant."""
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _show_input(axis: Any, image: DisplayImage) -> None:
    show_image(axis, image)
    axis.set(title=image.name, xlabel="pixels", ylabel="pixels")


def _image_and_note(figure: Figure, image: DisplayImage, num_maps: int, note: str) -> Any:
    """Return two rows of axes; the first column has the image and a note."""
    axes = figure.subplots(2, num_maps + 1, squeeze=False)
    _show_input(axes[0, 0], image)
    axes[1, 0].set_axis_off()
    axes[1, 0].text(0, 0.95, note, va="top", fontsize=8, transform=axes[1, 0].transAxes)
    return axes


def _legend_above(figure: Figure, axis: Any, **options: Any) -> None:
    """Draw the legend of `axis` above all axes of the figure."""
    handles = axis.get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", frameon=False, **options)


def draw_cam(image: DisplayImage, titles: Sequence[str], maps: Tensor) -> bytes:
    """Draw each class's map (k, h, w) at its own resolution and over the image, all with the same scale."""
    limits = value_limits(maps)
    height, width = maps.shape[-2:]
    figure = figure_of_height(4.6)
    axes = _image_and_note(figure, image, len(maps), CAM_NOTE)
    for top, bottom, title, values in zip(*axes[:, 1:], titles, maps, strict=True):
        top.imshow(values.numpy(), cmap="viridis", clim=limits)
        top.set_title(title, fontsize=9)
        top.set(xlabel="map position", xticks=_ticks(width), yticks=_ticks(height))
        overlay_map(bottom, image, values, limits)
        bottom.set(xlabel="pixels")
    axes[0, 1].set_ylabel("map position")
    axes[1, 1].set_ylabel("pixels")
    label = "contribution of a position to the class (logit)"
    figure.colorbar(axes[0, 1].images[0], ax=axes[:, 1:], label=label, shrink=0.9)
    return to_png(figure)


def _ticks(count: int) -> range:
    return range(0, count, max(1, count // 4))


def draw_gradcam(image: DisplayImage, title: str, maps: Sequence[tuple[str, Tensor, Tensor]]) -> bytes:
    """Draw Grad-CAM and activation x gradient, (h, w) each, of each stage over the image, each with its own scale."""
    figure = figure_of_height(4.2)
    figure.suptitle(title, fontsize=10)
    axes = _image_and_note(figure, image, len(maps), GRADCAM_NOTE)
    height, width = image.pixels.shape[-2:]
    for column, (stage, *rows) in zip(axes[:, 1:].T, maps, strict=True):
        for axis, values in zip(column, rows, strict=True):
            limits = value_limits(values)
            drawn = overlay_map(axis, image, values, limits)
            bar = figure.colorbar(drawn, ax=axis, orientation="horizontal", shrink=0.9, pad=0.02)
            bar.set_ticks(limits, labels=[f"{limit:.2g}" for limit in limits], fontsize=7)
            axis.set(xticks=[0, width], yticks=[0, height])
            axis.tick_params(labelsize=7)
        column[0].set_title(f"{stage}\n{'x'.join(map(str, rows[0].shape))} positions", fontsize=8)
    axes[0, 1].set_ylabel("Grad-CAM\n(pixels)", fontsize=8)
    axes[1, 1].set_ylabel("activation x gradient\n(pixels)", fontsize=8)
    return to_png(figure)


def draw_sizes(
    image: DisplayImage, sizes: Sequence[int], curves: Mapping[str, Sequence[float]], network_size: int
) -> bytes:
    """Draw each class's probabilities by image size."""
    figure = figure_of_height(3.6)
    left, right = figure.subplots(1, 2, width_ratios=(1, 3))
    _show_input(left, image)
    for index, (label, probabilities) in enumerate(curves.items()):
        right.plot(
            sizes, probabilities, MARKERS[index % 7], color=PALETTE[index % 7], ms=4, lw=1.3, label=legend_label(label)
        )
    right.axvline(network_size, color=GRAY, lw=1, ls=":", label="the network's own size")
    right.set(xlabel="image size (pixels)", ylabel="probability", ylim=(-0.03, 1.03))
    style_axes(right)
    right.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return to_png(figure)


def draw_filters(filters: Tensor, gabors: Tensor, residuals: list[float], shuffled: list[float]) -> bytes:
    """Draw filters (n, channels, h, w) by residual, their Gabor functions, and the distribution of the residuals."""
    order = sorted(range(len(residuals)), key=lambda index: residuals[index])
    height, width = filters.shape[-2:]
    upper_height = 1.0 + 0.45 * -(-len(filters) // FILTERS_PER_ROW)
    figure = figure_of_height(upper_height + 2.2)
    top, bottom = figure.subfigures(2, 1, height_ratios=(upper_height, 2.2), squeeze=False)[:, 0]
    titles = ("filters, smallest residual first", "closest Gabor functions")
    for axis, title, tiles in zip(top.subplots(1, 2), titles, (filters, gabors), strict=True):
        drawn = axis.imshow(_mosaic(tiles[order], filters[order]), cmap=DIVERGING, vmin=-1, vmax=1)
        axis.set_title(title, fontsize=9)
        axis.set(xlabel=f"{FILTERS_PER_ROW} per row, {height}x{width} pixels each", xticks=[], yticks=[])
    if filters.shape[1] == 1:
        top.colorbar(drawn, ax=top.axes, label="weight / largest weight of the filter", shrink=0.8)
    axis = bottom.subplots()
    bins = np.linspace(0, 1, 26)
    axis.hist(residuals, bins, color=PALETTE[0], alpha=0.85, label="filters")
    axis.hist(shuffled, bins, histtype="step", lw=2, color=PALETTE[1], label="shuffled pixels")
    axis.set(xlabel="residual (share of the sum of squares not explained by the Gabor function)", ylabel="filters")
    style_axes(axis)
    axis.legend(frameon=False, fontsize=8)
    return to_png(figure)


def _mosaic(tiles: Tensor, scales: Tensor) -> NDArray[np.float64]:
    """Arrange tiles in rows, scaled by the largest weight of each filter: (h, w) in -1..1, or (h, w, 3) in 0..1."""
    scaled = tiles.double() / scales.double().abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
    is_rgb = tiles.shape[1] == 3
    scaled = (scaled + 1) / 2 if is_rgb else scaled.mean(1, keepdim=True)
    grid = make_grid(scaled.clamp(-1, 1), FILTERS_PER_ROW, padding=1, pad_value=1.0 if is_rgb else torch.nan)
    mosaic: NDArray[np.float64] = grid.permute(1, 2, 0).numpy()
    return mosaic if is_rgb else mosaic[..., 0]


def draw_branches(contributions: "BranchContributions") -> bytes:
    """Draw each branch's share of its block's activation, and the drop in accuracy without it; first block on top."""
    blocks = list(dict.fromkeys(row.block for row in contributions.rows))
    branches = list(dict.fromkeys(row.branch for row in contributions.rows))
    figure = figure_of_height(1.5 + 0.34 * len(blocks))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.3))
    starts = np.zeros(len(blocks))
    for index, branch in enumerate(branches):
        color, marker = PALETTE[index % 7], MARKERS[index % 7][0]
        rows = [row for row in contributions.rows if row.branch == branch]
        positions = np.array([blocks.index(row.block) for row in rows])
        shares = np.array([row.share for row in rows])
        bars = left.barh(positions, shares, left=starts[positions], color=color, label=branch)
        left.bar_label(bars, [f"{share:.0%}" if share > 0.07 else "" for share in shares], label_type="center",
                       color=text_color(color), fontsize=7)  # fmt: skip
        starts[positions] += shares
        shift = 0.6 * ((index + 0.5) / len(branches) - 0.5)
        right.errorbar([r.top1_drop for r in rows], positions + shift, xerr=[r.standard_error for r in rows],
                       fmt=marker, color=color, ms=5, lw=1, label=branch)  # fmt: skip
    left.set_xlabel("share of the block's activation", fontsize=9)
    left.set(xlim=(0, 1))
    left.xaxis.set_major_formatter(PercentFormatter(1.0))
    left.set_yticks(range(len(blocks)), blocks, fontsize=8)
    left.invert_yaxis()
    right.locator_params(axis="x", nbins=6)
    right.axvline(0, color=GRAY, lw=0.8)
    right.set_xlabel(f"drop of top-1 {contributions.top1:.3f} without the branch ± std. error", fontsize=9)
    style_axes(left, right)
    _legend_above(figure, right, ncols=min(7, len(branches)))
    return to_png(figure)


def draw_probes(
    trained: "Sequence[Probe]", untrained: "Sequence[Probe]", heads: Mapping[str, float], majority_class: float
) -> bytes:
    """Draw the accuracy of each layer's probe, of the probes of an untrained network, and of the network's heads."""
    figure = figure_of_height(4.0)
    axis = figure.subplots()
    layers = [probe.layer for probe in trained]
    axis.plot([probe.top1 for probe in trained], MARKERS[0], color=PALETTE[0], label="linear probe")
    axis.plot([probe.top1 for probe in untrained], MARKERS[2], color=PALETTE[2], lw=1, label="untrained network")
    positions = [layers.index(head) if head in layers else len(layers) - 1 for head in heads]
    axis.plot(positions, list(heads.values()), "D", color=PALETTE[1], ms=7, ls="none", label="the network's heads")
    axis.axhline(majority_class, color=GRAY, ls=":", label="most frequent class")
    axis.set(xlabel="layer, shallow to deep", ylabel="top-1 accuracy", ylim=(0, 1))
    axis.set_xticks(range(len(layers)), layers, rotation=60, ha="right", fontsize=8)
    style_axes(axis)
    _legend_above(figure, axis, ncols=4, fontsize=8)
    return to_png(figure)


def draw_gradients(networks: "Mapping[str, Sequence[GradientNorms]]") -> bytes:
    """Draw each layer's gradient norm / weight norm, before the first and after the last step, a line per network."""
    columns = max(len(steps) for steps in networks.values())
    figure = figure_of_height(4.4)
    axes = np.atleast_1d(figure.subplots(1, columns, sharey=True))
    for column, axis in enumerate(axes):
        for index, (name, steps) in enumerate(networks.items()):
            norms = steps[column]
            axis.plot(
                norms.relative, MARKERS[index % 7], color=PALETTE[index % 7], ms=4, lw=1.2, label=legend_label(name)
            )
        axis.set(yscale="log", xlabel="layer, shallow to deep")
        axis.yaxis.set_major_formatter("{x:g}")  # The default formatter writes formulas.
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_title(f"after {norms.steps} steps" if norms.steps else "before the first step", fontsize=10)
        axis.set_xticks(range(len(norms.layers)), norms.layers, rotation=60, ha="right", fontsize=7)
        style_axes(axis)
    axes[0].set_ylabel("gradient norm / weight norm")
    _legend_above(figure, axes[0], ncols=2, fontsize=8)
    return to_png(figure)


def draw_units(matrix: NDArray[np.float64], clustering: "Clustering", layer: str, branches: Mapping[str, int]) -> bytes:
    """Draw absolute correlations in the layer's order, with its branches' numbers of units, and clustered in blocks."""
    figure = figure_of_height(4.4)
    left, right = axes = figure.subplots(1, 2)
    shares = f"{clustering.block_share:.0%} (chance {clustering.chance_share:.0%})"
    left.set_title(f"{layer}: original order", fontsize=9)
    right.set_title(f"clustered: {len(clustering.sizes)} blocks contain {shares}", fontsize=9)
    for axis, order in ((left, range(len(matrix))), (right, clustering.order)):
        drawn = axis.imshow(np.abs(matrix[np.ix_(order, order)]), cmap="viridis", vmin=0, vmax=1)
        axis.set_xlabel("unit (channel)")
    left.set_ylabel("unit (channel), by branch" if branches else "unit (channel)")
    if branches:
        sizes = np.array(list(branches.values()))
        ends = np.cumsum(sizes)
        left.set_yticks(ends - sizes / 2, list(branches), fontsize=8)
        for end, draw_line in product(ends[:-1], (left.axhline, left.axvline)):
            draw_line(end - 0.5, color="white", lw=0.8, ls="--")
    for size, end in zip(clustering.sizes, np.cumsum(clustering.sizes), strict=True):
        corner = (end - size - 0.5, end - size - 0.5)
        right.add_patch(Rectangle(corner, size, size, fill=False, ec="white", lw=0.9))
    figure.colorbar(drawn, ax=list(axes), label="absolute correlation", shrink=0.8)
    return to_png(figure)
