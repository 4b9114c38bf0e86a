"""Where each sample of a tar file lies, so that any can be read at once; and shards at a URL, brought to the disk."""

import hashlib
import http.client
import json
import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..cache import cache_folder
from .pictures import SUFFIXES
from .records import remembered

FOLDER = "shards"
TIMEOUT = 60.0


class Sample(NamedTuple):
    """A picture in a tar file: the sample's `key`, where its bytes `start` and how many there are, its label as it
    is written there: a number, or a class's name."""

    key: str
    start: int
    size: int
    label: int | str


class Index(NamedTuple):
    """The samples of a tar file in order, and what of it cannot be used."""

    samples: list[Sample]
    problems: list[str]


def webdataset() -> Any:
    """The library, or ValueError that says how to install it."""
    try:
        import webdataset
    except ImportError:
        raise ValueError("shards need the library webdataset; run: pip install 'googlenet[scale]'") from None
    return webdataset


def index_tar(path: Path) -> Index:
    """The samples of the tar file `path`, in webdataset's form: files of one name before the first dot.

    A sample has a picture, and its label in ``cls`` or in a ``json`` as ``label`` or ``cls``. The index is kept in
    the cache until the file changes. Raises ValueError for what is no tar file, and for a compressed one.
    """
    about = path.stat()
    mark = f"{path.absolute()}|{about.st_size}|{about.st_mtime_ns}"
    samples, problems = remembered("indices", os.fsencode(mark), lambda: _read_index(path))
    return Index([Sample(*sample) for sample in samples], problems)


def _read_index(path: Path) -> Index:
    wds = webdataset()
    samples, problems = [], []

    def broken(error: Exception) -> bool:
        problems.append(f"{path}: {error.args[0] if error.args else error}")
        return True

    def members(tar: tarfile.TarFile) -> Iterator[dict[str, Any]]:
        count = 0
        try:
            for member in tar:
                count += 1
                if member.isreg():
                    yield {"fname": member.name, "data": (member.offset_data, member.size), "__url__": str(path)}
        except tarfile.TarError as error:
            problems.append(f"{path}: damaged after {count} files ({error})")

    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            # The grouping needs names and places alone; labels are read when the headers have been.
            for sample in list(wds.tariterators.group_by_keys(members(tar), handler=broken)):
                pictures = [suffix for suffix in sample if f".{suffix}" in SUFFIXES]
                try:
                    if not pictures:
                        raise ValueError("no picture in it")
                    start, size = sample[pictures[0]]
                    samples.append(Sample(sample["__key__"], start, size, _label(file, sample)))
                except ValueError as error:
                    problems.append(f"{path}/{sample['__key__']}: {error}")
    except tarfile.TarError:
        raise ValueError(
            f"{path}: not a tar file, or a compressed one; shards are read in place, unpack them"
        ) from None
    return Index(samples, problems)


def _label(file: Any, sample: dict[str, Any]) -> int | str:
    def content(part: str) -> bytes:
        start, size = sample[part]
        file.seek(start)
        found: bytes = file.read(size)
        return found

    label: Any = None
    if "cls" in sample:
        label = content("cls").decode(errors="replace").strip()
    elif "json" in sample:
        about = json.loads(content("json"))
        label = (
            next((about[key] for key in ("label", "cls") if key in about), None) if isinstance(about, dict) else None
        )
    if isinstance(label, str) and label.isdecimal():
        return int(label)
    if (isinstance(label, int) and not isinstance(label, bool)) or (isinstance(label, str) and label):
        return label
    raise ValueError("no label in it: neither cls nor a json with label")


def fetch(url: str) -> Path | None:
    """The file at `url` as it lies in the cache, brought there first where it does not; None where there is none.

    Raises ValueError where it cannot be had. A file is there whole or not at all, and is not asked for again.
    """
    base, _, name = url.partition("?")[0].rpartition("/")
    folder = cache_folder() / FOLDER / hashlib.sha256(f"{base}|{url.partition('?')[2]}".encode()).hexdigest()[:24]
    path = folder / name
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
    try:
        with os.fdopen(handle, "wb") as file, urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            shutil.copyfileobj(answer, file, 2**20)
            wanted = answer.headers.get("Content-Length")
            if wanted is not None and file.tell() != int(wanted):
                raise ValueError(
                    f"{url}: the transfer broke off at {file.tell():,} of {int(wanted):,} bytes; try again"
                )
        os.replace(partial, path)
    except urllib.error.HTTPError as error:
        # Stores that must not be listed answer 403 for what is not there.
        if error.code in (403, 404):
            return None
        raise ValueError(f"{url}: the server answers {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise ValueError(f"{url}: cannot be fetched ({reason})") from None
    finally:
        Path(partial).unlink(missing_ok=True)
    return path
