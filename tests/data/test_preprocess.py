"""Preprocess equals torchvision's transforms, and survives conversion to plain values."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from googlenet.data.preprocess import Preprocess, _pixel_moments

GRAY = Preprocess(32, 1, (0.286,), (0.353,))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width", "size"), [(28, 28, 96), (28, 28, 28), (120, 90, 32), (31, 77, 64)])
def test_equals_torchvision(height: int, width: int, size: int, interpolation: str) -> None:
    pixels = torch.randint(0, 256, (4, 3, height, width), dtype=torch.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    ours = Preprocess(size, 3, mean, std, crop_mode="squash", interpolation=interpolation)(pixels)
    expected = v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.Resize((size, size), v2.InterpolationMode(interpolation), antialias=True),
            v2.Lambda(lambda x: x.clamp(0, 1)),
            v2.Normalize(mean, std),
        ]
    )(pixels)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_center_crop() -> None:
    pixels = torch.arange(30 * 50, dtype=torch.int32).reshape(1, 1, 30, 50).remainder(256).byte()
    out = Preprocess(30, 1, (0.0,), (1.0,))(pixels)
    torch.testing.assert_close(out, pixels[..., 10:40].float() / 255)
    out = Preprocess(15, 1, (0.0,), (1.0,), crop_pct=0.5)(pixels)
    assert out.shape == (1, 1, 15, 15)
    torch.testing.assert_close(out, pixels[..., 7:22, 17:32].float() / 255)


def test_from_pil_describes_its_steps() -> None:
    batch, description = GRAY.from_pil(Image.new("RGB", (640, 480), "white"))
    assert batch.shape == (1, 1, 32, 32)
    assert description == "640x480 RGB, colors to gray, center 480x480, resized to 32x32"
    torch.testing.assert_close(batch, torch.full_like(batch, (1 - 0.286) / 0.353))
    assert GRAY.from_pil(Image.fromarray(np.zeros((32, 32), np.uint8)))[1] == "32x32 gray"
    assert "gray repeated" in Preprocess(8, 3, (0,) * 3, (1,) * 3).from_pil(Image.new("L", (8, 8)))[1]


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (4000, 40)])
def test_extreme_shapes(shape: tuple[int, int]) -> None:
    for crop_mode in ("center", "squash"):
        batch, _ = Preprocess(32, 1, (0.0,), (1.0,), crop_mode=crop_mode).from_pil(Image.new("L", shape, 128))
        torch.testing.assert_close(batch, torch.full((1, 1, 32, 32), 128 / 255))


@settings(max_examples=30)
@given(
    size=st.integers(1, 600),
    mean=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    std=st.lists(st.floats(0.01, 1), min_size=3, max_size=3),
    crop_mode=st.sampled_from(["center", "squash"]),
    crop_pct=st.floats(0.1, 1),
)
def test_round_trip(size: int, mean: list[float], std: list[float], crop_mode: str, crop_pct: float) -> None:
    preprocess = Preprocess(size, 3, tuple(mean), tuple(std), crop_mode=crop_mode, crop_pct=crop_pct)
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess


@pytest.mark.parametrize(
    "arguments", [(0, 1, (0.0,), (1.0,)), (8, 1, (0.0, 0.0), (1.0,)), (8, 1, (0.0,), (0.0,)), (8, 0, (), ())]
)
def test_invalid_values(arguments: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match="must be|need"):
        Preprocess(*arguments)


def test_resize_accepts_height_and_width() -> None:
    images = torch.randint(0, 256, (2, 1, 20, 30), dtype=torch.uint8)
    assert GRAY.resize(images, (7, 9)).shape == (2, 1, 7, 9)
    assert torch.equal(GRAY.resize(images, 8), GRAY.resize(images, (8, 8)))
    assert torch.equal(GRAY.resize(images, (20, 30)), images.float())


COLOR = Preprocess(16, 3, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


@pytest.mark.parametrize("white", [1.0, 255.0, 4095.0, 65535.0])
@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (1, 3, 40, 30)])
def test_pixels_of_another_range_need_its_maximum(white: float, shape: tuple[int, ...]) -> None:
    fractions = torch.rand(shape)
    expected = COLOR(fractions * 255)
    for images in (fractions * white, (fractions * white).double()):
        torch.testing.assert_close(COLOR(images, max_value=white).float(), expected, rtol=0, atol=1e-4)
    if white > 255:
        torch.testing.assert_close(COLOR((fractions * white).int(), max_value=white), expected, rtol=0, atol=2e-2)
    clipped = COLOR(torch.full(shape, 2 * white), max_value=white)
    torch.testing.assert_close(clipped, COLOR(torch.full(shape, 255, dtype=torch.uint8)))


@pytest.mark.parametrize(
    "images",
    [torch.rand(1, 3, 16, 16), torch.rand(2, 3, 20, 30).double() * 0.9, torch.rand(1, 3, 16, 16) - 0.5,
     torch.rand(1, 3, 16, 16) * 4095, torch.full((1, 3, 16, 16), torch.nan),
     torch.full((1, 3, 8, 8), 200, dtype=torch.int32), torch.full((1, 3, 8, 8), 200, dtype=torch.int64),
     torch.ones(1, 3, 8, 8, dtype=torch.bool)],
)  # fmt: skip
def test_pixels_of_an_unknown_range_are_an_error(images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="max_value=1.0") as raised:
        COLOR(images)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 9, 9), torch.rand(1, 3, 9, 9) * 255 + 0.0])
def test_floats_in_0_255_are_accepted(images: torch.Tensor) -> None:
    assert torch.equal(COLOR(images), COLOR.normalize(COLOR.resize(images, 16)))


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64, torch.bool])
def test_resize_and_normalize_reject_other_integers(dtype: torch.dtype) -> None:
    for function in (COLOR.normalize, lambda images: COLOR.resize(images, 4)):
        with pytest.raises(ValueError, match=r"uint8 or float in 0\.\.255"):
            function(torch.ones(1, 3, 8, 8, dtype=dtype))


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 16, 16, 3), (2, 2, 16, 16), (1, 4, 8, 8), (1, 2, 3, 8, 8)])
def test_other_shapes_are_an_error(shape: tuple[int, ...]) -> None:
    for function in (COLOR, COLOR.normalize):
        with pytest.raises(ValueError, match=r"\(n, 3, height, width\)") as raised:
            function(torch.zeros(shape, dtype=torch.uint8))
        assert str(shape) in str(raised.value)


def test_gray_is_repeated_for_a_network_of_colors() -> None:
    gray = torch.randint(0, 256, (2, 1, 20, 30), dtype=torch.uint8)
    assert torch.equal(COLOR(gray), COLOR(gray.repeat(1, 3, 1, 1)))


def test_normalize_reuses_constants_that_allow_gradients() -> None:
    preprocess = Preprocess(4, 1, (0.123,), (0.456,))
    with torch.inference_mode():
        preprocess.normalize(torch.zeros(1, 1, 4, 4))
    before = _pixel_moments.cache_info().misses
    pixels = torch.zeros(1, 1, 4, 4, requires_grad=True)
    preprocess.normalize(pixels).sum().backward()
    torch.testing.assert_close(pixels.grad, torch.full((1, 1, 4, 4), 1 / (255 * 0.456)))
    assert _pixel_moments.cache_info().misses == before
    assert preprocess.normalize(pixels.double()).dtype == torch.float64


@pytest.mark.parametrize(("height", "width"), [(2100, 2100), (3000, 1500)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_large_images_are_resized_within_the_tolerance(height: int, width: int, interpolation: str) -> None:
    coarse = torch.randint(0, 256, (1, 1, 30, 20)).float()
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").round().to(torch.uint8)
    preprocess = Preprocess(50, 1, (0.0,), (1.0,), interpolation=interpolation)
    expected = v2.functional.resize(
        images.float(), [50, 60], v2.InterpolationMode(interpolation), antialias=True
    ).clamp(0, 255)
    assert (preprocess.resize(images, (50, 60)) - expected).abs().mean() < 1.0
