"""Evaluate one network at several image sizes ("Going Deeper with Convolutions", section 7, averages over scales)."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ..data.dataset import Split
from ..data.loader import pixel_batches
from ..evaluation.metrics import Predictions, classification_metrics
from ..evaluation.plots import new_figure, style_axes, to_png
from ..evaluation.predictor import Predictor, predict_split, predictor_device
from ..evaluation.progress import ProgressCallback, no_progress
from ..models.ensemble import Ensemble, get_networks
from ..models.network import Network
from ..models.summary import summary
from ..palette import BLUE, VERMILLION
from .tta import TTA, TTAPredictor


class SizeResult(NamedTuple):
    """The predictions at one `size` (pixels), and the `seconds` that they took, including resizing."""

    size: int
    predictions: Predictions
    seconds: float


class SizeRow(NamedTuple):
    """A row of the table: rates are fractions, `loss` is in nats, `macs` are the multiply-adds per image."""

    size: int
    top1: float
    top5: float
    loss: float
    macs: int
    images_per_second: float


def check_sizes(min_size: int, sizes: Sequence[int], shift: int = 0) -> None:
    """Raise ValueError for sizes below `min_size`, for a repeated size, and for a `shift` outside of the image."""
    if len(set(sizes)) < len(sizes):
        raise ValueError(f"duplicate size in {', '.join(map(str, sizes))}")
    if min(sizes) < min_size:
        raise ValueError(f"size {min(sizes)} is too small: this network needs at least {min_size} pixels")
    if not 0 <= shift < min(sizes):
        raise ValueError(f"the shift must be at least 0 and less than the size of {min(sizes)} pixels, not {shift}")


def evaluate_at_sizes(
    predictor: Predictor,
    split: Split,
    sizes: Sequence[int],
    tta: TTA,
    before_size: Callable[[int], None] | None = None,
    progress: ProgressCallback = no_progress,
) -> Iterator[SizeResult]:
    """Predict every image of `split` at each size, averaged over the views of `tta`.

    `before_size` is called with each size before it is used, and may change the network. `progress` counts pixels.
    """
    augmented = TTAPredictor(predictor, tta) if tta.num_views > 1 else predictor
    for size in sizes:
        if before_size:
            before_size(size)
        # The first batch of a size is slower (allocations, choice of algorithms): run it before the clock starts.
        device = predictor_device(predictor)
        augmented.predict(next(pixel_batches(split, predictor.preprocess, size, device)).images)
        started = time.perf_counter()

        def count_pixels(num_images: float, num_pixels: int = size**2) -> None:
            progress(num_images * num_pixels)

        predictions = predict_split(augmented, split, size, count_pixels)
        yield SizeResult(size, predictions, time.perf_counter() - started)


def size_row(model: Network | Ensemble, result: SizeResult, tta: TTA) -> SizeRow:
    """Return the row of one size."""
    macs = tta.num_views * sum(summary(network, result.size).inference_macs for network in get_networks(model))
    metrics = classification_metrics(result.predictions)
    rate = metrics["images"] / result.seconds
    return SizeRow(result.size, metrics["top1"], metrics["top5"], metrics["loss"], macs, rate)


def best_row(rows: Sequence[SizeRow]) -> SizeRow:
    """Return the row with the best top-1; of ties the smallest loss, then the fewest multiply-adds."""
    return min(rows, key=lambda row: (-row.top1, row.loss, row.macs))


def format_sizes(rows: Sequence[SizeRow], average: dict[str, float]) -> list[str]:
    """Format a table with a row per size and the metrics of the `average` below."""
    macs, seconds = sum(row.macs for row in rows), sum(1 / row.images_per_second for row in rows)
    last = SizeRow(0, average["top1"], average["top5"], average["loss"], macs, 1 / seconds)
    lines = [f"{'size':>7}{'top-1':>9}{'top-5':>9}{'loss':>9}{'multiply-adds':>17}{'images/s':>11}"]
    for label, row in [*((str(row.size), row) for row in rows), ("average", last)]:
        rates = f"{row.top1:>9.4f}{row.top5:>9.4f}{row.loss:>9.4f}"
        lines.append(f"{label:>7}{rates}{row.macs:>17,}{row.images_per_second:>11.0f}")
    best = best_row(rows)
    return [*lines, f"best single size: {best.size} px, top-1 {best.top1:.4f}"]


def plot_sizes(rows: Sequence[SizeRow], average: dict[str, float], title: str) -> bytes:
    """Draw top-1, images per second and multiply-adds by size (PNG)."""
    rows = sorted(rows)
    figure = new_figure(11, 3.4)
    figure.suptitle(title, fontsize=10)
    accuracy, speed, macs = axes = figure.subplots(1, 3)
    for axis, label, values in (
        (accuracy, "top-1 accuracy", [row.top1 for row in rows]),
        (speed, "images per second", [row.images_per_second for row in rows]),
        (macs, "million multiply-adds per image", [row.macs / 1e6 for row in rows]),
    ):
        axis.plot([row.size for row in rows], values, "o-", color=BLUE, lw=1.2, ms=4, label="single size")
        axis.set(xlabel="image size (pixels)", ylabel=label)
    accuracy.axhline(average["top1"], color=VERMILLION, lw=1.2, ls="--", label="average over the sizes")
    accuracy.legend(frameon=False, fontsize=8)
    style_axes(*axes)
    for axis in (speed, macs):
        axis.set_ylim(bottom=0)
    return to_png(figure)
