"""CIFAR, MNIST, KMNIST and EMNIST, on files in torchvision's layout that the tests write."""

import gzip
import hashlib
import pickle
import tarfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from conftest import googlenet
from googlenet.data.sources import LoadOptions, load_dataset

COUNTS = {"train": 30, "t10k": 12, "test": 12}


@pytest.fixture(autouse=True)
def no_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.delenv("GOOGLENET_DATA", raising=False)


def pixels_of(seed: int, count: int, shape: tuple[int, ...]) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, name: str = "CIFAR10") -> Path:
    """Write CIFAR's batches, and make torchvision expect their digests."""
    kind: Any = getattr(datasets, name)
    folder, per_batch = root / kind.base_folder, COUNTS["train"] // len(kind.train_list)
    folder.mkdir(parents=True)
    labels = "labels" if name == "CIFAR10" else "fine_labels"
    contents: dict[str, Any] = {
        file: {"data": pixels_of(n, per_batch, (3072,)), labels: [(n + i) % 10 for i in range(per_batch)]}
        for n, (file, _) in enumerate(kind.train_list)
    }
    contents[kind.test_list[0][0]] = {"data": pixels_of(9, 12, (3072,)), labels: [i % 10 for i in range(12)]}
    contents[kind.meta["filename"]] = {kind.meta["key"]: [f"class {i}" for i in range(10)]}
    digests = {}
    for file, content in contents.items():
        (folder / file).write_bytes(pickle.dumps(content))
        digests[file] = hashlib.md5((folder / file).read_bytes()).hexdigest()
    monkeypatch.setattr(kind, "train_list", [[file, digests[file]] for file, _ in kind.train_list])
    monkeypatch.setattr(kind, "test_list", [[file, digests[file]] for file, _ in kind.test_list])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": digests[kind.meta["filename"]]})
    return root


def idx(values: Any) -> bytes:
    """Return the IDX format: the type and number of the dimensions, their sizes, and the values."""
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()


def write_mnist(root: Path, name: str, prefix: str = "", first_label: int = 0) -> Path:
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    for split, seed in (("train", 1), ("test" if prefix else "t10k", 2)):
        count = COUNTS[split]
        labels = (np.arange(count) % 10 + first_label).astype(np.uint8)
        (folder / f"{prefix}{split}-images-idx3-ubyte").write_bytes(idx(pixels_of(seed, count, (28, 28))))
        (folder / f"{prefix}{split}-labels-idx1-ubyte").write_bytes(idx(labels))
    return root


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    root = write_cifar(tmp_path / "data", monkeypatch, name)
    data = load_dataset(name.lower(), LoadOptions(root=str(root), validation=10))
    assert data.classes == tuple(f"class {i}" for i in range(10))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [20, 10, 12]
    assert data.test.images.shape == (12, 3, 32, 32)
    # torchvision is the reference.
    reference = getattr(datasets, name)(root, train=False)
    for index in range(12):
        image, label = reference[index]
        assert np.array_equal(data.test.images[index].permute(1, 2, 0), np.asarray(image))
        assert data.test.labels[index] == label
    assert data.accounting.used == {"image": 42} and "10 of the 30 training images are held out" in data.skipped[0]


def test_gray_of_colors_is_pillows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_cifar(tmp_path / "data", monkeypatch)
    colors, gray = (load_dataset("cifar10", LoadOptions(root=str(root), channels=channels)) for channels in (3, 1))
    for image, expected in zip(gray.test.images, colors.test.images, strict=True):
        assert np.array_equal(image[0], np.asarray(Image.fromarray(expected.permute(1, 2, 0).numpy()).convert("L")))


