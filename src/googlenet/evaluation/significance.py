"""How far a figure can be trusted: intervals for a share, and whether two networks differ."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .metrics import Outputs


class Interval(NamedTuple):
    """The ends of a confidence interval of a share, in 0..1."""

    low: float
    high: float


def bootstrap_interval(correct: Tensor, level: float = 0.95, samples: int = 20_000, seed: int = 0) -> Interval:
    """Of the share of right answers: the quantiles of resampled test sets' shares.

    `correct` holds true or false for each picture. Drawing as many pictures with replacement and counting the right
    ones is drawing a binomial number, so that is what is drawn. ValueError without pictures.
    """
    count = len(correct)
    if count == 0:
        raise ValueError("an interval needs one picture at least")
    share = correct.double().mean()
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.binomial(
        torch.full((samples,), float(count), dtype=torch.float64), share.expand(samples), generator=generator
    )
    ends = torch.quantile(
        drawn.double() / count, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    )
    return Interval(*ends.tolist())


class McNemar(NamedTuple):
    """Two networks on the same pictures: those that only the first, or only the second, answers right, and the
    p-value.

    `p` is the probability of a split as uneven or more if both were equally good.
    """

    only_first: int
    only_second: int
    p: float

    def __str__(self) -> str:
        return (
            f"only the first is right on {self.only_first:,}, only the second on {self.only_second:,} "
            f"of the pictures: p = {self.p:.2g} (McNemar)"
        )


def right(outputs: Outputs) -> Tensor:
    """Whether each picture was answered right: bool (n,)."""
    return outputs.logits.argmax(1) == outputs.labels


def mcnemar(first: Tensor, second: Tensor) -> McNemar:
    """The exact two-sided test on the pictures where two networks' answers (true: right) differ.

    McNemar, 1947, by the binomial distribution instead of its normal approximation.
    """
    only_first = int((first & ~second).sum())
    only_second = int((second & ~first).sum())
    count, fewer = only_first + only_second, min(only_first, only_second)
    logs = [
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) - count * math.log(2)
        for k in range(fewer + 1)
    ]
    tail = math.fsum(math.exp(log) for log in logs)
    return McNemar(only_first, only_second, min(1.0, 2 * tail) if count else 1.0)
