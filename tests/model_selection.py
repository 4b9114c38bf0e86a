"""Select the networks that the fast suite tests; `make test-slow` tests all."""

from collections.abc import Iterable
from typing import Any

import pytest

# One of each structure: plain blocks, batch normalization, the chapter's, branches of chains, factorized kernels.
REPRESENTATIVES = ("googlenet", "googlenet_bn", "googlenet_d2l", "bn_inception", "inception_v3")


def mark_slow_models(names: Iterable[str], representatives: Iterable[str] = REPRESENTATIVES) -> list[Any]:
    """Return the names as parameters of a test, those that are not representatives marked slow."""
    chosen = set(representatives)
    return [name if name in chosen else pytest.param(name, marks=pytest.mark.slow) for name in names]
