"""Split folders in their common forms, wrapper folders, links, and Unicode forms of class folders."""

import os
import subprocess
import sys
import threading
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from googlenet.data.accounting import Accounting
from googlenet.data.dataset import Dataset
from googlenet.data.decode import SUFFIXES, ImageError, decode_pixels
from googlenet.data.image_files import HEIF_SUFFIXES, image_files
from googlenet.data.sources import LoadOptions, load_dataset
from googlenet.data.sources.folder import image_tree
from googlenet.data.sources.imagenet import classes_match
from googlenet.data.sources.splits import split_name
from googlenet.inference.predict import expand_paths


def write(root: Path, *folders: str, count: int = 2) -> Path:
    """Write `count` images to each of the folders, which are paths relative to `root`."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("L", (6, 6), 20 * number).save(root / folder / f"{number}.png")
    return root


def load(root: Path, **options: Any) -> Dataset:
    return load_dataset(f"folder:{root}", LoadOptions(**{"size": 4, "validation": 0, "num_workers": 0} | options))


def sizes(data: Dataset) -> list[int]:
    return [len(data.train), len(data.validation), len(data.test)]


@pytest.mark.parametrize(("split", "names"), [
    ("train", "train Train TRAINING training seg_train train_set train-data train2017 train_1 trainset"),
    ("validation", "val valid Validation dev val2017 valid_set seg_val VAL validation_data val_images"),
    ("test", "test Testing eval test1 seg_test test_images testset TEST2019"),
    (None, "cat test_tube steam_train trainer latest validate contest training_shoes 2017 data images bullet-train"),
])  # fmt: skip
def test_split_names(split: str | None, names: str) -> None:
    assert {name: split_name(name) for name in names.split()} == dict.fromkeys(names.split(), split)


@pytest.mark.parametrize(
    "names", ["train valid test", "Training Testing", "seg_train dev seg_test", "train2017 val2017"]
)
def test_splits_are_found_in_their_common_forms(tmp_path: Path, names: str) -> None:
    for name in names.split():
        write(
            tmp_path,
            f"{name}/cat",
            f"{name}/dog",
            count={"train": 4, "validation": 3, "test": 2}[str(split_name(name))],
        )
    data = load(tmp_path, validation=0.3)
    found = {split_name(name) for name in names.split()}
    assert data.classes == ("cat", "dog")
    assert sizes(data) == ([8, 6] if "validation" in found else [6, 2]) + [4 if "test" in found else 0]
    held_out = ["no validation images: 2 of the 8 training images are held out"]
    assert data.skipped == ([] if "validation" in found else held_out)


@pytest.mark.parametrize("names", ["train test1", "Training valid", "train val test"])
def test_split_folders_are_never_classes(tmp_path: Path, names: str) -> None:
    """All of the folders are flat."""
    train, *others = names.split()
    write(tmp_path, train, *others)
    with pytest.raises(
        ValueError, match=rf"{train}: no class folders .*{', '.join(sorted(others))} beside it.*one folder per"
    ):
        load(tmp_path)


@pytest.mark.parametrize("names", ["val test", "valid Testing"])
def test_splits_without_training_images_are_an_error(tmp_path: Path, names: str) -> None:
    for name in names.split():
        write(tmp_path, f"{name}/cat", f"{name}/dog")
    with pytest.raises(ValueError, match="no training folder; name one of them train"):
        load(tmp_path)
    assert load(tmp_path / names.split()[0]).classes == ("cat", "dog")


def test_two_training_folders_are_an_error_and_two_test_folders_are_named(tmp_path: Path) -> None:
    write(tmp_path, "train/a", "train/b", "test/a", "test/b", "test2/a", "eval/b")
    data = load(tmp_path)
    assert sizes(data) == [4, 0, 4]
    assert data.skipped[0].startswith("4 files excluded: in a second folder of the same split (")
    write(tmp_path, "train2/a", "train2/b")
    with pytest.raises(ValueError, match="train and train2 are both training folders"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["train", "test", "dev"])
def test_a_class_may_have_the_name_of_a_split(tmp_path: Path, name: str) -> None:
    """Beside at least two other folders with images, one folder is a class, also if it has subfolders."""
    write(tmp_path, "car", "plane", f"{name}/steam", f"{name}/diesel")
    data = load(tmp_path)
    assert set(data.classes) == {"car", "plane", name} and sizes(data)[0] == 8
    assert [note for note in data.accounting.notes if f"{name}: a class" in note]


def test_a_training_folder_beside_one_folder_is_the_training_split(tmp_path: Path) -> None:
    write(tmp_path, "train/a", "train/b", "unlabeled", count=3)
    data = load(tmp_path)
    assert data.classes == ("a", "b") and sizes(data) == [6, 0, 0]
    assert (
        "3 files excluded: in a folder next to the splits" in data.skipped[0] and "unlabeled/0.png" in data.skipped[0]
    )


@pytest.mark.parametrize(("name", "expected"), [("val", [4, 4, 0]), ("Testing", [4, 0, 4])])
def test_a_split_of_the_same_classes_beside_them_is_a_split(tmp_path: Path, name: str, expected: list[int]) -> None:
    write(tmp_path, "cat", "dog", f"{name}/cat", f"{name}/dog")
    assert load(tmp_path).classes == ("cat", "dog") and sizes(load(tmp_path)) == expected


@pytest.mark.parametrize("name", ["test", "val", "test1"])
def test_a_flat_split_does_not_stop_training(tmp_path: Path, name: str) -> None:
    write(tmp_path, "train/cat", "train/dog", name)
    data = load(tmp_path, on_error="raise")
    assert sizes(data) == [4, 0, 0]
    assert data.accounting.num_excluded("file") == 2 and "in a split without class folders" in data.skipped[0]
    assert any("not used as the" in note for note in data.accounting.notes)


@pytest.mark.parametrize(("folders", "expected"), [
    (("photos/photos/cat", "photos/photos/dog"), [4, 0, 0]),
    (("photos/cat", "photos/dog", "photos/__MACOSX"), [4, 0, 0]),
    (("seg_train/seg_train/cat", "seg_train/seg_train/dog", "seg_test/seg_test/cat"), [4, 0, 2]),
    (("data/train/cat", "data/train/dog", "data/val/images/cat", "data/val/images/dog"), [4, 4, 0]),
    (("train/cat", "train/dog", "val/cat/young", "val/cat/old"), [4, 4, 0]),
])  # fmt: skip
def test_wrapper_folders_are_entered(tmp_path: Path, folders: tuple[str, ...], expected: list[int]) -> None:
    data = load(write(tmp_path, *folders))
    assert data.classes == ("cat", "dog") and sizes(data) == expected


def test_linked_folders_are_followed_without_cycles(tmp_path: Path) -> None:
    write(tmp_path, "p/cat", "p/dog", "elsewhere/deep")
    (tmp_path / "p" / "dog" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "p" / "bird").symlink_to(tmp_path / "elsewhere" / "deep")
    for name, target in (("up", tmp_path), ("own", tmp_path / "p" / "cat"), ("root", tmp_path / "p")):
        (tmp_path / "p" / "cat" / name).symlink_to(target)
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "p" / "cat" / "loop.png").symlink_to(tmp_path / "p" / "cat" / "loop.png")
    data = load(tmp_path / "p")
    assert data.classes == ("bird", "cat", "dog") and data.train.labels.bincount().tolist() == [2, 2, 4]
    links = {reason: item for (kind, reason), item in data.accounting.excluded.items() if kind == "link"}
    assert links["link to a folder that contains it"].count == 4 and links["broken link"].count == 1
    assert links["broken link"].examples == [str(tmp_path / "p" / "cat" / "loop.png")]


@pytest.mark.parametrize("name", ["caf\u00e9", "th\u00e9 vert", "\u1ee5 x"])
def test_class_names_are_compared_in_one_unicode_form(tmp_path: Path, name: str) -> None:
    nfc, nfd = unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)
    assert nfc != nfd
    write(
        tmp_path,
        f"a/train/{nfc}",
        "a/train/x",
        f"a/val/{nfd}",
        "a/val/x",
        f"b/{nfd}",
        "b/x",
        f"c/{nfc}",
        f"c/{nfd} ",
        "c/x",
    )
    data, decomposed, both = (load(tmp_path / folder) for folder in "abc")
    assert data.classes == decomposed.classes == both.classes and nfc in data.classes
    assert sizes(data) == [4, 4, 0] and sizes(both) == [6, 0, 0]
    assert not [*data.skipped, *both.skipped]
    assert classes_match(data, [unicodedata.normalize("NFD", each) for each in data.classes])
    assert not classes_match(data, data.classes[::-1])


@pytest.mark.parametrize(
    "suffix", [".pcx", ".j2k", ".JPX", ".j2c", ".dds", ".sgi", ".xbm", ".qoi", ".apng", ".dib", ".mpo"]
)
def test_formats_of_pillow(tmp_path: Path, suffix: str) -> None:
    write(tmp_path, "a", "b")
    Image.new("1" if suffix == ".xbm" else "RGB", (6, 6), 1).save(tmp_path / "a" / "x.png")
    with Image.open(tmp_path / "a" / "x.png") as image:
        image.save(tmp_path / "a" / f"y{suffix}")
    data = load(tmp_path, on_error="raise")
    assert sizes(data) == [6, 0, 0] and str(tmp_path / "a" / f"y{suffix}") in data.train.names


def test_suffixes_are_those_of_raster_formats_that_pillow_reads() -> None:
    formats = {Image.registered_extensions().get(suffix) for suffix in SUFFIXES}
    assert formats - {None} <= {*Image.OPEN, "MPO"} and not formats & {
        "EPS",
        "PDF",
        "WMF",
        "HDF5",
        "GRIB",
        "BUFR",
        "MPEG",
    }


@pytest.mark.parametrize("name", ["scan", "IMG.0001", "Dr. No"])
def test_files_without_a_suffix_are_read_by_content(tmp_path: Path, name: str) -> None:
    write(tmp_path, "a", "b")
    for suffix, label in (("PNG", "a"), ("JPEG", "b")):
        Image.new("L", (6, 6), 200).save(tmp_path / label / name, suffix)
    (tmp_path / "a" / "LICENSE").write_text("no image")
    data = load(tmp_path)
    assert sizes(data) == [6, 0, 0] and data.skipped[0].startswith("1 file excluded: no suffix, and not an image (")


def test_prediction_uses_the_same_files_and_names_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without the library that reads HEIF images."""
    monkeypatch.setattr("googlenet.data.image_files.SUFFIXES", SUFFIXES - HEIF_SUFFIXES)
    write(tmp_path, "a", "b")
    for name in ("scan", "old.pcx"):
        Image.new("L", (6, 6)).save(tmp_path / "a" / name, "PCX" if "." in name else "PNG")
    for name in ("x.HEIC", "x.nef", "x.svg", ".DS_Store"):
        (tmp_path / "a" / name).write_bytes(b"x")
    paths = expand_paths([str(tmp_path), "-", "named.txt"])
    text = capsys.readouterr().err
    assert sorted(load(tmp_path).train.names) == paths[:6] and paths[6:] == ["-", "named.txt"]
    for reason in ("HEIF image: convert it", "camera raw file: convert it", "unsupported suffix .svg", "hidden"):
        assert f"1 file excluded: {reason}" in text
    accounting = Accounting()
    assert len(list(image_files(tmp_path, accounting))) == 6 and accounting.encountered("file") == 10


