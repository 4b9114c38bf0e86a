"""Every kind of image file, written with Pillow, is decoded to the pixels that it shows."""

import io
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torchvision.transforms import v2

from googlenet.data.decode import (
    TRANSPOSE_METHODS,
    ImageError,
    decode_image,
    decode_to_tensor,
    to_gray_or_rgb,
    to_tensor,
)
from googlenet.data.preprocess import Preprocess

RAMP = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_gray_and_rgb_are_kept(tmp_path: Path) -> None:
    gray = decode_image(saved(tmp_path / "g.png", Image.fromarray(RAMP)))
    assert gray.mode == "L"
    assert np.array_equal(np.asarray(gray), RAMP)
    rgb = np.stack([RAMP, RAMP[::-1], 255 - RAMP], -1)
    assert np.array_equal(np.asarray(decode_image(saved(tmp_path / "c.png", Image.fromarray(rgb)))), rgb)


def test_sixteen_bit_gray_is_scaled(tmp_path: Path) -> None:
    deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
    for suffix in ("png", "tif"):
        assert np.array_equal(np.asarray(decode_image(saved(tmp_path / f"d.{suffix}", deep))), RAMP)


def test_float_gray_is_scaled(tmp_path: Path) -> None:
    image = Image.fromarray((RAMP / 255).astype(np.float32))
    assert np.array_equal(np.asarray(decode_image(saved(tmp_path / "f.tif", image))), RAMP)


def test_palette_and_its_transparency(tmp_path: Path) -> None:
    rgb = np.zeros((4, 4, 3), np.uint8)
    rgb[:2] = (200, 30, 60)
    palette = Image.fromarray(rgb).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    assert decode_image(saved(tmp_path / "p.png", palette)).getpixel((0, 0)) == (200, 30, 60)
    transparent = saved(tmp_path / "t.png", palette, transparency=palette.getpixel((0, 0)))
    assert decode_image(transparent).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(("mode", "pixel", "expected"), [("RGBA", (0, 0, 0, 0), (255,) * 3), ("LA", (0, 0), 255)])
def test_transparency_is_composited_over_white(tmp_path: Path, mode: str, pixel: object, expected: object) -> None:
    assert decode_image(saved(tmp_path / "a.png", Image.new(mode, (3, 3), pixel))).getpixel((1, 1)) == expected


@pytest.mark.parametrize(("mode", "color"), [("RGB", (10, 20, 30)), ("L", 7)])
def test_a_transparent_color_is_composited_over_white(tmp_path: Path, mode: str, color: object) -> None:
    image = decode_image(saved(tmp_path / "t.png", Image.new(mode, (3, 3), color), transparency=color))
    assert image.mode == mode
    assert image.getpixel((1, 1)) == ((255, 255, 255) if mode == "RGB" else 255)