@pytest.mark.parametrize(
    ("source", "prefix", "first_label", "classes"),
    [
        ("mnist", "", 0, tuple("0123456789")),
        ("kmnist", "", 0, tuple(datasets.KMNIST.classes)),
        ("emnist:digits", "emnist-digits-", 0, tuple("0123456789")),
        ("emnist:letters", "emnist-letters-", 1, tuple("abcdefghijklmnopqrstuvwxyz")),
    ],
)
def test_mnist_and_its_relatives(
    tmp_path: Path, source: str, prefix: str, first_label: int, classes: tuple[str, ...]
) -> None:
    name = source.partition(":")[0].upper()
    root = write_mnist(tmp_path / "data" / name.lower(), name, prefix, first_label)
    data = load_dataset(source, LoadOptions(root=str(root.parent), validation=0))
    assert data.source == source and data.classes == classes and data.channels == 1
    written = torch.from_numpy(pixels_of(2, 12, (28, 28)))
    assert torch.equal(data.test.images[:, 0], written.transpose(1, 2) if prefix else written)
    assert [data.classes[label] for label in data.test.labels] == [classes[i % 10] for i in range(12)]
    rgb = load_dataset(source, LoadOptions(root=str(root.parent), channels=3))
    assert torch.equal(rgb.test.images, data.test.images.expand(-1, 3, -1, -1))


@pytest.mark.parametrize(
    ("source", "files"),
    [
        ("cifar10", "cifar-10-python.tar.gz into {}/cifar10,"),
        ("cifar100", "cifar-100-python.tar.gz into {}/cifar100,"),
        ("mnist", "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz, "
                  "t10k-labels-idx1-ubyte.gz into {}/mnist/MNIST/raw"),
        ("emnist:balanced", "gzip.zip into {}/emnist/EMNIST/raw"),
    ],
)  # fmt: skip
def test_offline_without_files(cache: Path, tmp_path: Path, source: str, files: str) -> None:
    done = googlenet("train", "cifar10-fast", "--data", source, "--data.root", tmp_path, "--out", tmp_path / "run")
    assert done.code == 1 and not (tmp_path / "run").exists()
    message = done.err.splitlines()[-1]
    assert f"not found in {tmp_path}, {cache}/googlenet/" in message and "no network" in message
    assert f"; put {files.format(cache / 'googlenet')}" in message
    assert not list((cache / "googlenet").glob("*/*")), "nothing half-written"


def test_an_archive_in_the_cache_is_unpacked(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message for a machine without network says where to put it."""
    write_cifar(tmp_path / "written", monkeypatch)
    archive = cache / "googlenet" / "cifar10" / "cifar-10-python.tar.gz"
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "written" / "cifar-10-batches-py", "cifar-10-batches-py")
    with pytest.raises(ValueError, match="put cifar-10-python.tar.gz into"):  # The digest is not that of CIFAR-10.
        load_dataset("cifar10")
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    assert len(load_dataset("cifar10").test) == 12
    assert len(load_dataset("cifar10").test) == 12, "found in the cache"


def test_damaged_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_cifar(tmp_path / "data", monkeypatch)
    file = root / "cifar-10-batches-py" / "data_batch_3"
    file.write_bytes(file.read_bytes()[:-1])
    write_mnist(root, "MNIST")
    file = root / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    file.write_bytes(gzip.compress(file.read_bytes()))
    for source in ("cifar10", "mnist"):
        with pytest.raises(ValueError, match=f"{source}: not found in .*the download failed") as raised:
            load_dataset(source, LoadOptions(root=str(root)))
        assert "\n" not in str(raised.value)
        assert f"not used: {root}: {source} is damaged or incomplete" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"emnist:leters: no such split \(did you mean letters.*; they are byclass"):
        load_dataset("emnist:leters")


@pytest.mark.slow
def test_recipes_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_cifar(tmp_path / "data", monkeypatch)
    for recipe in ("cifar10-fast", "cifar10-best"):
        run, short = tmp_path / recipe, ["--epochs", 1, "--batch_size", 10, "--model.width_mult", 0.25]
        done = googlenet("train", recipe, "--data.root", root, *short, "--out", run)
        assert done.code == 0, done.err
        assert googlenet("evaluate", run, "--json").json["images"] == 12
