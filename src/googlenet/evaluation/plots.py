"""Charts of training and evaluation, and the elements that all charts of this package share."""

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.text import Text

from ..palette import BLUE, GRAY, GREEN, LIGHT_GRAY, VERMILLION
from .calibration import Calibration
from .fonts import escape_undrawable, font_families

LABEL_MARK = "\u200b"  # a zero-width space


def new_figure(width: float, height: float, dpi: int = 120) -> Figure:
    """Return an empty figure of `width` times `height` inches."""
    return Figure(figsize=(width, height), dpi=dpi, layout="constrained")


def style_axes(*axes: Any, hide: Sequence[str] = ("top", "right")) -> None:
    """Draw a light grid behind the data and hide some borders."""
    for axis in axes:
        axis.grid(color=LIGHT_GRAY, lw=0.6)
        axis.set_axisbelow(True)
        axis.spines[list(hide)].set_visible(False)


def legend_label(name: str) -> str:
    """Return a name as the label of a line, also if it starts with "_", which Matplotlib leaves out of legends."""
    return LABEL_MARK + name


def _save(figure: Figure, buffer: Any, **options: Any) -> None:
    """Render a figure whose texts are names: without formulas, and with fonts for their characters."""
    texts = figure.findobj(Text)
    for text in texts:
        text.set_text(escape_undrawable(text.get_text().replace(LABEL_MARK, "")))
        text.set_parse_math(False)
    families = font_families(text.get_text() for text in texts)
    for text in texts:
        text.set_fontfamily(families)
    # Ticks are created again when a figure is drawn.
    with rc_context({"text.parse_math": False, "font.family": families}):
        figure.savefig(buffer, **options)


def to_png(figure: Figure) -> bytes:
    """Render a figure as a PNG file."""
    buffer = io.BytesIO()
    _save(figure, buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def to_svg(figure: Figure) -> str:
    """Render a figure as an SVG element."""
    buffer = io.StringIO()
    _save(figure, buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def reliability_diagram(calibration: Calibration, title: str) -> bytes:
    """Draw accuracy by confidence, and the number of images, before and after temperature scaling (PNG)."""
    figure = new_figure(9.5, 4.6)
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(2, 2, sharex=True, height_ratios=[4, 1])
    columns = (
        (f"uncalibrated: ECE {calibration.ece:.4f}", calibration.bins),
        (f"temperature {calibration.temperature:.3f}: ECE {calibration.ece_after:.4f}", calibration.bins_after),
    )
    max_count = max(b.num_images for _, bins in columns for b in bins)
    for (diagram, counts), (name, bins) in zip(axes.T, columns, strict=True):
        width = 0.92 * (bins[0].high - bins[0].low)
        used = [b for b in bins if b.num_images]
        centers, accuracies = [(b.low + b.high) / 2 for b in used], [b.accuracy for b in used]
        diagram.bar(centers, accuracies, width, color=BLUE, label="accuracy")
        diagram.plot([b.confidence for b in used], accuracies, "o", color="#1f2933", ms=3.5, label="mean confidence")
        diagram.plot([0, 1], [0, 1], "--", color=VERMILLION, lw=1.2, label="perfectly calibrated")
        diagram.set(title=name, xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        diagram.title.set_fontsize(10)
        counts.bar(centers, [b.num_images for b in used], width, color=GRAY)
        counts.set(xlabel="confidence: largest probability", ylabel="images", ylim=(0, max_count * 1.05))
    style_axes(*axes.flat)
    axes[0, 0].legend(frameon=False, fontsize=8, loc="upper left")
    return to_png(figure)


class Curve(NamedTuple):
    """The validation metric in `training_curves`: its `key` in metrics.jsonl, its `label`, and the loss's unit."""

    key: str
    label: str
    loss_unit: str


def training_curves(entries: Sequence[dict[str, Any]], curve: Curve) -> str:
    """Draw loss, accuracy, learning rate and image size by epoch from the entries of metrics.jsonl (SVG)."""
    train = [entry for entry in entries if entry["split"] == "train"]
    if not train:
        return "<p>No training step was logged.</p>"
    epochs = [entry["epoch"] for entry in train]
    figure = new_figure(10, 3.4)
    loss, accuracy, settings = figure.subplots(1, 3)
    rows = (loss, "loss", "loss", f"loss{curve.loss_unit}"), (accuracy, "accuracy", curve.key, curve.label)
    for axis, key, name, label in rows:
        axis.plot(epochs, [entry[key] for entry in train], color=BLUE, lw=1.2, label="training")
        for split, color, marker in (("validation", VERMILLION, "o-"), ("test", GREEN, "D")):
            points = [(e["epoch"], e[name]) for e in entries if e["split"] == split and name in e]
            if points:
                axis.plot(*zip(*points, strict=True), marker, color=color, ms=5, lw=1.2, label=split)
        axis.set(xlabel="epoch", ylabel=label)
        axis.legend(frameon=False, fontsize=8)
    settings.plot(epochs, [entry["learning_rate"] for entry in train], color=BLUE, lw=1.2)
    settings.set_xlabel("epoch")
    settings.set_ylabel("learning rate", color=BLUE)
    sizes = settings.twinx()
    sizes.plot(epochs, [entry["size"] for entry in train], color=VERMILLION, lw=1.2, drawstyle="steps-post")
    sizes.set_ylabel("image size (pixels)", color=VERMILLION)
    sizes.set_ylim(0, 1.15 * max(entry["size"] for entry in train))
    style_axes(loss, accuracy, settings, hide=("top",))
    return to_svg(figure)


def draw_search(trials: Sequence[dict[str, Any]], keys: Sequence[str]) -> bytes:
    """Draw a search: the validation metric by trial with the best so far, and by the value of each recipe key (PNG).

    `trials` have `number`, `state`, `value` and `values` by key; those without a value are left out.
    """
    rows = sorted((row for row in trials if row["value"] is not None), key=lambda row: row["number"])
    figure = new_figure(3 * (1 + len(keys)), 3)
    history, *panels = figure.subplots(1, 1 + len(keys), sharey=True, squeeze=False)[0]
    complete = [row for row in rows if row["state"] == "complete"]
    best = [max(row["value"] for row in complete[: index + 1]) for index in range(len(complete))]
    history.step([row["number"] for row in complete], best, where="post", color=VERMILLION, lw=1.2, label="best")
    history.set(xlabel="trial", ylabel="validation metric")
    for axis, key in ((history, None), *zip(panels, keys, strict=True)):
        for state, marker in (("complete", "o"), ("stopped", "x")):
            points = [row for row in rows if row["state"] == state]
            places = [row["number"] if key is None else row["values"][key] for row in points]
            if any(not isinstance(place, int | float) for place in places):
                places = [str(place) for place in places]
            axis.plot(places, [row["value"] for row in points], marker, color=BLUE, ms=5, ls="", label=state)
        numbers = [] if key is None else [row["values"][key] for row in rows]
        if numbers and all(isinstance(number, int | float) and number > 0 for number in numbers):
            axis.set_xscale("log" if max(numbers) > 10 * min(numbers) else "linear")
        if key is not None:
            axis.set_xlabel(key)
    history.legend(frameon=False, fontsize=8)
    style_axes(history, *panels)
    return to_png(figure)
