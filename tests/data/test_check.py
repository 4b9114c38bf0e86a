"""`googlenet check` finds every image that cannot be read, in all kinds of sources."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from conftest import googlenet
from googlenet.data.sources.webdataset import write_shards


@pytest.fixture
def photos(tmp_path: Path, cache: Path) -> Path:
    for label, count in (("cat", 4), ("dog", 3)):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(count):
            pixels = torch.randint(0, 256, (40, 50, 3), dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{number}.png")
    return tmp_path / "photos"


def test_a_sound_folder(photos: Path) -> None:
    (photos / "notes.txt").write_text("x")
    done = googlenet("check", photos)
    assert (done.code, done.err) == (0, "")
    assert f"folder:{photos}: 2 classes, color" in done.out
    assert "train: 7 images, from 3 of dog to 4 of cat" in done.out
    assert "1 file excluded: unsupported suffix .txt" in done.out
    document = googlenet("check", f"folder:{photos}", "--json").json
    assert document["splits"] == {"train": {"images": 7, "labels": [4, 3]}} and document["unreadable"] == {}


def test_every_unreadable_image_is_named(photos: Path) -> None:
    paths = [*sorted((photos / "cat").iterdir())[:3], photos / "dog" / "1.png"]
    for path in paths[:3]:
        path.write_bytes(path.read_bytes()[:-200])
    paths[3].write_bytes(b"")
    for _ in range(2):  # also with the cached results of the first check
        done = googlenet("check", photos, "--json")
        assert done.code == 1 and set(done.json["unreadable"]) == set(map(str, paths))
        assert done.err == "googlenet check: 4 of 7 images cannot be read: replace or delete them\n"
        assert done.json["splits"]["train"]["labels"] == [1, 2]
    assert f"cannot be read: {paths[0]}: damaged image (" in googlenet("check", photos).out


def test_shards_and_boxes(photos: Path, tmp_path: Path) -> None:
    write_shards(photos, tmp_path / "shards")
    assert "train: 7 images" in googlenet("check", f"shards:{tmp_path / 'shards'}").out
    yolo = tmp_path / "yolo"
    for folder in ("images/train", "labels/train"):
        (yolo / folder).mkdir(parents=True)
    (yolo / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [cat, dog]\n")
    for number in range(2):
        Image.new("RGB", (40, 30)).save(yolo / "images" / "train" / f"{number}.png")
        (yolo / "labels" / "train" / f"{number}.txt").write_text("1 0.5 0.5 0.2 0.2\n")
    document = googlenet("check", f"yolo:{yolo}", "--json").json
    assert document["classes"] == ["cat", "dog"] and document["splits"]["train"] == {"images": 2, "labels": [0, 2]}


@pytest.mark.parametrize(
    ("data", "message"),
    [("missing", "missing: no such folder"), ("folder:photos/cat", "needs at least two folders, one per class")],
)
def test_bad_input_is_a_one_line_error(photos: Path, data: str, message: str) -> None:
    done = googlenet("check", data, cwd=photos.parent)
    assert done.code == 1 and done.out == ""
    assert message in done.err and done.err.count("\n") == 1
