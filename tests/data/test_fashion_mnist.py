"""The search order of Fashion-MNIST, damaged files, and downloads."""

import functools
import gzip
import http.server
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torchvision.datasets import FashionMNIST

from googlenet.data.sources import LoadOptions, fashion_mnist, load_dataset


@pytest.fixture
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without Fashion-MNIST: no cache, no Debian folder, no apt, no mirrors."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("GOOGLENET_DATA", raising=False)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setattr(fashion_mnist, "MIRRORS", ())
    monkeypatch.setattr(fashion_mnist.shutil, "which", lambda _: None)
    return tmp_path


def copy(source: Path, to: Path) -> Path:
    to.mkdir(parents=True)
    for file in fashion_mnist.list_files(source):
        shutil.copy(file, to)
    return to


def test_agrees_with_torchvision(fashion_mnist_folder: Path, tmp_path: Path) -> None:
    data = load_dataset("fashion-mnist", LoadOptions(root=str(fashion_mnist_folder), validation=5000))
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in fashion_mnist.list_files(fashion_mnist_folder):
        content = file.read_bytes()
        (raw / file.name.removesuffix(".gz")).write_bytes(gzip.decompress(content) if file.suffix else content)
    train, test = (FashionMNIST(str(tmp_path), train=part) for part in (True, False))
    images = torch.cat([data.train.images, data.validation.images]).squeeze(1)
    assert torch.equal(images, train.data)
    assert torch.equal(torch.cat([data.train.labels, data.validation.labels]), train.targets)
    assert torch.equal(data.test.images.squeeze(1), test.data)
    assert list(data.classes) == train.classes
    assert len(data.validation.labels) == 5000
    full = load_dataset("fashion-mnist", LoadOptions(root=str(fashion_mnist_folder), validation=0))
    assert full.mean == (0.286,)
    assert full.std == (0.353,)


def test_search_order(
    isolated: Path,
    fashion_mnist_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    find = fashion_mnist.find_fashion_mnist
    debian = copy(fashion_mnist_folder, isolated / "debian")
    assert find() == debian
    cache = copy(fashion_mnist_folder, isolated / "cache" / "googlenet" / "fashion-mnist")
    assert find() == cache
    environment = copy(fashion_mnist_folder, isolated / "env" / "fashion-mnist")
    monkeypatch.setenv("GOOGLENET_DATA", str(isolated / "env"))
    assert find() == environment
    assert find(str(debian)) == debian
    own = copy(fashion_mnist_folder, isolated / "root" / "fashion-mnist")
    assert find(str(isolated / "root")) == own, "root and its subfolder come before $GOOGLENET_DATA"
    assert capsys.readouterr().err == ""
    assert find(str(isolated / "empty")) == environment
    assert capsys.readouterr().err == f"no intact Fashion-MNIST in {isolated / 'empty'}; using {environment}\n"


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_damaged_files_are_reported_and_never_used(
    isolated: Path, fashion_mnist_folder: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy(fashion_mnist_folder, isolated / "bad")
    damaged = next(folder.glob("t10k-images*"))
    content = damaged.read_bytes()
    if damage == "truncated":
        damaged.write_bytes(content[: len(content) // 2])
    elif damage == "altered":
        pixels = bytearray(gzip.decompress(content))
        pixels[5000] ^= 1
        damaged.write_bytes(gzip.compress(pixels, 1))
    else:
        damaged.unlink()
    with pytest.raises(ValueError, match="could not be downloaded"):
        fashion_mnist.find_fashion_mnist(str(folder))
    messages = capsys.readouterr().err.splitlines()
    assert any(str(damaged).removesuffix(".gz") in line and damage in line for line in messages), messages


@pytest.fixture
def mirror(fashion_mnist_folder: Path, tmp_path: Path) -> Iterator[str]:
    """A mirror on this machine that serves the real files."""
    served = copy(fashion_mnist_folder, tmp_path / "served")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def test_mirror_fills_the_cache(
    isolated: Path, mirror: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fashion_mnist, "MIRRORS", ("http://127.0.0.1:9/", mirror))
    cache = isolated / "cache" / "googlenet" / "fashion-mnist"
    assert fashion_mnist.find_fashion_mnist() == cache
    assert set(fashion_mnist._read_verified(cache)) == set(fashion_mnist.DIGESTS)
    assert not list(cache.glob(".*")), "no partial file is left"
    assert capsys.readouterr().err.count("downloading") == 3


def test_a_server_without_http_is_skipped(isolated: Path, mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as portal:

        def respond() -> None:
            connection, _ = portal.accept()
            connection.recv(1000)
            connection.sendall(b"please log in\r\n\r\n")
            connection.close()

        threading.Thread(target=respond, daemon=True).start()
        monkeypatch.setattr(fashion_mnist, "MIRRORS", (f"http://127.0.0.1:{portal.getsockname()[1]}/", mirror))
        folder = fashion_mnist.find_fashion_mnist()
    assert folder == isolated / "cache" / "googlenet" / "fashion-mnist"


def test_damaged_mirror_leaves_nothing(
    isolated: Path, mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    next((tmp_path / "served").glob("train-labels*")).write_bytes(b"half")
    monkeypatch.setattr(fashion_mnist, "MIRRORS", (mirror,))
    with pytest.raises(ValueError, match="train-labels"):
        fashion_mnist.find_fashion_mnist()
    assert not (isolated / "cache").exists()


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt")
@pytest.mark.slow
def test_debian_package(isolated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(isolated / "cache"))
    monkeypatch.delenv("GOOGLENET_DATA", raising=False)
    monkeypatch.setattr(fashion_mnist, "MIRRORS", ())
    folder = fashion_mnist._from_debian(isolated)
    assert set(fashion_mnist._read_verified(folder)) == set(fashion_mnist.DIGESTS)
