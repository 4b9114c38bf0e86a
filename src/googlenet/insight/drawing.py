"""How the figures become pictures: what all of them share, and maps over pictures.

Every picture is 800 pixels wide, has its axes and units named, and keeps to colours that colour-blind readers tell
apart: viridis and cividis for maps, Okabe and Ito's palette for lines.
"""

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from .cam import enlarged, peaks

# Okabe and Ito's, the darkest first; black last.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKS = ("o-", "s--", "^-.", "D:", "v-", "P--", "X-.")

WIDTH, DOTS = 8.0, 100  # inches, and dots an inch: 800 pixels


def sheet(height: float) -> Figure:
    """An empty picture, `height` inches high."""
    return Figure(figsize=(WIDTH, height), dpi=DOTS, layout="constrained")


def png(figure: Figure) -> bytes:
    """The picture's file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def readable_on(colour: str) -> str:
    """Black or white, whichever is told better from a colour "#rrggbb" (contrast as WCAG 2 defines it)."""
    red, green, blue = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in (red, green, blue)]
    light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "white" if 1.05 / (light + 0.05) > (light + 0.05) / 0.05 else "black"


def grid(axis: Any) -> None:
    """The look of every chart."""
    axis.grid(color="#e3e7ec", lw=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


class Seen(NamedTuple):
    """A picture as a network sees it: its `name`, and the square, `values` in 0..255, float (channels, h, w)."""

    name: str
    values: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.values.shape[-2], self.values.shape[-1]


def show(axis: Any, seen: Seen, faint: bool = False) -> None:
    """Draw the picture, in pixels from its top left corner; `faint` in greys, as the ground for a map."""
    height, width = seen.size
    values = seen.values.round().to(torch.uint8).permute(1, 2, 0).numpy()
    if values.shape[-1] == 1 or faint:
        values = values.mean(-1)
    axis.imshow(values, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0), interpolation="nearest")


def overlay(axis: Any, seen: Seen, values: Tensor, low: float, high: float) -> Any:
    """Lay a map (h, w), enlarged, over the picture, and mark its peak where it has one; what a colour bar needs."""
    height, width = seen.size
    show(axis, seen, faint=True)
    extent = (0, width, height, 0)
    over = enlarged(values[None, None], height, width)[0, 0].numpy()
    drawn = axis.imshow(over, cmap="viridis", vmin=low, vmax=high, alpha=0.65, extent=extent)
    if np.ptp(over) > 0:
        down, across = peaks(values[None, None], height, width)[0, 0].tolist()
        axis.plot(across + 0.5, down + 0.5, "+", color="white", ms=12, mew=2.5)
        axis.plot(across + 0.5, down + 0.5, "+", color="#D55E00", ms=10, mew=1.2)
    return drawn


def limits(maps: Sequence[Tensor]) -> tuple[float, float]:
    """The lowest and the highest value of several maps; apart, so that a colour bar can be drawn."""
    low, high = min(float(m.min()) for m in maps), max(float(m.max()) for m in maps)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


CAM_NOTE = """\
Above: the map, a square
for each position. Below:
over the picture, smoothed;
+ marks the peak.

The mean of a map plus
the class's bias is its
logit."""

STAGES_NOTE = """\
Each map on its own scale,
in logits: Grad-CAM is 0 or
more, activation x gradient
of either sign.
+ marks the peak."""


def _note(axis: Any, text: str) -> None:
    axis.set_axis_off()
    axis.text(0, 0.95, text, va="top", fontsize=8, transform=axis.transAxes)


def draw_cam(seen: Seen, titles: Sequence[str], maps: Tensor) -> bytes:
    """The picture; of each class the map (k, h, w) at its own size, and over the picture: all on one scale."""
    low, high = limits([maps])
    figure = sheet(4.6)
    axes = figure.subplots(2, len(maps) + 1, squeeze=False)
    show(axes[0, 0], seen)
    axes[0, 0].set(title=seen.name, xlabel="pixels", ylabel="pixels")
    _note(axes[1, 0], CAM_NOTE)
    for column, (title, values) in enumerate(zip(titles, maps, strict=True), start=1):
        top, bottom = axes[0, column], axes[1, column]
        top.imshow(values.numpy(), cmap="viridis", vmin=low, vmax=high)
        top.set_title(title, fontsize=9)
        top.set(xlabel="map position", xticks=_ticks(values.shape[-1]), yticks=_ticks(values.shape[-2]))
        overlay(bottom, seen, values, low, high)
        bottom.set(xlabel="pixels")
        if column == 1:
            top.set_ylabel("map position")
            bottom.set_ylabel("pixels")
    figure.colorbar(
        axes[0, 1].images[0], ax=axes[:, 1:], label="what a position adds to the class (logit)", shrink=0.9
    )
    return png(figure)


def draw_stages(
    seen: Seen, title: str, stages: Sequence[str], cams: Sequence[Tensor], scores: Sequence[Tensor]
) -> bytes:
    """Grad-CAM and score map of each stage, over the picture; each on a scale of its own, shallow to deep."""
    figure = sheet(4.2)
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(2, len(stages) + 1, squeeze=False)
    show(axes[0, 0], seen)
    axes[0, 0].set(title=seen.name, xlabel="pixels", ylabel="pixels")
    _note(axes[1, 0], STAGES_NOTE)
    for column, (stage, cam, score) in enumerate(zip(stages, cams, scores, strict=True), start=1):
        for axis, values in ((axes[0, column], cam), (axes[1, column], score)):
            ends = limits([values])
            drawn = overlay(axis, seen, values, *ends)
            bar = figure.colorbar(drawn, ax=axis, orientation="horizontal", shrink=0.9, pad=0.02)
            bar.set_ticks(ends, labels=[f"{end:.2g}" for end in ends], fontsize=7)
            axis.set(xticks=[0, seen.size[1]], yticks=[0, seen.size[0]])
            axis.tick_params(labelsize=7)
        axes[0, column].set_title(f"{stage}\n{cam.shape[-2]}x{cam.shape[-1]} positions", fontsize=8)
    axes[0, 1].set_ylabel("Grad-CAM\n(pixels)", fontsize=8)
    axes[1, 1].set_ylabel("activation x gradient\n(pixels)", fontsize=8)
    return png(figure)


def draw_scales(seen: Seen, sizes: Sequence[int], names: Sequence[str], rows: Tensor, usual: int) -> bytes:
    """Each class's probability, `rows` (sizes, classes), over the size at which the picture was shown."""
    figure = sheet(3.6)
    left, right = figure.subplots(1, 2, width_ratios=(1, 3))
    show(left, seen)
    left.set(title=seen.name, xlabel="pixels", ylabel="pixels")
    for number, name in enumerate(names):
        right.plot(
            sizes, rows[:, number].tolist(), MARKS[number % 7], color=PALETTE[number % 7], ms=4, lw=1.3, label=name
        )
    right.axvline(usual, color="#6b7280", lw=1, ls=":", label="the network's own size")
    right.set(xlabel="size of the picture (pixels)", ylabel="probability", ylim=(-0.03, 1.03))
    grid(right)
    right.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return png(figure)


def _ticks(count: int) -> list[int]:
    return list(range(0, count, max(1, count // 4)))
