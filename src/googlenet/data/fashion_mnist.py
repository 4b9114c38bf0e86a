"""Fashion-MNIST: found where it is, fetched where it is not, and never used unless its digest is right."""

import gzip
import hashlib
import http.client
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from ..cache import cache_folder
from .dataset import Dataset, Split, held_out
from .statistics import pixel_statistics

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

# SHA-256 of the content without compression: each distributor compresses anew, with other bytes.
DIGESTS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
DEBIAN_PACKAGE = "dataset-fashion-mnist"
MIRRORS = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
)

Say = Callable[[str], None]


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def load_fashion_mnist(root: str | None, validation: float) -> Dataset:
    """60,000 training pictures (the last `validation` of them held out) and 10,000 test pictures, 28x28 grey."""
    _, content = _find(root, _say)
    images, labels = (
        {part: _idx(content[f"{part}-{kind}"]) for part in ("train", "t10k")}
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    )

    def split(part: str) -> Split:
        count = len(labels[part])
        names = [f"{part} {number}" for number in range(count)]
        return Split(images[part].unsqueeze(1), labels[part].long(), names)

    train = split("train")
    kept = len(train.labels) - held_out(len(train.labels), validation)
    mean, std = pixel_statistics(images["train"][:kept].unsqueeze(1))
    return Dataset("fashion-mnist", CLASSES, train.part(0, kept), train.part(kept, None), split("t10k"), mean, std)


def find_fashion_mnist(root: str | None = None, say: Say = _say) -> Path:
    """The first folder with all four files intact; fetches them into the cache where there is none.

    Looks at `root`, ``$GOOGLENET_DATA`` (each itself, then its folder ``fashion-mnist``), the cache and Debian's
    folder; then tries Debian's package and the public mirrors. `say` is told of damaged files, which are never used,
    of a `root` without the files, and of downloads. Raises ValueError with everything tried when nothing worked.
    """
    return _find(root, say)[0]


def _find(root: str | None, say: Say) -> tuple[Path, dict[str, bytes]]:
    """The folder of `find_fashion_mnist`, and the files' verified content."""
    cache = cache_folder() / "fashion-mnist"
    named = [Path(place).expanduser() for place in (root, os.environ.get("GOOGLENET_DATA")) if place]
    tried = []
    for place in [*(p for name in named for p in (name, name / "fashion-mnist")), cache, DEBIAN_FOLDER]:
        if not any(_file(place, name) for name in DIGESTS):
            tried.append(f"{place}: no Fashion-MNIST there")
            continue
        try:
            content = _read_verified(place)
        except (OSError, ValueError) as error:
            tried.append(str(error))
            say(f"not used: {error}")
            continue
        if root and not place.is_relative_to(Path(root).expanduser()):
            say(f"no intact Fashion-MNIST in {root}; using {place}")
        return place, content
    for way in (_from_debian, *(_from_mirror(mirror) for mirror in MIRRORS)):
        try:
            say(f"fetching Fashion-MNIST (30 MB) {way.__doc__}")
            with tempfile.TemporaryDirectory() as scratch:
                return cache, _install(way(Path(scratch)), cache)
        except (OSError, ValueError, http.client.HTTPException, subprocess.SubprocessError) as error:
            tried.append(f"{way.__doc__}: {_reason(error)}")
    raise ValueError(
        "Fashion-MNIST was not found and could not be fetched; put its four files into a folder and name it "
        "with --root. Tried " + "; ".join(tried)
    )


def _file(folder: Path, name: str) -> Path | None:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    return None


def _read_verified(folder: Path) -> dict[str, bytes]:
    content = {}
    for name, digest in DIGESTS.items():
        path = _file(folder, name)
        if path is None:
            raise ValueError(f"{folder / name}.gz is missing")
        try:
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} is truncated or damaged ({error})") from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise ValueError(f"{path} is altered: its SHA-256 is not Fashion-MNIST's")
        content[name] = data
    return content


def _idx(data: bytes) -> torch.Tensor:
    """The IDX format: two zero bytes, type 8 (uint8), number of dimensions, big-endian sizes, values."""
    dimensions = data[3]
    shape = [int(n) for n in np.frombuffer(data, ">u4", dimensions, offset=4)]
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape).copy())


def _install(folder: Path, cache: Path) -> dict[str, bytes]:
    """Verify files and put them into the cache, each by a rename, so that no reader sees half of one."""
    content = _read_verified(folder)
    cache.mkdir(parents=True, exist_ok=True)
    for name in DIGESTS:
        source = _file(folder, name)
        assert source is not None
        partial = cache / f".{source.name}.{os.getpid()}"
        try:
            shutil.copyfile(source, partial)
            partial.replace(cache / source.name)
        finally:
            partial.unlink(missing_ok=True)
    return content


def _from_debian(scratch: Path) -> Path:
    """from Debian's package"""
    for command in ("apt-get", "dpkg-deb"):
        if shutil.which(command) is None:
            raise ValueError(f"no {command} on this system")
    # Lists and cache of our own: works without root and changes nothing of the system's.
    private = [
        "-o", f"Dir::State::Lists={scratch / 'lists'}", "-o", f"Dir::Cache={scratch / 'cache'}",
        "-o", "Debug::NoLocking=1", "-o", "Acquire::Retries=2", "-o", "APT::Sandbox::User=",
    ]  # fmt: skip
    for folder in ("lists/partial", "cache/archives/partial"):
        (scratch / folder).mkdir(parents=True)
    _run(["apt-get", *private, "update"], scratch)
    _run(["apt-get", *private, "download", DEBIAN_PACKAGE], scratch)
    package = next(scratch.glob("*.deb"), None)
    if package is None:
        raise ValueError("apt-get downloaded no package")
    _run(["dpkg-deb", "-x", str(package), str(scratch / "tree")], scratch)
    return scratch / "tree" / DEBIAN_FOLDER.relative_to("/")


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=300)


def _from_mirror(mirror: str) -> Callable[[Path], Path]:
    def fetch(scratch: Path) -> Path:
        for name in DIGESTS:
            with (
                urllib.request.urlopen(f"{mirror}{name}.gz", timeout=30) as answer,
                (scratch / f"{name}.gz").open("wb") as file,
            ):
                shutil.copyfileobj(answer, file)
        return scratch

    fetch.__doc__ = f"from {mirror}"
    return fetch


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines: list[str] = error.stderr.strip().splitlines()
        return lines[-1] if lines else "failed without a word"
    return str(error)


def fetched_files(folder: Path) -> Iterator[Path]:
    """The four files as they lie in `folder`."""
    for name in DIGESTS:
        path = _file(folder, name)
        if path is not None:
            yield path
