"""How far an exported file's answers are from the trained network's, on real pictures."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.preprocess import Preprocess
from .engine import Engine

# What is allowed in float32: engines sum in another order.
BOUND = 1e-4
BATCHES = (1, 7)


class ParityRow(NamedTuple):
    """The largest difference of an answer at one height and width (pixels) and batch."""

    engine: str
    height: int
    width: int
    batch: int
    max_error: float


def shapes(size: int, least: int, any_size: bool) -> list[tuple[int, int]]:
    """Heights and widths to compare at: the usual size, the least, and a rectangle of odd sides."""
    if not any_size:
        return [(size, size)]
    odd = max(size, least) | 1
    return list(dict.fromkeys([(size, size), (least, least), (odd, odd + 10)]))


def compare(
    model: nn.Module,
    preprocess: Preprocess,
    engines: Mapping[str, Engine],
    pictures: Tensor,
    sides: Sequence[tuple[int, int]],
    softmax: bool = False,
) -> list[ParityRow]:
    """Each engine against ``model(preprocess.normalise(...))``, by size and batch.

    `pictures` are real ones, uint8 (n, channels, h, w), n of 1 or more; they are resized to the `sides` and repeated
    to fill a batch. Logits are compared, or, where `softmax` is inside the files, probabilities. Where an engine is
    out of bounds the network is asked again in float64: a deep one's float32 rounding, in PyTorch, is not the
    engine's error.
    """
    rows = []
    exact = None
    for height, width in sides:
        resized = F.interpolate(pictures.float(), (height, width), mode="bilinear", antialias=True)
        for batch in BATCHES:
            pixels = whole_numbers(resized)[torch.arange(batch) % len(resized)]
            answers = {name: engine(pixels) for name, engine in engines.items()}
            answers = {name: found.exp() if softmax else found for name, found in answers.items()}
            expected = _expected(model, preprocess, pixels.float(), softmax)
            if any(difference(found, expected) > BOUND for found in answers.values()):
                exact = exact or copy.deepcopy(model).double()
                expected = _expected(exact, preprocess, pixels.double(), softmax)
            for name, found in answers.items():
                rows.append(ParityRow(name, height, width, batch, difference(found, expected)))
    return rows


def _expected(model: nn.Module, preprocess: Preprocess, pixels: Tensor, softmax: bool) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(preprocess.normalise(pixels))
    return logits.softmax(1) if softmax else logits


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest, infinite where an answer is not a number.

    Where the largest answer is above 10 it is divided by a tenth of that: float32 holds seven digits, whatever a
    network does with pictures of sizes that it has not seen.
    """
    gap = (found - expected).abs()
    return gap.max().item() / max(1.0, expected.abs().max().item() / 10) if gap.isfinite().all() else math.inf


def whole_numbers(pixels: Tensor) -> Tensor:
    """Float pixels 0..255 -> uint8, rounded."""
    return pixels.round().clamp(0, 255).to(torch.uint8)


def largest(rows: Sequence[ParityRow]) -> dict[str, float]:
    """The largest difference by engine."""
    found: dict[str, float] = {}
    for row in rows:
        found[row.engine] = max(found.get(row.engine, 0.0), row.max_error)
    return found
