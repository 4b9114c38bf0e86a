"""Which members of the family are tested with every change, and which with `make test-slow`."""

from collections.abc import Iterable
from typing import Any

import pytest

# One of each structure: plain blocks, blocks with normalisation, the chapter's, forks of chains, factorised kernels.
REPRESENTATIVES = ("googlenet", "googlenet_bn", "googlenet_d2l", "bn_inception", "inception_v3")


def quickly(names: Iterable[str], representatives: Iterable[str] = REPRESENTATIVES) -> list[Any]:
    """Return the names as parameters of a test, those that are not representatives marked slow."""
    chosen = set(representatives)
    return [name if name in chosen else pytest.param(name, marks=pytest.mark.slow) for name in names]
