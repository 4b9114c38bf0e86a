"""Images of more than 8 bits per channel are scaled by one range; the files are written here byte by byte."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from googlenet.data.dataset import Dataset
from googlenet.data.decode import decode_image
from googlenet.data.pixel_range import white_value
from googlenet.data.preprocess import Preprocess
from googlenet.data.sources import LoadOptions, load_dataset
from googlenet.data.sources.webdataset import write_shards


def png16(values: NDArray[np.generic], significant_bits: int | None = None) -> bytes:
    """Encode (h, w, 1, 2, 3 or 4) as PNG with 16 bits per channel."""
    height, width, channels = values.shape

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    bits = b"" if significant_bits is None else chunk(b"sBIT", bytes([significant_bits] * channels))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + bits + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(data: bytes, width: int, height: int, bits: int, **tags: int) -> bytes:
    """Encode one uncompressed gray strip, little-endian."""
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: tags.get("photometric", 1), 273: 0, 277: 1,
               278: height, 279: len(data)}  # fmt: skip
    entries |= {341: tags["maximum"]} if "maximum" in tags else {}
    entries[273] = 8 + 2 + 12 * len(entries) + 4
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, entries[tag]) for tag in sorted(entries))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + rows + bytes(4) + data


def pack_12_bits(values: NDArray[np.generic]) -> bytes:
    pairs = values.reshape(-1, 2).astype(int)
    return b"".join(bytes((a >> 4, (a & 15) << 4 | b >> 8, b & 255)) for a, b in pairs.tolist())


def pgm(values: NDArray[np.generic], maximum: int, plain: bool = False) -> bytes:
    height, width = values.shape
    body = " ".join(map(str, values.ravel().tolist())).encode() if plain else values.astype(">u2").tobytes()
    return b"P%d\n%d %d\n%d\n" % (2 if plain else 5, width, height, maximum) + body


def float_tiff(values: NDArray[np.generic]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(values.astype(np.float32)).save(content, "TIFF")
    return content.getvalue()


def random_values(maximum: int, *shape: int) -> NDArray[np.int64]:
    values = np.random.default_rng(maximum).integers(0, maximum + 1, shape)
    values.flat[0] = maximum
    return values


def assert_scaled(content: bytes, values: NDArray[np.generic], white: float, max_value: float | None = None) -> None:
    decoded = np.asarray(decode_image(content, max_value=max_value), np.float64).reshape(values.shape)
    np.testing.assert_allclose(decoded, (values * (255 / white)).clip(0, 255), atol=0.51)


@pytest.mark.parametrize(
    ("maximum", "is_float", "white"),
    [(0, False, 255), (255, False, 255), (256, False, 1023), (1024, False, 4095), (5000, False, 65535),
     (70_000, False, 131_071), (0.3, True, 1), (1.0, True, 1), (1.5, True, 255), (4095, True, 4095)],
)  # fmt: skip
def test_white_is_the_smallest_bit_depth_that_holds_the_maximum(maximum: float, is_float: bool, white: float) -> None:
    assert white_value(maximum, is_float) == white


@pytest.mark.parametrize(("maximum", "white"), [(200, 255), (1000, 1023), (4000, 4095), (60_000, 65_535)])
@pytest.mark.parametrize("channels", [1, 3])
def test_all_bits_of_gray_and_color_are_used(maximum: int, white: int, channels: int) -> None:
    """Pillow itself reads only the upper 8 of 16 bits of a color image."""
    values = random_values(maximum, 20, 30, channels)
    assert_scaled(png16(values), values, white)
    assert_scaled(png16(values), values, 2 * white, max_value=2 * white)
    assert_scaled(png16(values), values, maximum / 2, max_value=maximum / 2)  # Larger values are clipped.
    if channels == 1:
        for order, mode in (("<u2", "I;16"), (">u2", "I;16B")):
            content = io.BytesIO()
            Image.frombytes(mode, (30, 20), values.astype(order).tobytes()).save(content, "TIFF")
            assert_scaled(content.getvalue(), values[..., 0], white)


@pytest.mark.parametrize("channels", [2, 4])
def test_deep_alpha_is_composited_over_white(channels: int) -> None:
    values = random_values(4095, 8, 9, channels)
    values[..., -1] = 65535
    values[0, 0, -1] = 0
    decoded = np.asarray(decode_image(png16(values)), float).reshape(8, 9, channels - 1)
    expected = values[..., :-1] * (255 / 4095)
    expected[0, 0] = 255
    np.testing.assert_allclose(decoded, expected, atol=0.51)


@pytest.mark.parametrize(("bits", "maximum"), [(12, 1500), (10, 300), (14, 4000)])
def test_png_significant_bits(bits: int, maximum: int) -> None:
    values = random_values(maximum, 7, 5, 1)
    assert_scaled(png16(values, bits), values, 2**bits - 1)
    # As the specification requires: the upper bits, followed by zeros or by the first bits again.
    for filled in (values << (16 - bits), values << (16 - bits) | values >> (2 * bits - 16)):
        assert_scaled(png16(filled, bits), filled, 65535)


def test_tiff_declarations() -> None:
    values = random_values(900, 6, 8)
    assert_scaled(tiff(pack_12_bits(values), 8, 6, 12), values, 4095)
    deep = values.astype("<u2").tobytes()
    assert_scaled(tiff(deep, 8, 6, 16, maximum=2000), values, 2000)
    assert_scaled(tiff(deep, 8, 6, 16, maximum=2000), values, 3000, max_value=3000)
    assert_scaled(tiff(deep, 8, 6, 16, photometric=0), 1023 - values, 1023)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("maximum", [1023, 3000, 4095])
def test_pgm_maximum(maximum: int, plain: bool) -> None:
    values = random_values(maximum // 4, 6, 8)
    assert_scaled(pgm(values, maximum, plain), values, maximum)
    assert_scaled(pgm(values, maximum, plain), values, 500, max_value=500)


def test_floats() -> None:
    values = np.random.default_rng(1).random((9, 7))
    for scale, white in ((1.0, 1), (200.0, 255), (3000.0, 4095)):
        assert_scaled(float_tiff(values * scale), values * scale, white)
    odd = np.array([[np.nan, np.inf, -np.inf, -5.0, 0.5, 1.0]])
    assert np.asarray(decode_image(float_tiff(odd))).tolist() == [[0, 255, 0, 0, 128, 255]]


def tree(root: Path, images: dict[str, bytes]) -> Path:
    for name, content in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def load(root: Path, kind: str = "folder", **options: object) -> Dataset:
    return load_dataset(f"{kind}:{root}", LoadOptions(validation=0, size=10, **options))


def pixels(data: Dataset) -> NDArray[np.float64]:
    """Return all training images by name, gray."""
    (images,) = data.train.pixels([torch.arange(len(data.train.labels))])
    order = np.argsort(list(data.train.names))
    return images.numpy()[order, 0].astype(np.float64)


@pytest.mark.parametrize("maximum", [900, 4000])
@pytest.mark.parametrize("kind", ["in memory", "lazy", "shards"])
def test_the_images_of_a_data_set_are_scaled_alike(tmp_path: Path, cache: Path, maximum: int, kind: str) -> None:
    bright, dark = random_values(maximum, 10, 10, 1), random_values(200, 10, 10, 1)
    root = tree(tmp_path / "data", {"a/0.png": png16(bright), "b/0.png": png16(dark)})
    if kind == "shards":
        write_shards(str(root), str(tmp_path / "shards"))
        data = load(tmp_path / "shards", "shards")
    else:
        data = load(root, in_memory=kind == "in memory")
    white = white_value(maximum, False)
    assert data.max_value == white
    expected = np.stack([bright[..., 0], dark[..., 0]]) * (255 / white)
    np.testing.assert_allclose(pixels(data), expected, atol=0.51)
    again = load(root, max_value=2 * white)
    np.testing.assert_allclose(pixels(again), expected / 2, atol=0.51)


def test_the_range_is_that_of_the_training_images(tmp_path: Path) -> None:
    root = tree(tmp_path, {
        f"{split}/{label}/0.png": png16(random_values(maximum, 10, 10, 1))
        for split, maximum in (("train", 1000), ("val", 9000)) for label in "ab"
    })  # fmt: skip
    data = load(root)
    assert data.max_value == 1023
    assert data.validation.images.min() >= 0
    assert (np.asarray(data.validation.images) == 255).mean() > 0.7  # Larger values are clipped.


def test_no_range_for_8_bits_or_declared_ranges(tmp_path: Path) -> None:
    values = random_values(900, 10, 10)
    declared = {f"{label}/0.pgm": pgm(values, 3000) for label in "ab"}
    assert load(tree(tmp_path / "declared", declared)).max_value is None
    content = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(content, "PNG")
    assert load(tree(tmp_path / "plain", dict.fromkeys(("a/0.png", "b/0.png"), content.getvalue()))).max_value is None
    mixed = {"a/0.png": png16(random_values(900, 10, 10, 1)), "b/0.pgm": pgm(values, 3000)}
    assert load(tree(tmp_path / "mixed", mixed)).max_value == 3000


def test_floats_in_0_1_beside_integers_are_an_error(tmp_path: Path) -> None:
    values = random_values(900, 10, 10, 1)
    root = tree(tmp_path, {"a/0.png": png16(values), "b/0.tif": float_tiff(values[..., 0] / 900)})
    with pytest.raises(ValueError, match="max_value"):
        load(root)
    assert load(root, max_value=900).max_value == 900


def test_preprocess_uses_its_range(tmp_path: Path) -> None:
    values = random_values(500, 10, 10, 1)
    image = Image.fromarray(values[..., 0].astype(np.uint16))
    for white in (1023, 4095):
        preprocess = Preprocess(10, 1, (0.0,), (1.0,), max_value=white)
        assert Preprocess.from_dict(preprocess.to_dict()) == preprocess
        batch, _ = preprocess.from_pil(image)
        np.testing.assert_allclose(batch[0, 0].numpy(), values[..., 0] / white, atol=0.003)
    old = {key: value for key, value in preprocess.to_dict().items() if key != "max_value"}
    assert Preprocess.from_dict(old).max_value is None
    with pytest.raises(ValueError, match="max_value"):
        Preprocess(10, 1, (0.0,), (1.0,), max_value=0)
