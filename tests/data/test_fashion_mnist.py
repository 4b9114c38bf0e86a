"""Finding the data: the order of the places, what happens to damaged files, and each way of fetching."""

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

from googlenet.data import fashion_mnist
from googlenet.data.sources import load_dataset


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A world without Fashion-MNIST: no cache, no Debian folder, no apt, no mirrors."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("GOOGLENET_DATA", raising=False)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setattr(fashion_mnist, "MIRRORS", ())
    monkeypatch.setattr(fashion_mnist.shutil, "which", lambda _: None)
    return tmp_path


def copy(source: Path, to: Path) -> Path:
    to.mkdir(parents=True)
    for file in fashion_mnist.fetched_files(source):
        shutil.copy(file, to)
    return to


def test_agrees_with_torchvision(fashion_mnist_folder: Path, tmp_path: Path) -> None:
    data = load_dataset("fashion-mnist", root=str(fashion_mnist_folder), validation=5000)
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in fashion_mnist.fetched_files(fashion_mnist_folder):
        content = file.read_bytes()
        (raw / file.name.removesuffix(".gz")).write_bytes(gzip.decompress(content) if file.suffix else content)
    train, test = (FashionMNIST(str(tmp_path), train=part) for part in (True, False))
    images = torch.cat([data.train.images, data.validation.images]).squeeze(1)
    assert torch.equal(images, train.data)
    assert torch.equal(torch.cat([data.train.labels, data.validation.labels]), train.targets)
    assert torch.equal(data.test.images.squeeze(1), test.data)
    assert list(data.classes) == train.classes
    assert len(data.validation.labels) == 5000
    everything = load_dataset("fashion-mnist", root=str(fashion_mnist_folder), validation=0)
    assert everything.mean == (0.286,)
    assert everything.std == (0.353,)


def test_order_of_places(nowhere: Path, fashion_mnist_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = functools.partial(fashion_mnist.find_fashion_mnist, say=lambda _: None)
    debian = copy(fashion_mnist_folder, nowhere / "debian")
    assert find() == debian
    cache = copy(fashion_mnist_folder, nowhere / "cache" / "googlenet" / "fashion-mnist")
    assert find() == cache
    named = copy(fashion_mnist_folder, nowhere / "env" / "fashion-mnist")
    monkeypatch.setenv("GOOGLENET_DATA", str(nowhere / "env"))
    assert find() == named
    assert find(str(debian)) == debian
    own = copy(fashion_mnist_folder, nowhere / "root" / "fashion-mnist")
    assert find(str(nowhere / "root")) == own, "a named root and its sub-folder come before the environment's"
    said: list[str] = []
    assert fashion_mnist.find_fashion_mnist(str(nowhere / "empty"), said.append) == named
    assert said == [f"no intact Fashion-MNIST in {nowhere / 'empty'}; using {named}"]


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_damaged_files_are_named_and_never_used(nowhere: Path, fashion_mnist_folder: Path, damage: str) -> None:
    folder = copy(fashion_mnist_folder, nowhere / "bad")
    victim = next(folder.glob("t10k-images*"))
    content = victim.read_bytes()
    if damage == "truncated":
        victim.write_bytes(content[: len(content) // 2])
    elif damage == "altered":
        pixels = bytearray(gzip.decompress(content))
        pixels[5000] ^= 1
        victim.write_bytes(gzip.compress(pixels, 1))
    else:
        victim.unlink()
    said: list[str] = []
    with pytest.raises(ValueError, match="could not be fetched"):
        fashion_mnist.find_fashion_mnist(str(folder), say=said.append)
    assert any(str(victim).removesuffix(".gz") in line and damage in line for line in said), said


@pytest.fixture
def mirror(fashion_mnist_folder: Path, tmp_path: Path) -> Iterator[str]:
    """A mirror on this machine that serves the real files."""
    served = copy(fashion_mnist_folder, tmp_path / "served")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def test_mirror_fills_the_cache(nowhere: Path, mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "MIRRORS", ("http://127.0.0.1:9/", mirror))
    said: list[str] = []
    cache = nowhere / "cache" / "googlenet" / "fashion-mnist"
    assert fashion_mnist.find_fashion_mnist(say=said.append) == cache
    assert set(fashion_mnist._read_verified(cache)) == set(fashion_mnist.DIGESTS)
    assert not list(cache.glob(".*")), "no partial file is left"
    assert sum("fetching" in line for line in said) == 3


def test_a_server_that_does_not_speak_http_is_passed_over(
    nowhere: Path, mirror: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as portal:

        def answer() -> None:
            connection, _ = portal.accept()
            connection.recv(1000)
            connection.sendall(b"please log in\r\n\r\n")
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        monkeypatch.setattr(fashion_mnist, "MIRRORS", (f"http://127.0.0.1:{portal.getsockname()[1]}/", mirror))
        found = fashion_mnist.find_fashion_mnist(say=lambda _: None)
    assert found == nowhere / "cache" / "googlenet" / "fashion-mnist"


def test_damaged_mirror_leaves_nothing(
    nowhere: Path, mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    next((tmp_path / "served").glob("train-labels*")).write_bytes(b"half")
    monkeypatch.setattr(fashion_mnist, "MIRRORS", (mirror,))
    with pytest.raises(ValueError, match="train-labels"):
        fashion_mnist.find_fashion_mnist(say=lambda _: None)
    assert not (nowhere / "cache").exists()


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="only where apt exists")
def test_debian_package(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(nowhere / "cache"))
    monkeypatch.delenv("GOOGLENET_DATA", raising=False)
    monkeypatch.setattr(fashion_mnist, "MIRRORS", ())
    found = fashion_mnist._from_debian(nowhere)
    assert set(fashion_mnist._read_verified(found)) == set(fashion_mnist.DIGESTS)
