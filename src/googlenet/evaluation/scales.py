"""One network at several picture sizes: the figures at each, and the answers averaged over all of them.

An average is of probabilities (softmax), as in "Going Deeper with Convolutions", section 7. It is kept as logarithms,
so that it can stand wherever logits do: softmax gives the averaged probabilities back.
"""

import io
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..data.dataset import Split
from ..data.loader import evaluation_batches
from ..data.preprocess import Preprocess
from ..models.ensemble import Ensemble, average_logits, networks_of
from ..models.network import Network
from ..models.summary import summarise
from .metrics import Outputs, collect, scores
from .progress import Advance, counted, unseen


class AtSize(NamedTuple):
    """The answers at one `size` (pixels), and the `seconds` that they took, normalisation and resizing included."""

    size: int
    outputs: Outputs
    seconds: float


class SizeRow(NamedTuple):
    """One line of the table: rates are fractions, `loss` is in nats, `macs` multiply-adds of one picture's answer."""

    size: int
    top1: float
    top5: float
    loss: float
    macs: int
    images_per_second: float


def average(outputs: Sequence[Outputs]) -> Outputs:
    """The mean probabilities of several answers to the same pictures."""
    return Outputs(average_logits([each.logits for each in outputs]), outputs[0].labels)


class Views(nn.Module):
    """Answers with the mean over several views of a picture: moved by `shift` pixels, and each with its mirror image.

    Moved are four: up, down, left and right, beside the picture where it is; what comes in at a border are the pixels
    that were there. Mirror images (`flip`) are left to right. `views_of` says how many that makes.
    """

    def __init__(self, model: nn.Module, *, flip: bool = False, shift: int = 0):
        super().__init__()
        self.model, self.flip, self.shift = model, flip, shift

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, h, w) -> logarithms of the mean probabilities (batch, classes)."""
        views = moved(x, self.shift) if self.shift else [x]
        if self.flip:
            views += [view.flip(-1) for view in views]
        return average_logits([self.model(view) for view in views])


def views_of(flip: bool, shift: int) -> int:
    """How many views of a picture `Views` averages."""
    return (5 if shift else 1) * (2 if flip else 1)


def moved(x: Tensor, shift: int) -> list[Tensor]:
    """(batch, channels, h, w) as it is, and moved by `shift` pixels down, up, right and left."""
    height, width = x.shape[-2:]
    wide = F.pad(x, (shift,) * 4, mode="replicate")
    corners = [(shift, shift), (0, shift), (2 * shift, shift), (shift, 0), (shift, 2 * shift)]
    return [wide[..., top : top + height, left : left + width] for top, left in corners]


def check_sizes(model: Network | Ensemble, sizes: Sequence[int], shift: int = 0) -> None:
    """Raise ValueError unless the model takes every one of the sizes, each named once, and `shift` fits in them."""
    if len(set(sizes)) < len(sizes):
        raise ValueError(f"the sizes {', '.join(map(str, sizes))} name one of them twice")
    if min(sizes) < model.min_size:
        raise ValueError(f"size {min(sizes)} is too small: this network needs at least {model.min_size} pixels")
    if not 0 <= shift < min(sizes):
        raise ValueError(f"a shift is from 0 to less than the size: {shift} does not fit into {min(sizes)} pixels")


def answer_at_sizes(
    model: Network | Ensemble,
    split: Split,
    preprocess: Preprocess,
    sizes: Sequence[int],
    *,
    flip: bool = False,
    shift: int = 0,
    fit_to: Callable[[int], None] | None = None,
    advance: Advance = unseen,
) -> Iterator[AtSize]:
    """Every picture of `split` at each of the sizes in turn; with `flip` or `shift`, averaged over its `Views`.

    `fit_to` is called with each size before it is asked about, to change the model for it. `advance` is told of the
    pixels that are done.
    """
    device = next(model.parameters()).device
    asked: nn.Module = Views(model, flip=flip, shift=shift) if flip or shift else model
    for size in sizes:
        if fit_to:
            fit_to(size)
        # The first batch of a size costs extra (buffers, choice of algorithms): run once before the clock starts.
        collect(asked, [next(evaluation_batches(split, preprocess, size))], device)
        started = time.perf_counter()
        batches = counted(evaluation_batches(split, preprocess, size), advance, size**2)
        outputs = collect(asked, batches, device)
        yield AtSize(size, outputs, time.perf_counter() - started)


def size_row(model: Network | Ensemble, answer: AtSize, *, flip: bool = False, shift: int = 0) -> SizeRow:
    """The table's line of one size; auxiliary heads, which answer nothing, are not counted."""
    macs = sum(
        counted.macs - sum(row.macs for row in counted.rows if row.name.startswith("aux_"))
        for counted in (summarise(network, answer.size) for network in networks_of(model))
    )
    figures = scores(answer.outputs)
    return SizeRow(
        answer.size,
        figures["top1"],
        figures["top5"],
        figures["loss"],
        macs * views_of(flip, shift),
        len(answer.outputs.labels) / answer.seconds,
    )


def best_row(rows: Sequence[SizeRow]) -> SizeRow:
    """The size with the best top-1; among equals the smaller loss, then the fewer multiply-adds."""
    return min(rows, key=lambda row: (-row.top1, row.loss, row.macs))


def table(rows: Sequence[SizeRow], mean: dict[str, float]) -> list[str]:
    """Lines for a person: one per size, and the average (`scores` of it) below."""
    lines = [f"{'size':>7}{'top-1':>9}{'top-5':>9}{'loss':>9}{'multiply-adds':>17}{'images/s':>11}"]
    for row in rows:
        lines.append(
            f"{row.size:>7}{row.top1:>9.4f}{row.top5:>9.4f}{row.loss:>9.4f}{row.macs:>17,}"
            f"{row.images_per_second:>11.0f}"
        )
    macs, seconds = sum(row.macs for row in rows), sum(1 / row.images_per_second for row in rows)
    lines.append(
        f"{'average':>7}{mean['top1']:>9.4f}{mean['top5']:>9.4f}{mean['loss']:>9.4f}{macs:>17,}{1 / seconds:>11.0f}"
    )
    best = best_row(rows)
    lines.append(f"best single size: {best.size} px, top-1 {best.top1:.4f}")
    return lines


def plot(rows: Sequence[SizeRow], mean: dict[str, float], title: str) -> bytes:
    """A PNG picture: top-1, images per second and multiply-adds over the size."""
    rows = sorted(rows)
    sizes = [row.size for row in rows]
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    figure.suptitle(title, fontsize=10)
    accuracy, speed, macs = figure.subplots(1, 3)
    accuracy.plot(sizes, [row.top1 for row in rows], "o-", color="#0072B2", lw=1.2, ms=4, label="one size")
    accuracy.axhline(mean["top1"], color="#D55E00", lw=1.2, ls="--", label="average over the sizes")
    accuracy.set(ylabel="top-1 accuracy")
    accuracy.legend(frameon=False, fontsize=8)
    speed.plot(sizes, [row.images_per_second for row in rows], "o-", color="#0072B2", lw=1.2, ms=4)
    speed.set(ylabel="images per second")
    macs.plot(sizes, [row.macs / 1e6 for row in rows], "o-", color="#0072B2", lw=1.2, ms=4)
    macs.set(ylabel="million multiply-adds a picture")
    for axis in (accuracy, speed, macs):
        axis.set(xlabel="picture size (pixels)")
        axis.grid(color="#e3e7ec", lw=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in (speed, macs):
        axis.set_ylim(bottom=0)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
