"""Tar files in WebDataset format: writing, finding, reading in place, and error messages."""

import http.server
import io
import json
import re
import sys
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import webdataset
from PIL import Image

import googlenet
from googlenet.config.parse import read_recipe
from googlenet.data.augment import Augment
from googlenet.data.dataset import Dataset, Split
from googlenet.data.decode import ImageError
from googlenet.data.lazy import LazyImages
from googlenet.data.loader import Batch, BatchSpec
from googlenet.data.preprocess import Preprocess
from googlenet.data.sources import LoadOptions, absolute_source, load_dataset
from googlenet.data.sources.webdataset import find_shards, write_shards
from googlenet.training.fit import fit
from googlenet.training.tasks import classification


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "googlenet"


def png(gray: int) -> bytes:
    content = io.BytesIO()
    Image.new("L", (20, 20), gray).save(content, "PNG")
    return content.getvalue()


def tree(root: Path, splits: dict[str, int]) -> Path:
    """Write images of class a (dark) and class b (bright), each with its own gray level."""
    for split, count in splits.items():
        for label, base in (("a", 10), ("b", 150)):
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number:02}.png").write_bytes(png(base + number))
    return root


def tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def load_shards(location: Path | str, **options: object) -> Dataset:
    return load_dataset(f"shards:{location}", LoadOptions(**{"validation": 0, "size": 8, "num_workers": 0, **options}))


def gray_levels(data: Dataset, split: str = "train") -> list[int]:
    images = getattr(data, split).images
    assert isinstance(images, LazyImages)
    return images.read(torch.arange(len(images)))[:, 0, 0, 0].tolist()


def test_a_folder_survives_the_round_trip(tmp_path: Path) -> None:
    tree(tmp_path / "p", {"train": 8, "val": 2, "test": 3})
    written = write_shards(tmp_path / "p", tmp_path / "s", per_shard=5)
    assert [path.name for path in written] == [
        "test-000000.tar", "test-000001.tar", "train-000000.tar", "train-000001.tar", "train-000002.tar",
        "train-000003.tar", "val-000000.tar",
    ]  # fmt: skip
    shards = load_shards(tmp_path / "s")
    folder = load_dataset(f"folder:{tmp_path / 'p'}", LoadOptions(size=8))
    assert (shards.classes, shards.mean, shards.std, shards.channels) == (("a", "b"), folder.mean, folder.std, 1)
    for split in ("train", "validation", "test"):
        original = getattr(folder, split)
        expected = sorted(zip(original.images[:, 0, 0, 0].tolist(), original.labels.tolist(), strict=True))
        assert sorted(zip(gray_levels(shards, split), getattr(shards, split).labels.tolist(), strict=True)) == expected
    labels = shards.train.labels.tolist()
    assert labels != sorted(labels), "a shard read from its beginning shows all classes"
    # webdataset itself reads the shards.
    samples = list(webdataset.WebDataset(str(written[2]), shardshuffle=False))
    assert len(samples) == 5 and samples[0]["png"] in {png(g) for g in (*range(10, 18), *range(150, 158))}


