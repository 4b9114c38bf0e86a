"""Every kind of picture file, made here with Pillow, read back to the pixels it shows."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from googlenet.data.pictures import PictureError, picture_files, read_picture, to_tensor

RAMP = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5


def saved(path: Path, picture: Image.Image, **options: object) -> Path:
    picture.save(path, **options)
    return path


def test_grey_and_rgb_are_kept(tmp_path: Path) -> None:
    grey = read_picture(saved(tmp_path / "g.png", Image.fromarray(RAMP)))
    assert grey.mode == "L"
    assert np.array_equal(np.asarray(grey), RAMP)
    rgb = np.stack([RAMP, RAMP[::-1], 255 - RAMP], -1)
    assert np.array_equal(np.asarray(read_picture(saved(tmp_path / "c.png", Image.fromarray(rgb)))), rgb)


def test_sixteen_bit_grey_is_scaled(tmp_path: Path) -> None:
    deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
    for suffix in ("png", "tif"):
        assert np.array_equal(np.asarray(read_picture(saved(tmp_path / f"d.{suffix}", deep))), RAMP)


def test_float_grey_is_scaled(tmp_path: Path) -> None:
    picture = Image.fromarray((RAMP / 255).astype(np.float32))
    assert np.array_equal(np.asarray(read_picture(saved(tmp_path / "f.tif", picture))), RAMP)


def test_palette_and_its_transparency(tmp_path: Path) -> None:
    rgb = np.zeros((4, 4, 3), np.uint8)
    rgb[:2] = (200, 30, 60)
    palette = Image.fromarray(rgb).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    assert read_picture(saved(tmp_path / "p.png", palette)).getpixel((0, 0)) == (200, 30, 60)
    see_through = saved(tmp_path / "t.png", palette, transparency=palette.getpixel((0, 0)))
    assert read_picture(see_through).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(("mode", "pixel", "shown"), [("RGBA", (0, 0, 0, 0), (255,) * 3), ("LA", (0, 0), 255)])
def test_transparency_lies_over_white(tmp_path: Path, mode: str, pixel: object, shown: object) -> None:
    assert read_picture(saved(tmp_path / "a.png", Image.new(mode, (3, 3), pixel))).getpixel((1, 1)) == shown


@pytest.mark.parametrize(("mode", "ink"), [("RGB", (10, 20, 30)), ("L", 7)])
def test_a_transparent_colour_lies_over_white_too(tmp_path: Path, mode: str, ink: object) -> None:
    picture = read_picture(saved(tmp_path / "t.png", Image.new(mode, (3, 3), ink), transparency=ink))
    assert picture.mode == mode
    assert picture.getpixel((1, 1)) == ((255, 255, 255) if mode == "RGB" else 255)


@pytest.mark.parametrize("mode", ["1", "CMYK"])
def test_other_modes(tmp_path: Path, mode: str) -> None:
    picture = read_picture(saved(tmp_path / "m.tif", Image.new(mode, (5, 5))))
    assert picture.mode == ("L" if mode == "1" else "RGB")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_camera_rotation_is_undone(tmp_path: Path, orientation: int) -> None:
    """The stored pixels are turned as the tag says; whoever looks sees the same picture for every tag."""
    upright = Image.new("L", (40, 24), 20)
    upright.paste(230, (0, 0, 16, 8))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpose that the camera's turn amounts to
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = read_picture(saved(tmp_path / "e.jpg", stored, exif=exif, quality=95))
    assert shown.size == (40, 24)
    assert np.abs(np.asarray(shown, int) - np.asarray(upright, int)).mean() < 4


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    path = saved(tmp_path / "x.gif", frames[0], save_all=True, append_images=frames[1:])
    assert read_picture(path).getpixel((0, 0)) == (255, 0, 0)


def test_what_cannot_be_read_is_named_with_its_reason(tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(buffer, "JPEG")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    bomb = saved(tmp_path / "bomb.png", Image.new("1", (20_000, 20_000)))
    empty = tmp_path / "empty.png"
    empty.touch()
    for path, reason in (
        (text, "not a picture"),
        (cut, "damaged"),
        (bomb, "pixels"),
        (empty, "not a picture"),
        (tmp_path / "missing.png", "no such file"),
        (tmp_path, "folder"),
    ):
        with pytest.raises(PictureError, match=reason) as raised:
            read_picture(path)
        assert str(path) in str(raised.value)


def test_to_tensor_channels() -> None:
    picture = Image.fromarray(RAMP)
    assert to_tensor(picture, 1).shape == (1, 6, 8)
    assert to_tensor(picture, 3).shape == (3, 6, 8)
    with pytest.raises(PictureError, match="5 channels"):
        to_tensor(picture, 5)


def test_picture_files_are_found_in_order_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "sub/c.webp", ".hidden/d.png", "notes.txt", "._e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.name for p in picture_files(tmp_path)] == ["a.jpg", "b.PNG", "c.webp"]
