"""The comparison of exported files with PyTorch."""

import torch
from torch import Tensor, nn

from googlenet.data.preprocess import Preprocess
from googlenet.export.parity import MAX_ERROR, compare

SIZE = 8
PREPROCESS = Preprocess(SIZE, 1, (0.5,), (0.25,))
IMAGES = torch.arange(3 * SIZE * SIZE).remainder(256).to(torch.uint8).view(3, 1, SIZE, SIZE)


class CancellingMean(nn.Module):
    """A mean whose intermediate result float32 rounds to sixteenths."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.mean((2, 3)) + 1e6) - 1e6


class ExactMean:
    """A predictor without rounding, and with an `error` added."""

    name, preprocess, classes, min_size = "exact", PREPROCESS, ("a",), 1

    def __init__(self, error: float):
        self.error = error

    def predict(self, images: Tensor) -> Tensor:
        return (PREPROCESS.normalize(images.double()).mean((2, 3)) + self.error).float()


def test_rounding_in_pytorch_is_not_an_error_of_the_engine() -> None:
    x = PREPROCESS.normalize(IMAGES.float())
    assert (CancellingMean()(x) - x.mean((2, 3))).abs().max() > 10 * MAX_ERROR
    predictors = {"exact": ExactMean(0.0), "wrong": ExactMean(3 * MAX_ERROR)}
    rows = compare((CancellingMean(), PREPROCESS), predictors, IMAGES, [(SIZE, SIZE)])
    for row in rows:
        if row.engine == "exact":
            assert row.within_bounds and row.max_error < MAX_ERROR / 10
        else:
            assert not row.within_bounds and 2 * MAX_ERROR < row.max_error < 4 * MAX_ERROR
