"""Bounds on floating-point differences that follow from rounding instead of from one processor's results.

Two float32 evaluations of the same function differ in the order of their sums and in fused multiply-adds. How far
they differ depends on the processor and on its libraries, so a fixed bound holds on some machines only. The bound
here is measured on the machine that runs the test: the error of the code under test against float64 may be `FACTOR`
times as large as that of PyTorch's own float32 evaluation, or `FLOOR` times float32's spacing at the largest value.
"""

import torch
from torch import Tensor

EPSILON = torch.finfo(torch.float32).eps
# Both errors are maxima of a few hundred draws of one distribution, so their ratio is rarely above 3. A wrong formula
# gives errors near the values themselves, 1e4 to 1e6 times as large as rounding.
FACTOR = 16
# A sum of n products has an error of about sqrt(n) spacings (n <= 4608 in these networks: 68), and PyTorch's own
# error may happen to be zero. 2.4e-5 of the largest value.
FLOOR = 200


def rounding_bound(reference: Tensor, exact: Tensor) -> float:
    """Return the largest error that rounding explains.

    Args:
        reference: PyTorch's own result in float32.
        exact: the same in float64.
    """
    exact = exact.detach().double()
    error = float((reference.detach().double() - exact).abs().max())
    return max(FACTOR * error, FLOOR * EPSILON * float(exact.abs().max()))


def assert_rounding(result: Tensor, reference: Tensor, exact: Tensor, what: str = "") -> None:
    """Check that `result` differs from `exact` by no more than rounding explains."""
    assert result.shape == exact.shape, what
    error = float((result.detach().double() - exact.detach().double()).abs().max())
    bound = rounding_bound(reference, exact)
    assert error <= bound, f"{what}: error {error:.3g}, explained by rounding: {bound:.3g}"
