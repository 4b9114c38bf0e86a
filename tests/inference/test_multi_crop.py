"""The 144 crops of ILSVRC14: boxes, pixels, average and number."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from googlenet.data.preprocess import Preprocess
from googlenet.evaluation.predictor import NetworkPredictor
from googlenet.inference.multi_crop import (
    NUM_CROPS,
    NumCrops,
    crop_scales,
    iter_crops,
    predict_multi_crop,
    scaled_shape,
    square_offsets,
)

pytestmark = pytest.mark.cpu

IDENTITY = Preprocess(224, 3, (0.0,) * 3, (1 / 255,) * 3)  # does not change pixels


class CropBox(NamedTuple):
    """A square crop, in pixels of the image whose shorter side is `scale`.

    If `side` is larger than the network's input, the crop is resized.
    """

    scale: int
    top: int
    left: int
    side: int
    flipped: bool


def crop_boxes(height: int, width: int, base: int, num_crops: NumCrops) -> list[CropBox]:
    """Return the crops of an image of `height` times `width` pixels, in the order of `iter_crops`."""
    boxes = []
    for scale in crop_scales(base, num_crops):
        end, middle = scale - base, (scale - base) // 2
        corners = [(0, 0), (0, end), (end, 0), (end, end)] if num_crops > 1 else []
        for top, left in square_offsets(*scaled_shape(height, width, scale), num_crops):
            square = [CropBox(scale, top + y, left + x, base, False) for y, x in [*corners, (middle, middle)]]
            if num_crops == 144:
                square.append(CropBox(scale, top, left, scale, False))
            boxes += square
            if num_crops > 1:
                boxes += [box._replace(flipped=True) for box in square]
    return boxes


def test_scales() -> None:
    assert crop_scales(224, 144) == (256, 288, 320, 352)
    assert crop_scales(299, 144) == (342, 384, 427, 470)
    assert crop_scales(96, 144) == (110, 123, 137, 151)
    assert crop_scales(224, 10) == crop_scales(224, 1) == (256,)


def expected_boxes(width: int, height: int, scale: int) -> set[tuple[int, int, int, int, bool]]:
    """Return (scale, top, left, side, flipped) for an image of 500x375, from the paper's text."""
    assert (width, height) == (500, 375)
    wide = {256: 341, 288: 384, 320: 427, 352: 469}[scale]  # 500 * scale / 375, to the nearest
    boxes = set()
    for left in (0, (wide - scale) // 2, wide - scale):
        far, mid = scale - 224, (scale - 224) // 2
        for y, x in ((0, 0), (0, far), (far, 0), (far, far), (mid, mid)):
            for flipped in (False, True):
                boxes.add((scale, y, left + x, 224, flipped))
        boxes |= {(scale, 0, left, scale, False), (scale, 0, left, scale, True)}
    return boxes


def test_the_144_boxes_of_a_500_by_375_image() -> None:
    boxes = crop_boxes(375, 500, 224, 144)
    assert len(boxes) == len(set(boxes)) == 144
    for scale in (256, 288, 320, 352):
        assert {tuple(box) for box in boxes if box.scale == scale} == expected_boxes(500, 375, scale)
    portrait = crop_boxes(500, 375, 224, 144)
    assert {(b.scale, b.left, b.top, b.side, b.flipped) for b in portrait} == {tuple(b) for b in boxes}
    # The lower right corner of the second scale's center square.
    assert CropBox(288, 64, 48 + 64, 224, False) in boxes


def test_ten_crops_and_one_crop() -> None:
    ten = crop_boxes(375, 500, 224, 10)
    assert [(b.top, b.left) for b in ten[:5]] == [(0, 42), (0, 74), (32, 42), (32, 74), (16, 58)]
    assert ten[5:] == [b._replace(flipped=True) for b in ten[:5]]
    assert crop_boxes(375, 500, 224, 1) == [CropBox(256, 16, 58, 224, False)]


@pytest.mark.slow
@pytest.mark.parametrize("num_crops", NUM_CROPS)
@pytest.mark.parametrize("shape", [(375, 500), (300, 200), (224, 224), (40, 40)])
def test_pixels_are_those_of_the_boxes(num_crops: int, shape: tuple[int, int]) -> None:
    base = 224 if min(shape) > 100 else 28
    images = torch.randint(0, 256, (2, 3, *shape), dtype=torch.uint8)
    crops: list[Tensor] = []
    for batch in iter_crops(images, IDENTITY, base, num_crops):
        crops += list(batch.pixels.view(-1, 2, 3, base, base)) * batch.weight
    boxes = crop_boxes(*shape, base, num_crops)
    assert len(crops) == len(boxes) == num_crops
    expected = {}
    for box in boxes:
        height, width = scaled_shape(*shape, box.scale)
        part = IDENTITY.resize(images, (height, width))[
            ..., box.top : box.top + box.side, box.left : box.left + box.side
        ]
        part = IDENTITY.resize(part, base)
        expected[box] = part.flip(-1) if box.flipped else part
    if shape[0] == shape[1]:  # The three squares coincide, so the order differs.
        sums, expected_sums = (
            sorted(float(crop.double().sum()) for crop in group) for group in (crops, [expected[box] for box in boxes])
        )
        assert sums == pytest.approx(expected_sums)
    else:
        for box, pixels in zip(boxes, crops, strict=True):
            torch.testing.assert_close(pixels, expected[box], rtol=0, atol=1e-3)


class Brightness(nn.Module):
    """Logits from the mean pixel of each channel; counts the images of each call."""

    min_size = 1

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1 / 50))
        self.batch_sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batch_sizes.append(len(x))
        return x.mean((2, 3)) * self.scale


def test_probabilities_are_averaged() -> None:
    images = torch.randint(0, 256, (3, 3, 90, 130), dtype=torch.uint8)
    predictor = NetworkPredictor(Brightness(), IDENTITY, ("a", "b", "c"))
    logits = torch.stack(
        [
            predictor.predict(pixels)
            for batch in iter_crops(images, IDENTITY, 56, 144)
            for pixels in list(batch.pixels.view(-1, 3, 3, 56, 56)) * batch.weight
        ]
    ).double()
    assert len(logits) == 144
    result = predict_multi_crop(predictor, images, 56, 144)
    torch.testing.assert_close(result.exp(), logits.softmax(-1).mean(0), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("num_crops", NUM_CROPS)
def test_each_crop_is_computed_once_in_full_batches(num_crops: int) -> None:
    model = Brightness()
    images = torch.randint(0, 256, (3, 1, 110, 150), dtype=torch.uint8)
    predictor = NetworkPredictor(model, Preprocess(96, 1, (0.3,), (0.35,)), ("a",))
    predict_multi_crop(predictor, images, 96, num_crops)
    squares = {1: 1, 10: 1, 144: 12}[num_crops]
    assert model.batch_sizes == [3 * num_crops // squares] * squares, "one batch for all crops of a square"