@pytest.mark.parametrize("mode", ["1", "CMYK"])
def test_other_modes(tmp_path: Path, mode: str) -> None:
    image = decode_image(saved(tmp_path / "m.tif", Image.new(mode, (5, 5))))
    assert image.mode == ("L" if mode == "1" else "RGB")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    """The stored pixels are transposed as the tag says, so the decoded image is the same for every tag."""
    upright = Image.new("L", (40, 24), 20)
    upright.paste(230, (0, 0, 16, 8))
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transpose that creates the stored pixels
    stored = upright.transpose(Image.Transpose(inverse[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(saved(tmp_path / "e.jpg", stored, exif=exif, quality=95))
    assert decoded.size == (40, 24)
    assert np.abs(np.asarray(decoded, int) - np.asarray(upright, int)).mean() < 4


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    path = saved(tmp_path / "x.gif", frames[0], save_all=True, append_images=frames[1:])
    assert decode_image(path).getpixel((0, 0)) == (255, 0, 0)


def test_errors_contain_the_file_and_the_reason(tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("not an image")
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(buffer, "JPEG")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    bomb = saved(tmp_path / "bomb.png", Image.new("1", (20_000, 20_000)))
    empty = tmp_path / "empty.png"
    empty.touch()
    for path, reason in (
        (text, "not an image"),
        (cut, "damaged"),
        (bomb, "pixels"),
        (empty, "an empty file"),
        (tmp_path / "missing.png", "no such file"),
        (tmp_path, "folder"),
    ):
        with pytest.raises(ImageError, match=reason) as raised:
            decode_image(path)
        assert str(path) in str(raised.value)


def test_to_tensor_channels() -> None:
    image = Image.fromarray(RAMP)
    assert to_tensor(image, 1).shape == (1, 6, 8)
    assert to_tensor(image, 3).shape == (3, 6, 8)
    with pytest.raises(ImageError, match="5 channels"):
        to_tensor(image, 5)


def jpeg(image: Image.Image, exif: bytes = b"") -> bytes:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=95, exif=exif)
    return content.getvalue()


def with_orientation(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = orientation, "a description", 72.0
    return exif.tobytes()


def test_damaged_exif_does_not_exclude_an_image(tmp_path: Path) -> None:
    """Every byte of the block is changed or cut off in turn; the pixels stay those of one of the orientations."""
    image = Image.fromarray(np.add.outer(np.arange(24), 3 * np.arange(16)).astype(np.uint8))
    exif = with_orientation(6)
    methods = [None, *Image.Transpose]
    plain = [decode_image(jpeg(image))] * len(methods)
    allowed = {
        image.tobytes() for image in (p if m is None else p.transpose(m) for p, m in zip(plain, methods, strict=True))
    }
    damaged = [exif[:6] + exif[6:][:length] for length in range(len(exif) - 6)]
    damaged += [exif[:i] + bytes([value]) + exif[i + 1 :] for i in range(6, len(exif)) for value in (0, 7, 255)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for block in damaged:
            assert decode_image(jpeg(image, block)).tobytes() in allowed
            decoded = decode_to_tensor(jpeg(image, block), 1, "x.jpg", 24)
            assert decoded.shape[1:] in ((24, 16), (16, 24))
        for key in ("exif", "Raw profile type exif"):
            for text in (b"\xff\xfe", exif[:20], b"\nexif\n  9\nzz"):
                info = PngInfo()
                info.add_text(key, text.decode("latin-1"), zip=True)
                content = io.BytesIO()
                image.save(content, "PNG", pnginfo=info, **({"exif": text} if key == "exif" else {}))
                assert np.array_equal(np.asarray(decode_image(content.getvalue())), np.asarray(image))


def test_warnings_of_pillow_are_not_printed_without_a_file_name() -> None:
    image, exif = Image.fromarray(RAMP), with_orientation(1)
    broken = jpeg(image, exif[: len(exif) // 2])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ThreadPoolExecutor(4) as pool:  # Changed filters would be those of all threads.
            list(pool.map(decode_image, [broken] * 40))
    assert not caught


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["tif", "png", "webp"])
def test_orientation_of_other_formats_is_applied_once(tmp_path: Path, orientation: int, suffix: str) -> None:
    stored = Image.fromarray(np.arange(6 * 4, dtype=np.uint8).reshape(4, 6) * 10)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"o.{suffix}", stored, exif=exif, **options)
    method = TRANSPOSE_METHODS.get(orientation)
    expected = np.asarray(stored if method is None else stored.transpose(method))
    assert np.array_equal(np.asarray(decode_image(path).convert("L")), expected)


@pytest.mark.parametrize("cut", [1, 2, 3, 40])
def test_a_truncated_jpeg_is_an_error(cut: int) -> None:
    content = jpeg(Image.fromarray(np.random.default_rng(cut).integers(0, 255, (64, 64), np.uint8)))
    with pytest.raises(ImageError, match=r"x\.jpg: damaged"):
        decode_image(content[:-cut], "x.jpg")


def test_cmyk_jpeg_of_adobe_is_inverted() -> None:
    """Pillow writes an Adobe marker and inverted values, as Photoshop does."""
    for ink, expected in (((0, 0, 0, 0), 255), ((0, 0, 0, 255), 0), ((0, 0, 0, 100), 155)):
        content = jpeg(Image.new("CMYK", (16, 16), ink))
        assert b"Adobe" in content
        assert np.abs(np.asarray(decode_image(content), int) - expected).max() <= 2


def test_one_bit_and_partial_transparency(tmp_path: Path) -> None:
    bits = RAMP > 100
    for suffix in ("png", "tif", "bmp"):
        path = saved(tmp_path / f"b.{suffix}", Image.fromarray(bits))
        assert np.array_equal(np.asarray(decode_image(path)), bits * 255)
    for alpha in (0, 64, 200, 255):
        path = saved(tmp_path / "la.png", Image.merge("LA", [Image.fromarray(RAMP), Image.new("L", (8, 6), alpha)]))
        expected = RAMP * (alpha / 255) + 255 * (1 - alpha / 255)
        np.testing.assert_allclose(np.asarray(decode_image(path), float), expected, atol=1.01)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_first_frame_of_every_animation(tmp_path: Path, suffix: str) -> None:
    colors = [(200, 10, 30), (10, 200, 30), (30, 10, 200)]
    frames = [Image.new("RGB", (12, 10), color) for color in colors]
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:], **options)
    assert np.unique(np.asarray(decode_image(path)).reshape(-1, 3), axis=0).tolist() == [[200, 10, 30]]


def test_first_image_of_an_mpo(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((16, 24, 3), value, np.uint8)) for value in (30, 220)]
    path = saved(tmp_path / "m.mpo", frames[0], save_all=True, append_images=frames[1:])
    decoded = np.asarray(decode_image(path), int)
    assert decoded.shape == (16, 24, 3)
    assert np.abs(decoded - 30).max() <= 2


@pytest.mark.parametrize(("width", "height", "size"), [(900, 600, 32), (641, 1283, 50), (2000, 300, 32)])
def test_reduced_photographs_stay_within_the_documented_tolerance(width: int, height: int, size: int) -> None:
    """Compare with a full decode, resized with antialiasing by torchvision, for coarse patterns of high contrast."""
    pattern = np.random.default_rng(width).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    photo = Image.fromarray(pattern).resize((width, height), Image.Resampling.BICUBIC)
    content = jpeg(photo)
    preprocess = Preprocess(size, 3, (0.0,) * 3, (1.0,) * 3)
    full = decode_image(content)
    reduced = decode_image(content, min_size=preprocess.min_decode_size())
    assert reduced.width < full.width
    assert min(reduced.size) >= 4 * size
    side = min(full.size)
    crop = v2.functional.center_crop(torch.from_numpy(np.array(full)).permute(2, 0, 1), [side, side]).float()
    expected = v2.functional.resize(crop, [size, size], antialias=True)
    pixels, description = preprocess.from_pil_unnormalized(reduced)
    difference = (pixels[0] - expected).abs()
    assert difference.mean() < 3.5
    assert difference.max() < 16
    assert description == f"{width}x{height} RGB, center {side}x{side}, resized to {size}x{size}"
    rotated = decode_image(jpeg(photo, with_orientation(6)), min_size=preprocess.min_decode_size())
    assert preprocess.from_pil_unnormalized(rotated)[1].startswith(f"{height}x{width} RGB")


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_transparency_is_composited_in_strips(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The strips equal the whole image, also if the last one has fewer rows."""
    alpha = np.random.default_rng(0).integers(0, 256, (23, 10, 4), dtype=np.uint8)
    image = Image.fromarray(alpha).convert(mode)
    if mode == "P":
        image.info["transparency"] = 3
    whole = to_gray_or_rgb(image)
    expected = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert(whole.mode)
    monkeypatch.setattr("googlenet.data.decode.COMPOSITE_PIXELS", 40)
    assert np.array_equal(np.asarray(to_gray_or_rgb(image)), np.asarray(expected))
    assert np.array_equal(np.asarray(whole), np.asarray(expected))