def test_writing_is_reproducible_and_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path / "p", {"train": 4})
    first, second = (write_shards(tmp_path / "p", tmp_path / name, per_shard=3) for name in ("1 %d", "2"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    with pytest.raises(ValueError, match="exists already"):
        write_shards(tmp_path / "p", tmp_path / "2")
    with pytest.raises(ValueError, match="per_shard"):
        write_shards(tmp_path / "p", tmp_path / "3", per_shard=0)
    before = sorted(path.name for path in tmp_path.iterdir())

    def fail(_: Path) -> bytes:
        raise OSError("the disk failed")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(OSError, match="the disk failed"):
        write_shards(tmp_path / "p", tmp_path / "4")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_writing_names_what_is_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Splits and images are those of the folder source, also images without a suffix."""
    tree(tmp_path / "p", {"Training": 2, "valid": 1})
    (tmp_path / "p" / "Training" / "b" / "gone.png").symlink_to("nowhere")
    (tmp_path / "p" / "Training" / "b" / "notes.txt").write_text("x")
    (tmp_path / "p" / "Training" / "a" / "scan").write_bytes(png(7))
    names = [path.name for path in write_shards(tmp_path / "p", tmp_path / "s")]
    assert names == ["train-000000.tar", "val-000000.tar"]
    text = capsys.readouterr().err
    assert "broken link" in text and "gone.png" in text and "unsupported suffix .txt" in text and "notes.txt" in text
    data = load_shards(tmp_path / "s")
    assert sorted(gray_levels(data)) == [7, 10, 11, 150, 151]
    assert not data.accounting.num_excluded("file")


@pytest.mark.slow
def test_a_resumed_run_on_shards_has_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path / "p", {"train": 10, "val": 2})
    write_shards(tmp_path / "p", tmp_path / "s", per_shard=7)
    recipe = read_recipe("fashion-mnist-smoke", [
        f"--data.source=shards:{tmp_path / 's'}", "--size.train=16", "--batch_size=6", "--epochs=3", "--device=cpu",
        "--model.dropout=0.3", "--optimizer.lr=0.001", "--data.num_workers=1", "--checkpoint_every_minutes=1e-9",
    ])  # fmt: skip
    fit(recipe, tmp_path / "full", progress=False)

    training_batch = classification.training_batch

    def interrupted(split: Split, preprocess: Preprocess, augment: Augment, spec: BatchSpec) -> Batch:
        if spec.step == 5:
            raise KeyboardInterrupt
        return training_batch(split, preprocess, augment, spec)

    monkeypatch.setattr(classification, "training_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(recipe, tmp_path / "cut", progress=False)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another cache"))
    fit(recipe, tmp_path / "cut", resume=True, progress=False)
    full, resumed = (googlenet.load(tmp_path / run).model.state_dict() for run in ("full", "cut"))
    assert all(torch.equal(full[key], resumed[key]) for key in full)


def test_labels_and_class_names(tmp_path: Path) -> None:
    files = {
        "x/1.png": png(1), "x/1.cls": b"2\n",
        "2.seg.png": png(99), "2.json": b'{"label": 0}', "2.PNG": png(2),
        "3.json": b'{"cls": "dog"}', "3.png": png(3),
        "__meta__": b"", "4.png": png(4), "4.cls": b"cat",
    }  # fmt: skip
    tar(tmp_path / "imagenet-train-0.tar", files)
    (tmp_path / "classes.txt").write_text("cat\nbird\ndog\n")
    data = load_shards(tmp_path)
    assert data.classes == ("cat", "bird", "dog")
    assert data.train.labels.tolist() == [2, 0, 2, 0]
    assert gray_levels(data) == [1, 2, 3, 4]
    assert data.train.names[0] == "imagenet-train-0.tar/x/1"
    (tmp_path / "classes.json").write_text('{"0": "cat", "1": "bird", "2": "dog"}')
    assert load_shards(tmp_path).classes == ("cat", "bird", "dog")
    (tmp_path / "classes.json").write_text('["cat", "cat"]')
    with pytest.raises(ValueError, match="classes.json: must list each class once"):
        load_shards(tmp_path)
    for name in ("classes.json", "classes.txt"):
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match="labels are names, such as 'cat'.*classes.txt"):
        load_shards(tmp_path)
    tar(tmp_path / "imagenet-train-0.tar", {"1.png": png(1), "1.cls": b"2", "2.png": png(2), "2.cls": b"0"})
    assert load_shards(tmp_path).classes == ("0", "1", "2")


def test_splits_are_found_by_name(tmp_path: Path) -> None:
    others = ("other-val-0", "train-dev-0", "b_eval-0", "contest-train-0")
    for name in ("in-train-0", "in-train-1", "in-validation-0", "in-test-0", *others):
        tar(tmp_path / f"{name}.tar", {})

    def names(location: str) -> dict[str, list[str]]:
        return {split: [Path(path).stem for path in paths] for split, paths in find_shards(location).items()}

    both = {"train": ["in-train-0", "in-train-1"], "validation": ["in-validation-0"], "test": ["in-test-0"]}
    assert names(f"{tmp_path}/in-train-{{0..1}}.tar") == both
    assert names(f"{tmp_path}/in-train-*.tar") == both
    assert names(f"{tmp_path}/in-train-0.tar::{tmp_path}/other-val-0.tar") == {
        "train": ["in-train-0"], "validation": ["other-val-0"], "test": ["in-test-0"],
    }  # fmt: skip
    assert names(str(tmp_path)) == {
        "train": ["contest-train-0", "in-train-0", "in-train-1"], "test": ["b_eval-0", "in-test-0"],
        "validation": ["in-validation-0", "other-val-0", "train-dev-0"],
    }  # fmt: skip
    assert names("https://x.org/a/train-{0..1}.tar::https://x.org/a/val-0.tar") == {
        "train": ["train-0", "train-1"], "validation": ["val-0"], "test": [],
    }  # fmt: skip
    assert absolute_source("shards:a/{0..1}.tar::https://x/y.tar", "/r") == "shards:/r/a/{0..1}.tar::https://x/y.tar"


def test_held_out_images_are_reported(tmp_path: Path) -> None:
    write_shards(tree(tmp_path / "p", {"train": 10}), tmp_path / "s")
    data = load_shards(tmp_path / "s", validation=0.2, seed=1)
    assert data.skipped == ["no validation images: 4 of the 20 training images are held out"]
    assert data.validation.labels.bincount().tolist() == [2, 2]
    assert not set(data.validation.names) & set(data.train.names)


def test_unusable_samples_are_skipped_or_raise(tmp_path: Path) -> None:
    path = tar(tmp_path / "train-0.tar", {
        "1.png": png(1), "1.cls": b"0", "2.png": png(2)[:-30], "2.cls": b"1", "3.cls": b"1",
        "4.png": png(4), "5.png": png(5), "5.cls": b"7", "6.png": png(6), "6.json": b"{", "7.png": png(7),
        "7.cls": b"1", "8.png": png(8), "8.cls": b"0", "9.cls": b"0", "9.png": b"x" * 5000,
    })  # fmt: skip
    (tmp_path / "classes.txt").write_text("a\nb\n")
    data = load_shards(tmp_path)
    assert gray_levels(data) == [1, 7, 8]
    messages = "\n".join(data.skipped)
    for message in (
        r"1 sample excluded: damaged image \(train-0.tar/2: ",
        r"1 sample excluded: no image next to its label.*train-0.tar/3\)",
        r"1 sample excluded: no label next to its image.*train-0.tar/4\)",
        r"1 sample excluded: label not among the 2 classes \(train-0.tar/5: 7\)",
        r"1 sample excluded: invalid json \(.*train-0.tar/6\)",
        r"1 sample excluded: not an image in a format that Pillow reads \(train-0.tar/9\)",
    ):
        assert re.search(message, messages), messages
    assert data.accounting.used == {"file": 2, "sample": 3} and data.accounting.encountered("sample") == 9
    with pytest.raises(ImageError, match="train-0.tar"):
        load_shards(tmp_path, on_error="raise")
    # Truncated in the middle of an image, as after an interrupted copy.
    path.write_bytes(path.read_bytes()[:-12_000])
    data = load_shards(tmp_path)
    assert gray_levels(data) == [1, 7, 8][: len(data.train.labels)]
    assert any("train-0.tar" in line for line in data.skipped)


@pytest.mark.parametrize("key", ["IMG.2024", "x/v1.0", "a.b.c"])
@pytest.mark.parametrize("suffix", ["png", "JPG"])
def test_keys_with_dots_are_explained(tmp_path: Path, key: str, suffix: str) -> None:
    files = {f"{key}.{n}.{kind}": png(n) if kind == suffix else b"0" for n in range(3) for kind in (suffix, "cls")}
    tar(tmp_path / "train-0.tar", files)
    error = one_line_error(str(tmp_path))
    assert re.search(
        rf"found 0. 1 sample excluded: no image: a key ends at the first dot.*not .{suffix.lower()}", error
    )


def test_labels_apart_from_their_images_are_explained(tmp_path: Path) -> None:
    images, labels = {f"{n}.png": png(n) for n in range(3)}, {f"{n}.cls": b"0" for n in range(4)}
    tar(tmp_path / "train-0.tar", {**images, **labels})
    error = one_line_error(str(tmp_path))
    assert "4 samples excluded: no image next to its label" in error and "train-0.tar/0, " in error
    assert "3 samples excluded: no label next to its image: neither cls nor a json with label" in error
    tar(tmp_path / "train-0.tar", {f"{n}.{kind}": png(n) for n in range(3) for kind in ("png", "txt")})
    assert "3 samples excluded: no label next to its image" in one_line_error(str(tmp_path))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_class_names_and_labels_in_any_encoding(tmp_path: Path, encoding: str, line_end: str) -> None:
    """Also in another Unicode form than the labels."""
    names = ["cafe\u0301", " dog", "\u4e00"]
    (tmp_path / "classes.txt").write_bytes((line_end.join(names) + line_end).encode(encoding))
    files = {
        "1.JPG": png(1),
        "1.cls": "caf\u00e9".encode(encoding),
        "2.Png": png(2),
        "2.json": '{"label": 2}'.encode(encoding),
    }
    tar(tmp_path / "train-0.tar", {**files, "3.PNG": png(3), "3.CLS": "dog\n".encode(encoding)})
    data = load_shards(tmp_path)
    assert data.classes == ("caf\u00e9", "dog", "\u4e00")
    assert data.train.labels.tolist() == [0, 2, 1] and gray_levels(data) == [1, 2, 3]
    (tmp_path / "classes.json").write_bytes('["a", "b", "c"]'.encode(encoding))
    assert load_shards(tmp_path).classes == ("a", "b", "c")
    (tmp_path / "classes.json").write_bytes(b'["a",')
    assert "classes.json: not valid JSON" in one_line_error(str(tmp_path))
    (tmp_path / "classes.json").write_bytes(b'["a",\n"\xe9"]')
    assert "classes.json: line 2 is not utf-8 text" in one_line_error(str(tmp_path))


def one_line_error(location: str, **options: object) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load_shards(location, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_invalid_locations_are_one_line_errors(tmp_path: Path) -> None:
    assert "no such shard (and 2 more)" in one_line_error(f"{tmp_path}/train-{{0..2}}.tar")
    assert "no .tar file" in one_line_error(str(tmp_path))
    assert "http" in one_line_error("s3://bucket/train-0.tar")
    assert "http" in one_line_error("pipe:cat x.tar")
    tar(tmp_path / "val-0.tar", {})
    assert "no training shards" in one_line_error(str(tmp_path))
    (tmp_path / "train-0.tar").write_bytes(b"no tar" * 200)
    assert "not a tar file" in one_line_error(str(tmp_path))
    with tarfile.open(tmp_path / "train-0.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("1.cls"))
    assert "compressed" in one_line_error(str(tmp_path))
    tar(tmp_path / "train-0.tar", {"1.png": png(1), "1.cls": b"0"})
    assert "at least two classes" in one_line_error(str(tmp_path))
    assert "data.in_memory" in one_line_error(str(tmp_path), in_memory=True)
    with pytest.raises(ValueError, match="unknown data source"):
        load_dataset("shards:")


def test_a_missing_library_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    assert "pip install 'googlenet[scale]'" in one_line_error(str(tmp_path))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, list[str], Path]]:
    """Start a web server on a folder; return its address, the requested paths, and the folder."""
    requested: list[str] = []
    root = tmp_path / "www"
    root.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            requested.append(self.path)

        def do_GET(self) -> None:
            if "short" in self.path:
                self.send_response(200)
                self.send_header("Content-Length", "5000")
                self.end_headers()
                self.wfile.write(b"x" * 100)
            else:
                super().do_GET()

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(root)))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}", requested, root
    httpd.shutdown()
    httpd.server_close()


def test_shards_at_urls_are_downloaded_once(
    tmp_path: Path, server: tuple[str, list[str], Path], own_cache: Path
) -> None:
    address, requested, root = server
    write_shards(tree(tmp_path / "p", {"train": 4, "val": 2}), root / "s", per_shard=5)
    location = f"{address}/s/train-{{000000..000001}}.tar::{address}/s/val-000000.tar"
    data = load_shards(location)
    assert data.classes == ("a", "b")
    assert sorted(gray_levels(data)) == [*range(10, 14), *range(150, 154)]
    assert len(data.validation.labels) == 4
    assert len(set(requested)) == len(requested) == 4
    load_shards(location)
    assert len(requested) == 4, "the second load uses the cache"
    assert not list((own_cache / "shards").rglob(".*"))


def test_failed_downloads_are_one_line_errors(server: tuple[str, list[str], Path], own_cache: Path) -> None:
    address, _, _ = server
    assert "no such shard on the server" in one_line_error(f"{address}/train-0.tar")
    assert "stopped after 100 of 5,000 bytes" in one_line_error(f"{address}/short-train.tar")
    assert one_line_error("http://127.0.0.1:9/train-0.tar").startswith(
        "http://127.0.0.1:9/train-0.tar: download failed"
    )
    assert not [path for path in (own_cache / "shards").rglob("*") if path.is_file()]


def test_class_file_and_shard_names(tmp_path: Path) -> None:
    write_shards(tree(tmp_path / "p", {"train": 1}), tmp_path / "s")
    assert json.loads((tmp_path / "s" / "classes.json").read_text()) == ["a", "b"]
    assert re.fullmatch(r"train-\d{6}\.tar", next((tmp_path / "s").glob("*.tar")).name)
