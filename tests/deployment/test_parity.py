"""How an engine's error is told from PyTorch's own rounding."""

import torch
from torch import Tensor, nn

from googlenet.data.preprocess import Preprocess
from googlenet.deployment.parity import BOUND, compare, largest

SIZE = 8
PREPROCESS = Preprocess(SIZE, 1, (0.5,), (0.25,))
PICTURES = torch.arange(3 * SIZE * SIZE).remainder(256).to(torch.uint8).view(3, 1, SIZE, SIZE)


class Cancelling(nn.Module):
    """A mean that float32 rounds to sixteenths on its way."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.mean((2, 3)) + 1e6) - 1e6


class Answers:
    """An engine without rounding, whose answers are `off` by so much."""

    def __init__(self, off: float):
        self.off, self.name, self.preprocess, self.classes = off, "made", PREPROCESS, ("a",)

    def __call__(self, pixels: Tensor) -> Tensor:
        return (PREPROCESS.normalise(pixels.double()).mean((2, 3)) + self.off).float()


def test_rounding_in_pytorch_is_not_the_engines_error() -> None:
    x = PREPROCESS.normalise(PICTURES.float())
    assert (Cancelling()(x) - x.mean((2, 3))).abs().max() > 10 * BOUND
    engines = {"exact": Answers(0.0), "wrong": Answers(3 * BOUND)}
    found = largest(compare(Cancelling(), PREPROCESS, engines, PICTURES, [(SIZE, SIZE)]))
    assert found["exact"] < BOUND / 10
    assert 2 * BOUND < found["wrong"] < 4 * BOUND
