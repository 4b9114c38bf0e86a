"""The filters of the first layer, and the Gabor function closest to each.

A Gabor function is a wave in a Gaussian window, a model of cells of the visual cortex (Daugman, 1985). The first
layers of networks trained on photographs contain similar filters (Krizhevsky et al., 2012). The similarity is
measured by least squares, and compared with the same filters with shuffled pixels.
"""

import statistics
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import FailedError
from ..models.network import Network
from . import plotting
from .context import AnalysisResult, ExplainContext, OutputImage

Array = NDArray[np.float64]

# Initial values of the fit: every combination is solved in closed form, and the best few are refined.
ANGLES = np.arange(8) * np.pi / 8
FREQUENCIES = (0.01, 0.08, 0.15, 0.25, 0.4)
WINDOWS = (0.15, 0.3)  # as fractions of the filter's size
NUM_REFINED = 2

# A function of eight parameters fits smaller filters almost perfectly, whatever their pattern.
MIN_PIXELS = 16
# Filters below this residual are counted as similar.
SMALL_RESIDUAL = 0.2


class Gabor(NamedTuple):
    """amplitude * exp(-u^2 / (2 sigma_u^2) - v^2 / (2 sigma_v^2)) * cos(2 pi frequency u + phase).

    (u, v) are pixel coordinates relative to the center (`x`, `y`), rotated by `angle` (radians) so that the wave runs
    along u. The origin is the middle of the filter. `frequency` is in cycles per pixel, at most 0.5.
    """

    amplitude: float
    x: float
    y: float
    sigma_u: float
    sigma_v: float
    angle: float
    frequency: float
    phase: float


class GaborFit(NamedTuple):
    """The closest Gabor function of a filter, times a unit vector `color` (in channels,).

    `residual` is the share of the filter's sum of squares that it does not explain, in 0..1.
    """

    gabor: Gabor
    color: tuple[float, ...]
    residual: float


def first_layer_filters(model: Network) -> Tensor:
    """Return the weights of the first convolution, (filters, in channels, height, width)."""
    return next(m for m in model.modules() if isinstance(m, nn.Conv2d)).weight.detach().cpu()


def shuffle_pixels(filters: Tensor, seed: int = 0) -> Tensor:
    """Shuffle the pixels of each filter, in the same order in all its channels."""
    generator = torch.Generator().manual_seed(seed)
    count, channels, height, width = filters.shape
    order = torch.rand(count, 1, height * width, generator=generator).argsort(-1)
    return filters.flatten(2).gather(2, order.expand(-1, channels, -1)).view_as(filters)


def evaluate_gabor(gabor: Gabor, height: int, width: int) -> Array:
    """Evaluate the function on the pixels of a filter, (height, width)."""
    return _gabor_values(np.array(gabor), *_coordinates(height, width)).reshape(height, width)


def fit_filters(filters: Tensor) -> list[GaborFit]:
    """Fit a Gabor function to each filter (filters, in channels, height, width).

    A filter of several channels is first approximated by one pattern times a color (its first singular vectors).
    """
    try:
        from scipy.optimize import least_squares
    except ImportError:
        raise FailedError("fitting Gabor functions needs SciPy: pip install 'googlenet[explain]'") from None
    grid = _create_grid(*filters.shape[-2:])
    return [_fit(weights.flatten(1).double().numpy(), grid, least_squares) for weights in filters]


def _coordinates(height: int, width: int) -> tuple[Array, Array]:
    y, x = np.mgrid[:height, :width].reshape(2, -1)
    return x - (width - 1) / 2, y - (height - 1) / 2


def _gabor_values(p: Array, x: Array, y: Array) -> Array:
    """Evaluate the function with parameters `p`, in the order of `Gabor`, at (x, y)."""
    cos, sin = np.cos(p[5]), np.sin(p[5])
    u, v = (x - p[1]) * cos + (y - p[2]) * sin, (y - p[2]) * cos - (x - p[1]) * sin
    window = np.exp(-(u**2) / (2 * p[3] ** 2) - v**2 / (2 * p[4] ** 2))
    values: Array = p[0] * window * np.cos(2 * np.pi * p[6] * u + p[7])
    return values


def _to_bounded(free: Array, half: float) -> Array:
    """Map any eight numbers to parameters with a center on the filter, which extends `half` pixels from its middle.

    The sigmas are between 0.3 and 0.3 + 2 `half` pixels; the frequency is at most 0.5.
    """
    p = free.copy()
    p[1:3] = half * np.tanh(free[1:3])
    p[3:5] = 0.3 + half * (1 + np.tanh(free[3:5]))
    p[6] = 0.25 * (1 - np.cos(free[6]))
    return p


