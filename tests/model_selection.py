"""Select the networks that the fast suite tests; `make test-slow` tests the others, `make test-release` the largest."""

from collections.abc import Iterable
from typing import Any

import pytest

# One of each structure: plain blocks, batch normalization, the chapter's, branches of chains, factorized kernels.
REPRESENTATIVES = ("googlenet", "googlenet_bn", "googlenet_d2l", "bn_inception", "inception_v3")


# They take half of the time of all networks. Conversion of their weights, with equal outputs, is a slow test.
LARGEST = ("inception_v4", "inception_resnet_v2", "inception_resnet_v2_paper")


def mark_slow_models(
    names: Iterable[str], representatives: Iterable[str] = REPRESENTATIVES, *, release: Iterable[str] = ()
) -> list[Any]:
    """Return the names as parameters of a test: those in `release` marked so, other non-representatives marked slow."""
    marks = dict.fromkeys(representatives, None) | dict.fromkeys(release, pytest.mark.release)
    return [pytest.param(name, marks=mark) if (mark := marks.get(name, pytest.mark.slow)) else name for name in names]
