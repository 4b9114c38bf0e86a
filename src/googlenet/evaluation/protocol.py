"""How a trained network is asked about a whole split: at one size, at several, mirrored, or in the crops of ILSVRC14.

And how the answers of several networks become one.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..data.dataset import Split
from ..data.loader import PIXELS_AT_ONCE
from ..data.pictures import read_pixels
from ..data.preprocess import Preprocess
from ..data.stream import Stream
from ..models.ensemble import average_logits
from .crops import Crops, How, answer, scales
from .metrics import Outputs, scores
from .progress import Advance, unseen
from .significance import Interval, bootstrap_interval, right

# Crops of a square picture that are computed at once: two thirds of a scale's (the other third are those squares
# again).
CROPS_AT_ONCE = 12


class Member(NamedTuple):
    """A network in evaluation mode and how its pictures are made."""

    model: nn.Module
    preprocess: Preprocess


def crop_outputs(
    member: Member,
    split: Split,
    base: int,
    crops: Crops,
    how: How = "probability",
    advance: Advance = unseen,
) -> Outputs:
    """Every picture of `split` in `crops` crops of `base` pixels, averaged.

    Pictures on the disk are read whole, with their proportions, one after the other; resident ones are squares
    already, and go in batches. `advance` is told of the crops that are done.
    """
    device = next(member.model.parameters()).device
    found = []
    with torch.inference_mode():
        for pictures in _pictures(split, member.preprocess, base, crops):
            found.append(answer(member.model, pictures.to(device), member.preprocess, base, crops, how).cpu())
            advance(len(pictures) * crops)
    return Outputs(torch.cat(found), split.labels.cpu())


def _pictures(split: Split, preprocess: Preprocess, base: int, crops: Crops) -> Iterator[Tensor]:
    images = split.images
    if isinstance(images, Stream):
        least = max(scales(base, crops))
        for row in range(len(split.labels)):
            name = images.places.name(row)
            yield read_pixels(images.places.read(row), preprocess.channels, name, least).values.unsqueeze(0)
        return
    yield from torch.split(images, max(1, PIXELS_AT_ONCE // (CROPS_AT_ONCE * base * base)))


def combine(answers: Sequence[Tensor], how: How = "probability") -> Tensor:
    """Answers (n, classes) of several networks to the same pictures -> one, as logarithms of probabilities, float64.

    ``probability`` is the mean of the probabilities, as in the paper; ``logit`` of the logits; ``max`` each class's
    highest probability, made to sum to 1.
    """
    if how == "probability":
        return average_logits(answers)
    each = torch.stack([answer.double() for answer in answers])
    return (each.mean(0) if how == "logit" else each.log_softmax(-1).amax(0)).log_softmax(-1)


class Cell(NamedTuple):
    """One cell of the paper's table: figures of so many `models` with so many `crops`; `interval` of top-1."""

    models: int
    crops: int
    top1: float
    top5: float
    loss: float
    interval: Interval


def cell(models: int, crops: int, outputs: Outputs) -> Cell:
    """The figures of one way of asking."""
    figures = scores(outputs)
    return Cell(models, crops, figures["top1"], figures["top5"], figures["loss"], bootstrap_interval(right(outputs)))


def together(answers: Sequence[Outputs], how: How = "probability") -> Outputs:
    """What several networks say of the same pictures, as one answer; a single one's as it is."""
    if len(answers) == 1:
        return answers[0]
    return Outputs(combine([one.logits for one in answers], how), answers[0].labels)


class Asked(NamedTuple):
    """A `cell` of the table, and the `outputs` that it counts."""

    cell: Cell
    outputs: Outputs


def table(answers: Mapping[int, Sequence[Outputs]], how: How = "probability") -> list[Asked]:
    """For each number of crops the first network alone, then all of them where there are several.

    `answers` has, by the number of crops, every network's answers to the same pictures.
    """
    return [
        Asked(cell(count, crops, found), found)
        for crops, each in sorted(answers.items())
        for count in sorted({1, len(each)})
        for found in [together(each[:count], how)]
    ]


def layout(cells: Sequence[Cell]) -> list[str]:
    """Lines for a person, as the paper prints them: models down, crops across; top-1 error, its interval, top-5."""
    crops = sorted({c.crops for c in cells})
    lines = [f"{'models':>7}" + "".join(f"{f'{count} crop' + ('s' if count > 1 else ''):>34}" for count in crops)]
    for models in sorted({c.models for c in cells}):
        line = f"{models:>7}"
        for count in crops:
            (c,) = (c for c in cells if (c.models, c.crops) == (models, count))
            text = f"{1 - c.top1:.4f} [{1 - c.interval.high:.4f}, {1 - c.interval.low:.4f}]  {1 - c.top5:.4f}"
            line += f"{text:>34}"
        lines.append(line)
    lines.append("top-1 error with its 95 % interval, top-5 error")
    return lines
