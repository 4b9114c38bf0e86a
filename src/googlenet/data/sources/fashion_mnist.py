"""Fashion-MNIST: found on this machine or downloaded, and verified by its SHA-256 digests."""

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import torch

from ...files import cache_file, cache_folder, write_atomically
from ..dataset import Dataset, LoadOptions, Split, num_validation
from ..disk_cache import download
from ..image_checks import pixel_statistics

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")

# SHA-256 of the uncompressed content, because distributors compress the files differently.
DIGESTS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
MIRRORS = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
)


def load(_: str, options: LoadOptions) -> Dataset:
    """Load 60,000 training images, the last of them held out for validation, and 10,000 test images: 28x28 gray."""
    content = _find(options.root)[1]

    def split(part: str) -> Split:
        # The digests fix the layout: the values follow a header of 16 bytes (images) or 8 bytes (labels).
        pixels = torch.frombuffer(bytearray(content[f"{part}-images-idx3-ubyte"]), dtype=torch.uint8, offset=16)
        labels = torch.frombuffer(bytearray(content[f"{part}-labels-idx1-ubyte"]), dtype=torch.uint8, offset=8)
        return Split(pixels.view(-1, 1, 28, 28), labels.long(), [f"{part} {index}" for index in range(len(labels))])

    images = split("train")
    num_train = len(images.labels) - num_validation(len(images.labels), options.validation)
    train, validation = images.slice(0, num_train), images.slice(num_train, None)
    mean, std = pixel_statistics(train.images)
    return Dataset("fashion-mnist", CLASSES, train, validation, split("t10k"), mean, std)


def find_fashion_mnist(root: str | None = None) -> Path:
    """Return the first folder with all four files intact, or download them to the cache.

    The folders are `root` and ``$GOOGLENET_DATA`` (each itself, then its subfolder ``fashion-mnist``), the cache, and
    the folder of Debian's package; the downloads are that package and the public mirrors. Damaged files, a `root`
    without the files, and downloads are reported on standard error. Raises ValueError with all failed attempts.
    """
    return _find(root)[0]


def _find(root: str | None) -> tuple[Path, dict[str, bytes]]:
    """Return the folder of `find_fashion_mnist` and the verified content of the files."""
    cache = cache_folder() / "fashion-mnist"
    roots = [Path(path).expanduser() for path in (root, os.environ.get("GOOGLENET_DATA")) if path]
    failures = []
    for folder in [*(p for path in roots for p in (path, path / "fashion-mnist")), cache, DEBIAN_FOLDER]:
        if not list_files(folder):
            failures.append(f"{folder}: no Fashion-MNIST files")
            continue
        try:
            content = _read_verified(folder)
        except (OSError, ValueError) as error:
            failures.append(str(error))
            print(f"not used: {error}", file=sys.stderr)
            continue
        if root and not folder.is_relative_to(Path(root).expanduser()):
            print(f"no intact Fashion-MNIST in {root}; using {folder}", file=sys.stderr)
        return folder, content
    for origin in ("Debian's package", *MIRRORS):
        try:
            print(f"downloading Fashion-MNIST (30 MB) from {origin}", file=sys.stderr)
            with tempfile.TemporaryDirectory() as scratch:
                folder = _from_mirror(origin, Path(scratch)) if origin in MIRRORS else _from_debian(Path(scratch))
                content = _read_verified(folder)
                cache = cache_file("fashion-mnist")
                cache.mkdir(parents=True, exist_ok=True)
                for file in list_files(folder):
                    write_atomically(cache / file.name, file.read_bytes())
                return cache, content
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            failures.append(f"{origin}: {error}")
    raise ValueError(
        "Fashion-MNIST was not found and could not be downloaded; put its four files into a folder and pass it with "
        "--data-root (for train: --data.root). Tried " + "; ".join(failures)
    )


def list_files(folder: Path) -> list[Path]:
    """Return those of the four files that exist in `folder`, compressed or not."""
    return [path for name in DIGESTS if (path := _file(folder, name))]


def _file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


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


def _from_debian(scratch: Path) -> Path:
    """Download and unpack Debian's package without root, using its own package lists and cache."""
    for command in ("apt-get", "dpkg-deb"):
        if shutil.which(command) is None:
            raise ValueError(f"no {command} on this system")
    options = [
        "-o", f"Dir::State::Lists={scratch / 'lists'}", "-o", f"Dir::Cache={scratch / 'cache'}",
        "-o", "Debug::NoLocking=1", "-o", "Acquire::Retries=2", "-o", "APT::Sandbox::User=",
    ]  # fmt: skip
    for folder in ("lists/partial", "cache/archives/partial"):
        (scratch / folder).mkdir(parents=True)
    _run(["apt-get", *options, "update"], scratch)
    _run(["apt-get", *options, "download", "dataset-fashion-mnist"], scratch)
    package = next(scratch.glob("*.deb"), None)
    if package is None:
        raise ValueError("apt-get downloaded no package")
    _run(["dpkg-deb", "-x", str(package), str(scratch / "tree")], scratch)
    return scratch / "tree" / DEBIAN_FOLDER.relative_to("/")


def _run(command: list[str], folder: Path) -> None:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    if result.returncode:
        raise ValueError((result.stderr.strip().splitlines() or ["failed without a message"])[-1])


def _from_mirror(mirror: str, scratch: Path) -> Path:
    for name in DIGESTS:
        if not download(f"{mirror}{name}.gz", scratch / f"{name}.gz"):
            raise ValueError(f"{name}.gz is not on the server")
    return scratch
