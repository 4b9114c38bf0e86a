"""Whether a network's probabilities can be taken at their word, and one number that mends them.

"On Calibration of Modern Neural Networks" (Guo et al., 2017).
"""

import io
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from .metrics import Outputs, mean_loss

BINS = 15


class Bin(NamedTuple):
    """The answers whose confidence (the best class's probability) is in (`low`, `high`], the first bin with its low
    end.

    `confidence` and `accuracy` are means over them, 0 in an empty bin.
    """

    low: float
    high: float
    answers: int
    confidence: float
    accuracy: float


def reliability(outputs: Outputs, bins: int = BINS) -> list[Bin]:
    """Confidence against accuracy, in bins of equal width."""
    confidence, predicted = outputs.logits.double().softmax(dim=1).max(dim=1)
    right = (predicted == outputs.labels).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    where = (torch.bucketize(confidence, edges) - 1).clamp(0, bins - 1)
    counts = torch.bincount(where, minlength=bins)

    def means(values: Tensor) -> list[float]:
        found: list[float] = (torch.bincount(where, values, bins) / counts.clamp_min(1)).tolist()
        return found

    low, high = edges[:-1].tolist(), edges[1:].tolist()
    return [Bin(*row) for row in zip(low, high, counts.tolist(), means(confidence), means(right), strict=True)]


def expected_calibration_error(outputs: Outputs, bins: int = BINS) -> float:
    """The mean distance of confidence from accuracy over the bins, each counted by its answers; in 0..1."""
    found = reliability(outputs, bins)
    return sum(b.answers * abs(b.confidence - b.accuracy) for b in found) / len(outputs.labels)


def with_temperature(outputs: Outputs, temperature: float) -> Outputs:
    """Logits divided by `temperature`: above 1 less sure, below 1 surer; the order of the classes stays."""
    return Outputs(outputs.logits / temperature, outputs.labels)


def fit_temperature(outputs: Outputs) -> float:
    """The temperature in 0.05..20 with the least cross-entropy: fit it on validation answers, use it on others.

    The loss is convex in 1 / temperature; its derivative's zero is found by halving.
    """
    logits, labels = outputs.logits.double(), outputs.labels
    logits = logits - logits.amax(dim=1, keepdim=True)
    truth = logits.gather(1, labels.unsqueeze(1)).mean()

    def slope(inverse: float) -> float:
        expected = ((logits * inverse).softmax(dim=1) * logits).nan_to_num(0.0).sum(dim=1).mean()
        return (expected - truth).item()

    low, high = 1 / 20, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 2 / (low + high)


class Calibration(NamedTuple):
    """A `temperature`, and calibration error, loss (nats) and `reliability` of other answers without and with it."""

    temperature: float
    ece: float
    ece_after: float
    loss: float
    loss_after: float
    bins: list[Bin]
    bins_after: list[Bin]


def calibrate(validation: Outputs, outputs: Outputs) -> Calibration:
    """Fit the temperature on the answers to `validation` and apply it to `outputs`, which had no part in it."""
    temperature = fit_temperature(validation)
    after = with_temperature(outputs, temperature)
    return Calibration(
        temperature,
        expected_calibration_error(outputs),
        expected_calibration_error(after),
        mean_loss(outputs),
        mean_loss(after),
        reliability(outputs),
        reliability(after),
    )


def plot(found: Calibration, title: str) -> bytes:
    """A PNG picture, the reliability diagram: accuracy over confidence before and after, and how many answers."""
    figure = Figure(figsize=(9.5, 4.6), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(2, 2, sharex=True, height_ratios=[4, 1])
    columns = (
        (f"as trained: ECE {found.ece:.4f}", found.bins),
        (f"temperature {found.temperature:.3f}: ECE {found.ece_after:.4f}", found.bins_after),
    )
    most = max(b.answers for _, bins in columns for b in bins)
    for (diagram, counts), (name, bins) in zip(axes.T, columns, strict=True):
        width = bins[0].high - bins[0].low
        used = [b for b in bins if b.answers]
        middles = [(b.low + b.high) / 2 for b in used]
        diagram.bar(middles, [b.accuracy for b in used], width * 0.92, color="#0072B2", label="accuracy")
        diagram.plot([b.confidence for b in used], [b.accuracy for b in used], "o", color="#1f2933", ms=3.5,
                     label="mean confidence")  # fmt: skip
        diagram.plot([0, 1], [0, 1], "--", color="#D55E00", lw=1.2, label="calibrated")
        diagram.set(title=name, xlim=(0, 1), ylim=(0, 1), ylabel="share of right answers")
        diagram.title.set_fontsize(10)
        counts.bar(middles, [b.answers for b in used], width * 0.92, color="#6b7280")
        counts.set(xlabel="confidence: probability of the best class", ylabel="answers", ylim=(0, most * 1.05))
        for axis in (diagram, counts):
            axis.grid(color="#e3e7ec", lw=0.6)
            axis.set_axisbelow(True)
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False, fontsize=8, loc="upper left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
