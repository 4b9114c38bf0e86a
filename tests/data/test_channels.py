"""Images with other channels than gray and RGB, and with 16 bits: .npy and TIFF, from training to the server."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import googlenet
from googlenet.data.decode import (
    DecodeLimits,
    ImageError,
    ImageTooLargeError,
    decode_image,
    decode_pixels,
    decoded_size,
    to_display,
)
from googlenet.data.preprocess import Preprocess
from googlenet.data.sources import LoadOptions, load_dataset
from servers import run_server


def values_of(channels: int, dtype: str = "uint16", height: int = 40, width: int = 50, level: float = 1.0) -> Any:
    top = 1.0 if dtype.startswith("float") else 255 if dtype == "uint8" else 4000
    generator = np.random.default_rng(channels * 100 + int(100 * level))
    return (generator.random((height, width, channels)) * top * level).astype(dtype)


def npy(values: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def tiff(values: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def expected(values: Any, white: float) -> Any:
    return np.rint(np.clip(values.astype(np.float64) * 255 / white, 0, 255)).transpose(2, 0, 1)


WHITES = {"uint8": 255.0, "uint16": 4095.0, "int16": 4095.0, "float32": 1.0, "float64": 1.0}


@pytest.mark.parametrize("dtype", WHITES)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 12])
def test_npy(channels: int, dtype: str) -> None:
    """Any type in any layout: the reference is the formula."""
    values = values_of(channels, dtype)
    layouts = [values, values.transpose(2, 0, 1), np.asfortranarray(values)]
    for array in [*layouts, *([values[..., 0]] if channels == 1 else [])]:
        image = decode_pixels(npy(array), channels, "a.npy")
        assert image.source_channels == channels and image.full_size == (50, 40)
        # float32 may round a tie to the other side.
        assert np.abs(image.pixels.numpy() - expected(values, WHITES[dtype])).max() <= (0 if dtype == "uint8" else 1)
    given_white = decode_pixels(npy(values), channels, "a.npy", max_value=2 * WHITES[dtype])
    if dtype != "uint8":
        assert np.abs(given_white.pixels.numpy() - expected(values, 2 * WHITES[dtype])).max() <= 1


@pytest.mark.parametrize("form", ["samples", "planes", "pages", "big-endian", "deflate"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_tiff(form: str, dtype: str) -> None:
    values = values_of(6, dtype)
    content = {
        "samples": lambda: tiff(values, photometric="minisblack", planarconfig="contig"),
        "planes": lambda: tiff(values.transpose(2, 0, 1), photometric="minisblack", planarconfig="separate"),
        "pages": lambda: tiff(values.transpose(2, 0, 1), photometric="minisblack", metadata={"axes": "CYX"}),
        "big-endian": lambda: tiff(values, photometric="minisblack", planarconfig="contig", byteorder=">"),
        "deflate": lambda: tiff(values, photometric="minisblack", planarconfig="contig", compression="zlib"),
    }[form]()
    image = decode_pixels(content, 6, "a.tif")
    assert np.abs(image.pixels.numpy() - expected(values, WHITES[dtype])).max() <= (0 if dtype == "uint8" else 1)
    assert decoded_size(content, "a.tif", None)[:2] == (50, 40)


def test_four_channels_of_a_png_are_its_color_and_alpha() -> None:
    values = values_of(4, "uint8")
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    assert np.array_equal(decode_pixels(file.getvalue(), 4, "a.png").pixels.permute(1, 2, 0), values)
    # For RGB, transparency is composited over white as before.
    assert np.array_equal(
        decode_pixels(file.getvalue(), 3, "a.png").pixels.permute(1, 2, 0), np.asarray(decode_image(file.getvalue()))
    )


@settings(max_examples=30)
@given(st.integers(1, 9), st.integers(10, 30), st.integers(10, 30), st.sampled_from(["uint8", "uint16", "float32"]))
def test_npy_and_tiff_agree(channels: int, height: int, width: int, dtype: str) -> None:
    values = values_of(channels, dtype, height, width)
    stack = tiff(values.transpose(2, 0, 1), photometric="minisblack", metadata={"axes": "CYX"})
    if channels not in (1, 3):
        assert torch.equal(decode_pixels(npy(values), channels).pixels, decode_pixels(stack, channels).pixels)


def test_gray_and_rgb_arrays_are_images_as_any_other() -> None:
    gray, colors = values_of(1, "uint8")[..., 0], values_of(3, "uint8")
    assert np.array_equal(np.asarray(decode_image(npy(gray))), gray)
    assert decode_image(npy(gray)).mode == "L"
    assert np.array_equal(np.asarray(decode_image(npy(colors))), colors)
    deep = decode_image(npy(values_of(1, "uint16")), max_value=8000.0)
    assert np.asarray(deep).max() <= 128
    preprocess = Preprocess(8, 3, (0.0,) * 3, (1.0,) * 3)
    pixels, description = preprocess.from_decoded(decode_pixels(npy(gray), 3))
    assert pixels.shape == (1, 3, 8, 8)
    assert description == "50x40 gray, gray repeated to 3 channels, center 40x40, resized to 8x8"


@pytest.mark.parametrize(
    ("content", "channels", "message"),
    [
        (npy(values_of(5)), 3, "x: 5 channels: set data.channels to 5"),
        (
            tiff(values_of(5, "uint8"), photometric="minisblack", planarconfig="contig"),
            3,
            "5 channels: set data.channels",
        ),
        (npy(values_of(5)), 4, "x: 5 channels, and the network takes 4"),
        (npy(values_of(5))[:-1], 5, "damaged image (an incomplete array, or one of Python objects)"),
        (b"\x93NUMPY\x01", 5, "damaged image"),
        (npy(np.zeros(3)), 5, "an array of the shape (3,); an image has (h, w), (h, w, channels) or"),
        (npy(np.zeros((2, 3, 4, 5))), 5, "an array of the shape (2, 3, 4, 5)"),
        (npy(np.array([["a"]])), 5, "values of type <U1; save integers or floats"),
        (npy(np.array([[{}]], object)), 5, "damaged image (an incomplete array, or one of Python objects)"),
        (tiff(values_of(5))[:60], 5, "x: "),
        (tiff(np.zeros((3, 2, 8, 9), np.uint8), photometric="minisblack"), 5, "an image has one axis of channels"),
    ],
)
def test_invalid(content: bytes, channels: int, message: str) -> None:
    with pytest.raises(ImageError) as raised:
        decode_pixels(content, channels, "x")
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_many_channels_count_as_pixels() -> None:
    content = npy(np.zeros((100, 100, 40), np.uint8))
    with pytest.raises(ImageTooLargeError, match="100x100 pixels are more than the 50,000 allowed"):
        decode_pixels(content, 40, "x", limits=DecodeLimits(50_000))
    assert decode_pixels(content, 40, "x", limits=DecodeLimits(100_000)).full_size == (100, 100)


def test_images_to_look_at() -> None:
    for channels, mode in ((1, "L"), (2, "L"), (3, "RGB"), (6, "RGB")):
        pixels = torch.from_numpy(values_of(channels, "uint8").transpose(2, 0, 1).copy())
        image = to_display(pixels)
        shown = pixels[:3] if channels >= 3 else pixels[:1]
        assert image.mode == mode
        assert np.array_equal(np.asarray(image).reshape(40, 50, -1), shown.permute(1, 2, 0))


def write_folder(root: Path, channels: int = 5, dtype: str = "uint16", count: int = 10) -> Path:
    """Write .npy and TIFF images of two classes, of which the second is four times as bright."""
    for number in range(count):
        values = values_of(channels, dtype, level=0.2 + 0.6 * (number % 2) + 0.01 * number)
        path = root / ("dark", "bright")[number % 2] / f"{number}{'.npy' if number % 4 < 2 else '.tif'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        is_npy = path.suffix == ".npy"
        path.write_bytes(npy(values) if is_npy else tiff(values, photometric="minisblack", planarconfig="contig"))
    return root


@pytest.mark.parametrize("in_memory", [True, False])
def test_folder(tmp_path: Path, in_memory: bool, cache: Path) -> None:
    folder = write_folder(tmp_path / "data")
    (folder / "dark" / "small.npy").write_bytes(npy(values_of(4)))
    options = LoadOptions(size=40, channels=5, in_memory=in_memory, num_workers=0, validation=0)
    data = load_dataset(f"folder:{folder}", options)
    assert data.train.images.shape == (10, 5, 40, 40) and len(data.mean) == 5
    assert data.max_value == 4095, "the largest value of all images needs 12 bits"
    levels = next(iter(data.train.pixels([torch.arange(10)]))).float().mean((1, 2, 3))
    assert levels[data.train.labels == 0].min() > 2 * levels[data.train.labels == 1].max()
    assert data.skipped == [
        f"1 file excluded: 4 channels, and the network takes 5 ({folder}/dark/small.npy)",
    ]
    with pytest.raises(ValueError, match=r"no readable image\. .* files excluded: 5 channels: set data.channels to 5"):
        load_dataset(f"folder:{folder}", LoadOptions(size=8, in_memory=in_memory, num_workers=0))


def test_policies_are_for_gray_and_rgb(tmp_path: Path) -> None:
    done = googlenet("train", "fashion-mnist-smoke", "--data", f"folder:{write_folder(tmp_path / 'data')}",
                     "--data.channels", 5, "--data.val_split", 0, "--augment.auto_augment", "rand-m7-mstd0.5",
                     "--image-size", 32, "--out", tmp_path / "run")  # fmt: skip
    assert done.code == 1
    assert "are for gray and RGB images, not for 5 channels: unset them" in done.err.splitlines()[-1]


@pytest.mark.release
def test_train_predict_explain_export_and_serve(tmp_path: Path) -> None:
    folder, run, out = write_folder(tmp_path / "data", count=24), tmp_path / "run", tmp_path / "exported"
    done = googlenet("train", "fashion-mnist-smoke", "--data", f"folder:{folder}", "--data.channels", 5,
                     "--data.val_split", 4, "--image-size", 32, "--model.width_mult", 0.25, "--batch_size", 8,
                     "--augment.flip", "random", "--augment.min_crop_scale", 0.5, "--out", run)  # fmt: skip
    assert done.code == 0, done.err
    image, wrong = folder / "bright" / "1.npy", tmp_path / "wrong.npy"
    wrong.write_bytes(npy(values_of(3)))
    predicted = googlenet("predict", run, image, folder / "dark" / "2.tif", "--json")
    assert predicted.code == 0, predicted.err
    assert "50x40 5 channels" in predicted.out
    bad = googlenet("predict", run, wrong)
    assert bad.code == 1 and "3 channels, and the network takes 5" in bad.err and bad.err.count("\n") == 1
    assert googlenet("explain", run, image, "--methods", "gradcam", "--out", tmp_path / "explained").code == 0
    done = googlenet("export", run, "--format", "onnx", "--out", out)
    assert done.code == 0, done.err
    assert json.loads((out / "model.json").read_text())["input"]["channels"] == 5
    exported = googlenet("predict", out, image, "--json")
    assert exported.code == 0, exported.err
    with run_server(str(run)) as server:
        import httpx

        answer = httpx.post(f"{server.url}/v1/predict", files={"image": ("1.npy", image.read_bytes())}, timeout=60)
        assert answer.status_code == 200, answer.text
        assert "5 channels" in answer.text
        refused = httpx.post(f"{server.url}/v1/predict", files={"image": ("w.npy", wrong.read_bytes())}, timeout=60)
        assert refused.status_code == 422 and "3 channels, and the network takes 5" in refused.text
