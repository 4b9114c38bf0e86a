"""Confidence interval of an accuracy, and a significance test of the difference between two models."""

import math
from statistics import NormalDist
from typing import NamedTuple

from torch import Tensor


class ConfidenceInterval(NamedTuple):
    """The bounds of a confidence interval of a proportion, in 0..1."""

    low: float
    high: float


def wilson_interval(correct: Tensor, level: float = 0.95) -> ConfidenceInterval:
    """Return Wilson's score interval of the share of true values in `correct`, bool (n,), n > 0 (Wilson, 1927).

    Unlike the normal approximation it stays in 0..1 and is accurate near both ends.
    """
    if not len(correct):
        raise ValueError("a confidence interval needs at least one image")
    return wilson_score(correct.double().mean().item(), len(correct), level)


def wilson_score(share: float, count: float, level: float = 0.95) -> ConfidenceInterval:
    """Return Wilson's score interval of a `share` in 0..1 of `count` > 0 observations; the count may be a fraction."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    scale = 1 + z**2 / count
    center = (share + z**2 / (2 * count)) / scale
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / scale
    return ConfidenceInterval(max(0.0, center - half), min(1.0, center + half))


class McNemar(NamedTuple):
    """McNemar's test (1947) of two models on the same images.

    `only_first` and `only_second` count images that one alone classifies correctly; `p` is the two-sided p-value.
    """

    only_first: int
    only_second: int
    p: float

    def __str__(self) -> str:
        counts = f"{self.only_first:,} images correct only by the first, {self.only_second:,} only by the second"
        return f"{counts}: p = {self.p:.2g} (McNemar)"


def mcnemar(first: Tensor, second: Tensor) -> McNemar:
    """Compute McNemar's exact (binomial) two-sided test from the correctness of two models, bool (n,) each."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    count, fewer = only_first + only_second, min(only_first, only_second)
    logs = [
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) - count * math.log(2)
        for k in range(fewer + 1)
    ]
    tail = math.fsum(math.exp(log) for log in logs)
    return McNemar(only_first, only_second, min(1.0, 2 * tail) if count else 1.0)
