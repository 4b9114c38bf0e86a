"""Cache files for results that are slow to compute, such as the index of a tar file; and downloads."""

import hashlib
import http.client
import json
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..files import cache_file, write_atomically

DOWNLOAD_TIMEOUT_S = 60.0


def cache_path(kind: str, key: bytes, suffix: str) -> Path:
    """Return the path of the cache file for `key` in the folder `kind`."""
    return cache_file(kind, f"{hashlib.sha256(key).hexdigest()[:24]}{suffix}")


def cache_write(path: Path, content: bytes | str) -> None:
    """Write a cache file; if that is impossible, print a warning, because the result can be computed again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        print(f"{path}: cannot write to the cache ({error.strerror or error})", file=sys.stderr)


def cached_json(kind: str, key: bytes, compute: Callable[[], Any]) -> Any:
    """Return the cached JSON value, or compute and cache it; tuples become lists in both cases."""
    path = cache_path(kind, key, ".json")
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        text = json.dumps(compute())
        cache_write(path, text)
        return json.loads(text)


def download(url: str, path: Path) -> bool:
    """Download `url` to `path`, complete or not at all; False if the server has no such file, ValueError on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
            partial = Path(scratch, path.name)
            with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_S) as response, partial.open("wb") as file:
                shutil.copyfileobj(response, file, 2**20)
                length = int(response.headers.get("Content-Length", file.tell()))
                if file.tell() != length:
                    raise ValueError(
                        f"{url}: the download stopped after {file.tell():,} of {length:,} bytes; try again"
                    )
            partial.replace(path)
    except (OSError, http.client.HTTPException) as error:
        # Object stores that do not allow listing respond with 403 for a missing file.
        if isinstance(error, urllib.error.HTTPError) and error.code in (403, 404):
            return False
        reason = error.reason if type(error) is urllib.error.URLError else error
        raise ValueError(f"{url}: download failed ({reason})") from None
    return True
