"""Every kind of image file, written with Pillow, is decoded to the pixels that it shows."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from googlenet.data.decode import ImageError, decode_image, to_tensor

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
        (empty, "not an image"),
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
