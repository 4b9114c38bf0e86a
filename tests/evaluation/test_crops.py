"""The 144 crops of ILSVRC14: their boxes against boxes worked out here, their pixels, their average, their number."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from googlenet.data.preprocess import Preprocess
from googlenet.evaluation.crops import CROPS, Box, answer, boxes, resized, scales, views

pytestmark = pytest.mark.cpu

PLAIN = Preprocess(224, 3, (0.0,) * 3, (1 / 255,) * 3)  # pixels stay as they are


def test_scales() -> None:
    assert scales(224, 144) == (256, 288, 320, 352)
    assert scales(299, 144) == (342, 384, 427, 470)
    assert scales(96, 144) == (110, 123, 137, 151)
    assert scales(224, 10) == scales(224, 1) == (256,)


def by_hand(width: int, height: int, scale: int) -> set[tuple[int, int, int, int, bool]]:
    """(scale, top, left, side, mirrored) for a picture of 500x375, from the paper's words."""
    assert (width, height) == (500, 375)
    wide = {256: 341, 288: 384, 320: 427, 352: 469}[scale]  # 500 * scale / 375, to the nearest
    found = set()
    for left in (0, (wide - scale) // 2, wide - scale):
        far, mid = scale - 224, (scale - 224) // 2
        for y, x in ((0, 0), (0, far), (far, 0), (far, far), (mid, mid)):
            for mirrored in (False, True):
                found.add((scale, y, left + x, 224, mirrored))
        found |= {(scale, 0, left, scale, False), (scale, 0, left, scale, True)}
    return found


def test_the_144_boxes_of_a_500_by_375_picture() -> None:
    found = boxes(375, 500, 224, 144)
    assert len(found) == len(set(found)) == 144
    for scale in (256, 288, 320, 352):
        assert {tuple(box) for box in found if box.scale == scale} == by_hand(500, 375, scale)
    upright = boxes(500, 375, 224, 144)
    assert {(b.scale, b.left, b.top, b.side, b.mirrored) for b in upright} == {tuple(b) for b in found}
    # The second scale's middle square, its lower right corner, in figures.
    assert Box(288, 64, 48 + 64, 224, False) in found


def test_ten_and_one() -> None:
    ten = boxes(375, 500, 224, 10)
    assert [(b.top, b.left) for b in ten[:5]] == [(0, 42), (0, 74), (32, 42), (32, 74), (16, 58)]
    assert ten[5:] == [b._replace(mirrored=True) for b in ten[:5]]
    assert boxes(375, 500, 224, 1) == [Box(256, 16, 58, 224, False)]


@pytest.mark.parametrize("crops", CROPS)
@pytest.mark.parametrize("shape", [(375, 500), (300, 200), (224, 224), (40, 40)])
def test_views_are_the_boxes(crops: int, shape: tuple[int, int]) -> None:
    base = 224 if min(shape) > 100 else 28
    pictures = torch.randint(0, 256, (2, 3, *shape), dtype=torch.uint8)
    got: list[Tensor] = []
    for view in views(pictures, PLAIN, base, crops):
        got += list(view.pixels.view(-1, 2, 3, base, base)) * view.weight
    found = boxes(*shape, base, crops)
    assert len(got) == len(found) == crops
    cut = {}
    for box in found:
        tall, wide = resized(*shape, box.scale)
        part = PLAIN.resize_to(pictures, tall, wide)[
            ..., box.top : box.top + box.side, box.left : box.left + box.side
        ]
        part = PLAIN.resize_to(part, base, base)
        cut[box] = part.flip(-1) if box.mirrored else part
    if shape[0] == shape[1]:  # the same crops, grouped by square: compare as sets
        assert sorted(float(x.double().sum()) for x in got) == pytest.approx(
            sorted(float(x.double().sum()) for x in cut.values()) if len(cut) == crops
            else sorted(float(cut[box].double().sum()) for box in found)
        )  # fmt: skip
    else:
        for box, pixels in zip(found, got, strict=True):
            torch.testing.assert_close(pixels, cut[box], rtol=0, atol=1e-3)


class Brightness(nn.Module):
    """Logits from the mean pixel of each channel: a network whose answer can be worked out."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) / 50


@pytest.mark.parametrize("how", ["probability", "logit", "max"])
def test_the_average(how: str) -> None:
    pictures = torch.randint(0, 256, (3, 3, 90, 130), dtype=torch.uint8)
    network = Brightness()
    logits = torch.stack(
        [
            network(part)
            for view in views(pictures, PLAIN, 56, 144)
            for part in list(view.pixels.view(-1, 3, 3, 56, 56)) * view.weight
        ]
    ).double()
    assert len(logits) == 144
    expected = {
        "probability": logits.softmax(-1).mean(0),
        "logit": logits.mean(0).softmax(-1),
        "max": F.normalize(logits.softmax(-1).amax(0), p=1, dim=-1),
    }[how]
    torch.testing.assert_close(answer(network, pictures, PLAIN, 56, 144, how).exp(), expected, rtol=1e-5, atol=1e-8)


class Counted(Brightness):
    """Counts the batches and the crops that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        return super().forward(x)


@pytest.mark.parametrize("crops", CROPS)
def test_the_network_sees_each_crop_once_and_in_full_batches(crops: int) -> None:
    """What the time depends on, which `make bench-overheads` measures."""
    network = Counted()
    pictures = torch.randint(0, 256, (3, 1, 110, 150), dtype=torch.uint8)
    answer(network, pictures, Preprocess(96, 1, (0.3,), (0.35,)), 96, crops)
    assert sum(network.batches) == 3 * crops
    squares = {1: 1, 10: 1, 144: 12}[crops]
    assert network.batches == [3 * crops // squares] * squares, "all crops of a square at once"
