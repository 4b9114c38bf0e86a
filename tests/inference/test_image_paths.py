"""Names of images on the command line: URLs, names that are too long, a file called -, pipes."""

import io
import os
import threading
from pathlib import Path

import pytest
from PIL import Image

from conftest import call_in_process, googlenet
from googlenet.inference.predict import expand_paths


@pytest.mark.parametrize("url", ["https://example.org/cat.jpg", "s3://bucket/cat.jpg", "file:///home/me/cat.jpg"])
def test_urls_are_named_and_other_images_predicted(url: str, smoke_run: Path, tmp_path: Path) -> None:
    Image.new("L", (28, 28)).save(tmp_path / "a.png")
    done = googlenet("predict", smoke_run, url, tmp_path / "a.png", "--json")
    assert done.code == 1
    assert done.err.splitlines()[0] == f"googlenet predict: {url}: a URL; download the image and name the file"
    assert [item["path"] for item in done.json] == [str(tmp_path / "a.png")]


@pytest.mark.parametrize("name", ["x" * 256 + ".png", "y" * 5000])
def test_a_name_that_is_too_long_stops_no_other(name: str, smoke_run: Path, tmp_path: Path) -> None:
    Image.new("L", (28, 28)).save(tmp_path / "a.png")
    done = googlenet("predict", smoke_run, name, tmp_path / "a.png", "--json")
    assert done.code == 1
    assert f"{name}: cannot be read (File name too long)" in done.err
    assert len(done.json) == 1


def test_a_file_called_dash_is_not_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("-", "-x.png"):
        Image.new("L", (9, 9)).save(tmp_path / name, "PNG")
    monkeypatch.chdir(tmp_path)
    assert expand_paths(["."]) == [os.path.join(".", "-"), "-x.png"]
    assert expand_paths(["-", str(tmp_path)]) == ["-", str(tmp_path / "-"), str(tmp_path / "-x.png")]


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "GIF"])
def test_a_pipe_is_read_like_a_file(format_name: str, smoke_run: Path, tmp_path: Path) -> None:
    """As in ``predict RUN <(curl URL)``."""
    image = Image.effect_noise((28, 28), 90)
    image.save(tmp_path / "file", format_name)
    buffer = io.BytesIO()
    image.save(buffer, format_name)
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(buffer.getvalue()))
    writer.start()
    piped = call_in_process(["predict", str(smoke_run), str(tmp_path / "pipe"), "--json"], None)
    writer.join()
    stored = googlenet("predict", smoke_run, tmp_path / "file", "--json")
    assert piped.json[0]["top"] == stored.json[0]["top"]
