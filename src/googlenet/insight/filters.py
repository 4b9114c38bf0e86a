"""The first layer's filters, and how near each is to a Gabor function.

A Gabor function is a wave under a Gaussian window; cells of the visual cortex answer much like it (Daugman, 1985),
and the first layers of networks trained on photographs become alike (Krizhevsky et al., 2012). Whether one's own
network has any is measured here: by least squares, and against the same filters with their pixels in random order.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import FailedError
from ..models.network import Network

Array = NDArray[np.float64]

# Starts of the search: every combination is tried in closed form, the best few are refined.
ANGLES = np.arange(8) * np.pi / 8
FREQUENCIES = (0.01, 0.08, 0.15, 0.25, 0.4)
WINDOWS = (0.15, 0.3)  # of the filter's side
REFINED = 2

# At least so many numbers must a filter have for eight parameters to say something of it.
ENOUGH = 16


class Gabor(NamedTuple):
    """amplitude * exp(-u^2 / (2 sigma_u^2) - v^2 / (2 sigma_v^2)) * cos(2 pi frequency u + phase).

    (u, v) are (x, y), in pixels from the centre (`x`, `y`), turned by `angle` (radians), so that the wave runs along
    u; (0, 0) is the filter's middle. `frequency` is in waves a pixel, 0.5 at most.
    """

    amplitude: float
    x: float
    y: float
    sigma_u: float
    sigma_v: float
    angle: float
    frequency: float
    phase: float


class Fit(NamedTuple):
    """The closest Gabor function to a filter, the `colour` (in channels,) of length 1 that it is times, and the
    `residual`: the share of the filter's sum of squares that is left, in 0..1."""

    gabor: Gabor
    colour: tuple[float, ...]
    residual: float


def first_filters(model: Network) -> Tensor:
    """The first convolution's weights (filters, in channels, height, width)."""
    return next(m for m in model.modules() if isinstance(m, nn.Conv2d)).weight.detach().cpu()


def shuffled(filters: Tensor, seed: int = 0) -> Tensor:
    """Each filter with its pixels in an order of its own: the same numbers, without a pattern."""
    generator = torch.Generator().manual_seed(seed)
    count, channels, height, width = filters.shape
    order = torch.rand(count, 1, height * width, generator=generator).argsort(-1)
    return filters.flatten(2).gather(2, order.expand(-1, channels, -1)).view_as(filters)


def values(gabor: Gabor, height: int, width: int) -> Array:
    """The function on a filter's pixels, (height, width)."""
    return _wave(np.array(gabor), *_places(height, width)).reshape(height, width)


def fit_filters(filters: Tensor) -> list[Fit]:
    """The closest Gabor function to each filter (filters, in channels, height, width).

    A filter of several channels is first reduced to the pattern, the same in every channel up to a factor, that has
    most of it (its first singular vectors); what that leaves counts as residual too. FailedError without SciPy.
    """
    try:
        from scipy.optimize import least_squares
    except ImportError:
        raise FailedError("fitting Gabor functions needs SciPy: pip install 'googlenet[insight]'") from None
    height, width = filters.shape[-2:]
    places = _places(height, width)
    starts, waves = _starts(height, width)
    return [_fit(one.flatten(1).double().numpy(), places, starts, waves, least_squares) for one in filters]


def _places(height: int, width: int) -> tuple[Array, Array]:
    y, x = np.mgrid[:height, :width].reshape(2, -1)
    return x - (width - 1) / 2, y - (height - 1) / 2


def _wave(p: Array, x: Array, y: Array) -> Array:
    """The function of parameters `p`, in `Gabor`'s order, at places (x, y)."""
    cos, sin = np.cos(p[5]), np.sin(p[5])
    u, v = (x - p[1]) * cos + (y - p[2]) * sin, (y - p[2]) * cos - (x - p[1]) * sin
    window = np.exp(-(u**2) / (2 * p[3] ** 2) - v**2 / (2 * p[4] ** 2))
    found: Array = p[0] * window * np.cos(2 * np.pi * p[6] * u + p[7])
    return found


def _bounded(free: Array, half: float) -> Array:
    """Any eight numbers -> parameters of a function that a filter can have.

    Its centre lies on the filter, which reaches `half` pixels from its middle; its window's sigmas are between 0.3
    and 0.3 + 2 `half` pixels; its frequency is 0.5 at most.
    """
    p = free.copy()
    p[1:3] = half * np.tanh(free[1:3])
    p[3:5] = 0.3 + half * (1 + np.tanh(free[3:5]))
    p[6] = 0.25 * (1 - np.cos(free[6]))
    return p


def _freed(p: Array, half: float) -> Array:
    """The inverse of `_bounded`."""
    free = p.copy()
    free[1:3] = np.arctanh(p[1:3] / half)
    free[3:5] = np.arctanh((p[3:5] - 0.3) / half - 1)
    free[6] = np.arccos(1 - 4 * p[6])
    return free


def _starts(height: int, width: int) -> tuple[list[tuple[float, float, float]], Array]:
    """(window, angle, frequency) of every start, and its cosine and sine waves (starts, pixels, 2)."""
    x, y = _places(height, width)
    starts = [
        (share * max(height, width), angle, frequency)
        for share in WINDOWS
        for angle in ANGLES
        for frequency in FREQUENCIES
    ]
    pairs = [[_wave(np.array([1, 0, 0, s, s, a, f, phase]), x, y) for phase in (0, -np.pi / 2)] for s, a, f in starts]
    return starts, np.stack(pairs).transpose(0, 2, 1)


def _fit(
    one: Array, places: tuple[Array, Array], starts: list[tuple[float, float, float]], waves: Array, search: Any
) -> Fit:
    power = float((one**2).sum())
    if power == 0.0:
        return Fit(Gabor(0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0), (0.0,) * len(one), 0.0)
    left, sizes, right = np.linalg.svd(one / np.sqrt(power), full_matrices=False)
    pattern = right[0] * sizes[0]
    half = max(float(np.abs(axis).max()) for axis in places) + 0.5

    def misses(free: Array) -> Array:
        missed: Array = _wave(_bounded(free, half), *places) - pattern
        return missed

    # Of every start the best cosine and sine parts, in closed form; what they catch of the pattern ranks the starts.
    parts = np.linalg.pinv(waves) @ pattern
    caught = ((waves @ parts[..., None])[..., 0] * pattern).sum(1)
    found = []
    for number in np.argsort(-caught)[:REFINED]:
        (window, angle, frequency), (cosine, sine) = starts[number], parts[number]
        amplitude, phase = np.hypot(cosine, sine), np.arctan2(-sine, cosine)
        start = _freed(np.array([amplitude, 0, 0, window, window, angle, frequency, phase]), half)
        found.append(search(misses, start, method="lm", ftol=1e-4, xtol=1e-4, max_nfev=250))
    best = min(found, key=lambda each: each.cost)
    amplitude, *others = _bounded(best.x, half).tolist()
    gabor = Gabor(amplitude * power**0.5, *others)
    return Fit(gabor, tuple(left[:, 0].tolist()), float(min(1.0, 1.0 - sizes[0] ** 2 + 2 * best.cost)))
