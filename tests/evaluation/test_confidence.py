"""Wilson's interval and McNemar's test against SciPy."""

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from googlenet.evaluation.confidence import mcnemar, wilson_interval


@pytest.mark.parametrize(("count", "num_correct"), [(100, 93), (10_000, 8893), (5, 5), (7, 0), (1, 1), (300, 150)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_interval_is_that_of_scipy(count: int, num_correct: int, level: float) -> None:
    expected = scipy.stats.binomtest(num_correct, count).proportion_ci(level, method="wilson")
    interval = wilson_interval(torch.arange(count) < num_correct, level)
    assert tuple(interval) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert interval.low >= 0.0
    assert interval.high <= 1.0


def test_interval_needs_images() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        wilson_interval(torch.zeros(0, dtype=torch.bool))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=300))
def test_mcnemar_is_the_binomial_test(pairs: list[tuple[bool, bool]]) -> None:
    first, second = torch.tensor(pairs).unbind(1)
    result = mcnemar(first, second)
    only_first = sum(a and not b for a, b in pairs)
    only_second = sum(b and not a for a, b in pairs)
    assert (result.only_first, result.only_second) == (only_first, only_second)
    if only_first + only_second:
        expected = scipy.stats.binomtest(only_first, only_first + only_second, 0.5).pvalue
        assert abs(result.p - expected) <= 1e-6
    else:
        assert result.p == 1.0