def test_heif_images_are_read_with_their_library(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    write(tmp_path, "a", "b")
    pillow_heif.from_pillow(Image.new("RGB", (64, 64), "red")).save(tmp_path / "a" / "x.HEIC")
    assert sizes(load(tmp_path, on_error="raise")) == [5, 0, 0]


def test_a_heif_library_that_cannot_be_loaded_is_like_none(tmp_path: Path) -> None:
    (tmp_path / "pillow_heif.py").write_text("raise ImportError('libheif.so: cannot open shared object file')")
    code = "from googlenet.data import decode; print(decode.READS_HEIF, '.heic' in decode.SUFFIXES)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_the_first_unusable_image_stops_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With on_error raise, images that wait for a thread are not decoded after an error."""
    write(tmp_path, "a", "b", count=60)
    (tmp_path / "a" / "0.png").write_text("no image")
    decoded, stopped = [], threading.Event()

    def decode(path: Path, *arguments: Any, **options: Any) -> Any:
        decoded.append(path)
        if path.name != "0.png" or path.parent.name != "a":
            stopped.wait(60)
        return decode_pixels(path, *arguments, **options)

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            stopped.set()
            super().shutdown(wait=wait)

    monkeypatch.setattr("googlenet.data.sources.folder.decode_pixels", decode)
    monkeypatch.setattr("googlenet.data.sources.folder.ThreadPoolExecutor", lambda: Pool(2))
    with pytest.raises(ImageError, match="a/0.png"):
        load(tmp_path, on_error="raise")
    assert len(decoded) <= 3


@pytest.mark.parametrize("in_memory", [True, False])
def test_the_mode_does_not_change_the_accounting(tmp_path: Path, in_memory: bool, cache: Path) -> None:
    write(tmp_path, "p/a", "p/b")
    (tmp_path / "p" / "a" / "x.png").write_text("no image")
    accounting = load(tmp_path / "p", in_memory=in_memory).accounting
    assert accounting.used == {"file": 4} and accounting.num_excluded("file") == 1


def test_a_tree_without_images_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a\nb").mkdir()
    (tmp_path / "a\nb" / "x.txt").write_text("x")
    with pytest.raises(ValueError, match="needs at least two folders") as error:
        image_tree(tmp_path)
    assert "\n" not in str(error.value)


def test_image_files_are_sorted_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "sub/c.webp", ".hidden/d.png", "notes.txt", "._e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    accounting = Accounting()
    assert [p.name for p in image_files(tmp_path, accounting)] == ["a.jpg", "b.PNG", "c.webp"]
    assert accounting.used == {"file": 3} and accounting.num_excluded("file") == 3
