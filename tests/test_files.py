"""Atomic writes, text files of other encodings, and caches that cannot be written to."""

import hashlib
import json
import os
import stat
import tempfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision

import googlenet as package
from conftest import googlenet
from googlenet import files
from googlenet.data.disk_cache import cached_json
from googlenet.files import cache_file, read_text, write_atomically
from googlenet.training.tasks.base import data_digest


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_written_files_have_the_permissions_of_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        for content in ("text", b"bytes"):
            write_atomically(tmp_path / "x", content)
            assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o666 & ~umask
    finally:
        os.umask(before)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path, "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_text_of_any_common_encoding(tmp_path: Path, encoding: str, line_end: str) -> None:
    mark = "\ufeff" if encoding.endswith("e") else ""
    for text in ("caf\u00e9 1\n\n\u4e00\u2028 2\n", "", "a"):
        (tmp_path / "x").write_bytes((mark + text.replace("\n", line_end)).encode(encoding))
        assert read_text(tmp_path / "x") == text


def test_files_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"a\nb\n\xe9\n")
    with pytest.raises(ValueError, match=r"/x: line 3 is not utf-8 text; save the file as UTF-8$"):
        read_text(tmp_path / "x")
    for name, message in (("y", "No such file"), (".", "Is a directory")):
        with pytest.raises(ValueError, match=f"cannot be read .{message}"):
            read_text(tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_class_names_of_converted_weights(tmp_path: Path, encoding: str) -> None:
    network = torchvision.models.googlenet(weights=None, num_classes=3, aux_logits=False, init_weights=False)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "classes.txt").write_bytes("caf\u00e9\r\n b \r\nc\r\n".encode(encoding))
    flags = ["--from", "torchvision", "--out", tmp_path / "out.safetensors", "--classes", tmp_path / "classes.txt"]
    done = googlenet("convert", tmp_path / "w.safetensors", *flags)
    assert done.code == 0, done.err
    assert package.load(tmp_path / "out.safetensors").classes == ("caf\u00e9", "b", "c")


FOLDERS = ["/dev/null", *(pytest.param(n, marks=pytest.mark.slow) for n in ("/proc/none", "file", f"/tmp/{'x' * 300}"))]


@pytest.fixture(params=FOLDERS)
def unwritable(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Set a cache folder that cannot be created, also by root."""
    (tmp_path / "file").write_text("")
    folder = str(tmp_path / "file") if request.param == "file" else request.param
    monkeypatch.setenv("XDG_CACHE_HOME", folder)
    files._writable.cache_clear()
    files._temporary_folder.cache_clear()
    return folder


def test_an_unwritable_cache_is_one_warning(unwritable: str, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert cached_json("x", b"key", lambda: [1, 2]) == [1, 2]
    path = cache_file("exported", "x")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("works")
    assert cache_file("exported", "x").read_text() == "works"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{unwritable}/googlenet: cannot write to the cache; set XDG_CACHE_HOME")


def test_an_unwritable_cache_is_still_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of an image of a container whose file system is read-only."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    files._writable.cache_clear()
    cache_file("weights", "x").parent.mkdir()
    cache_file("weights", "x").write_text("stored")
    files._writable.cache_clear()

    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    assert cache_file("weights", "x").read_text() == "stored"
    assert not cache_file("weights", "y").is_relative_to(tmp_path)


def test_without_a_home_folder_the_cache_is_temporary(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", fail)
    files._writable.cache_clear()
    assert cached_json("x", b"no home", lambda: {"a": 1}) == {"a": 1}


@pytest.mark.parametrize("content", [[["a", "\u00e9"], [1, 2], 0.25], {"x": [None, True]}, []])
def test_the_digest_of_data_is_that_of_its_json(content: object) -> None:
    assert data_digest(content, "x") == hashlib.sha256(json.dumps(content).encode()).hexdigest()


@pytest.mark.slow
def test_engines_without_a_cache(unwritable: str) -> None:
    """An export, which is written to the cache, works without one."""
    from googlenet.checkpoint.format import Checkpoint
    from googlenet.config.schema import ModelConfig, Recipe, SizeConfig
    from googlenet.data.preprocess import Preprocess
    from googlenet.inference.engine_selection import cached_engine

    model = package.create_model("googlenet_d2l", 3, width_mult=0.25).eval()
    recipe = Recipe(model=ModelConfig(name="googlenet_d2l", width_mult=0.25), size=SizeConfig(train=16))
    checkpoint = Checkpoint(model, Preprocess(16, 3, (0.5,) * 3, (0.2,) * 3), ("a", "b", "c"), recipe, {})
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    expected = cached_engine(checkpoint, "torch").predict(pixels)
    assert torch.allclose(cached_engine(checkpoint, "onnxruntime").predict(pixels), expected, atol=1e-3)
