"""Compare exported files with the trained network on real images."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.preprocess import Preprocess
from ..evaluation.predictor import Predictor, round_to_uint8

# The largest error allowed in float32: engines sum in another order.
MAX_ERROR = 1e-4
BATCH_SIZES = (1, 7)


class ParityRow(NamedTuple):
    """The largest difference of an output at one height, width (pixels) and batch size."""

    engine: str
    height: int
    width: int
    batch: int
    max_error: float

    @property
    def within_bounds(self) -> bool:
        """Whether the difference is allowed."""
        return self.max_error <= MAX_ERROR


def parity_shapes(size: int, min_size: int, dynamic_size: bool) -> list[tuple[int, int]]:
    """Return the heights and widths to compare at: the default size, the smallest, and an odd rectangle."""
    odd = max(size, min_size) | 1
    shapes = [(size, size), (min_size, min_size), (odd, odd + 10)] if dynamic_size else [(size, size)]
    return list(dict.fromkeys(shapes))


def compare(
    reference: tuple[nn.Module, Preprocess],
    predictors: Mapping[str, Predictor],
    images: Tensor,
    shapes: Sequence[tuple[int, int]],
    softmax: bool = False,
) -> list[ParityRow]:
    """Compare each predictor with the reference ``model(preprocess.normalize(...))``, at all shapes and batch sizes.

    `images` uint8 (n, channels, h, w), n of 1 or more, are resized to the `shapes` and repeated to fill a batch.
    Logits are compared, or probabilities if the files contain `softmax`. If an error is too large, the reference is
    computed in float64: in deep networks PyTorch's float32 rounding exceeds the bound.
    """
    model, preprocess = reference
    model64, rows = None, []
    for height, width in shapes:
        resized = F.interpolate(images.float(), (height, width), mode="bilinear", antialias=True)
        for batch in BATCH_SIZES:
            pixels = round_to_uint8(resized)[torch.arange(batch) % len(resized)]
            outputs = {name: predictor.predict(pixels) for name, predictor in predictors.items()}
            if softmax:
                outputs = {name: output.exp() for name, output in outputs.items()}
            expected = _expected(model, preprocess, pixels.float(), softmax)
            if any(relative_error(output, expected) > MAX_ERROR for output in outputs.values()):
                model64 = model64 or copy.deepcopy(model).double()
                expected = _expected(model64, preprocess, pixels.double(), softmax)
            errors = {name: relative_error(output, expected) for name, output in outputs.items()}
            rows += [ParityRow(name, height, width, batch, error) for name, error in errors.items()]
    return rows


def _expected(model: nn.Module, preprocess: Preprocess, pixels: Tensor, softmax: bool) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(preprocess.normalize(pixels))
    return logits.softmax(1) if softmax else logits


def relative_error(output: Tensor, expected: Tensor) -> float:
    """Return the largest difference, divided by a tenth of the largest expected value if that exceeds 10.

    float32 has seven digits, and logits can be large at sizes that the network was not trained at. The error of an
    output that is not finite is infinite.
    """
    error = (output - expected).abs()
    scale = max(1.0, expected.abs().max().item() / 10)
    return error.max().item() / scale if error.isfinite().all() else math.inf