class _Grid(NamedTuple):
    """Pixel coordinates, (window, angle, frequency) of initial values, their waves (starts, pixels, cos and sin)."""

    x: Array
    y: Array
    starts: list[tuple[float, float, float]]
    waves: Array


def _create_grid(height: int, width: int) -> _Grid:
    x, y = _coordinates(height, width)
    windows = [share * max(height, width) for share in WINDOWS]
    starts = list(product(windows, ANGLES, FREQUENCIES))
    pairs = [[_gabor_values(np.array([1, 0, 0, s, s, a, f, p]), x, y) for p in (0, -np.pi / 2)] for s, a, f in starts]
    return _Grid(x, y, starts, np.stack(pairs).transpose(0, 2, 1))


def _fit(weights: Array, grid: _Grid, least_squares: Any) -> GaborFit:
    power = float((weights**2).sum())
    if power == 0.0:
        return GaborFit(Gabor(0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0), (0.0,) * len(weights), 0.0)
    left, singular_values, right = np.linalg.svd(weights / np.sqrt(power), full_matrices=False)
    pattern = right[0] * singular_values[0]
    half = float(max(grid.x.max(), grid.y.max())) + 0.5

    def residuals(free: Array) -> Array:
        difference: Array = _gabor_values(_to_bounded(free, half), grid.x, grid.y) - pattern
        return difference

    # The best cosine and sine amplitudes of every initial value in closed form; what they explain ranks them.
    amplitudes = np.linalg.pinv(grid.waves) @ pattern
    explained = ((grid.waves @ amplitudes[..., None])[..., 0] * pattern).sum(1)
    fits = []
    for index in np.argsort(-explained)[:NUM_REFINED]:
        (window, angle, frequency), (cosine, sine) = grid.starts[index], amplitudes[index]
        amplitude, phase = np.hypot(cosine, sine), np.arctan2(-sine, cosine)
        # The inverse of `_to_bounded`.
        sigma = np.arctanh((window - 0.3) / half - 1)
        start = np.array([amplitude, 0, 0, sigma, sigma, angle, np.arccos(1 - 4 * frequency), phase])
        fits.append(least_squares(residuals, start, method="lm", ftol=1e-4, xtol=1e-4, max_nfev=250))
    best = min(fits, key=lambda fit: fit.cost)
    amplitude, *others = _to_bounded(best.x, half).tolist()
    gabor = Gabor(amplitude * power**0.5, *others)
    residual = float(min(1.0, 1.0 - singular_values[0] ** 2 + 2 * best.cost))
    return GaborFit(gabor, tuple(left[:, 0].tolist()), residual)


def run(context: ExplainContext) -> AnalysisResult:
    """Fit the first layer's filters, and shuffled ones for comparison."""
    weights = first_layer_filters(context.model)
    fits = fit_filters(weights)
    residuals, shuffled = ([fit.residual for fit in group] for group in (fits, fit_filters(shuffle_pixels(weights))))
    median, shuffled_median = statistics.median(residuals), statistics.median(shuffled)
    count, channels, height, width = weights.shape
    filters = [{**fit.gabor._asdict(), "color": list(fit.color), "residual": fit.residual} for fit in fits]
    document = {"filters": filters, "residual_median": median, "residual_median_shuffled": shuffled_median}
    similar, shuffled_similar = (sum(r < SMALL_RESIDUAL for r in group) for group in (residuals, shuffled))
    lines = [
        f"{count} filters of {height}x{width} pixels and {channels} channel{'s' if channels > 1 else ''}: median "
        f"residual {median:.3f}; with shuffled pixels {shuffled_median:.3f}",
        f"{similar} of {count} have a residual below {SMALL_RESIDUAL}; with shuffled pixels {shuffled_similar}",
    ]
    if height * width < MIN_PIXELS:
        lines.append(f"{height * width} pixels per channel are too few to tell a Gabor function from another pattern")
    patterns = [torch.from_numpy(evaluate_gabor(fit.gabor, height, width)) for fit in fits]
    colors = torch.tensor([fit.color for fit in fits])
    png = plotting.draw_filters(weights, colors[..., None, None] * torch.stack(patterns)[:, None], residuals, shuffled)
    image = OutputImage("filters.png", png, "The filters of the first layer and their closest Gabor functions.")
    return AnalysisResult("Filters of the first layer and their closest Gabor functions", document, [image], lines)
