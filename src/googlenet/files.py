"""Atomic file writes, the cache folder, and versions of installed packages."""

import os
import tempfile
from importlib import metadata
from pathlib import Path


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace the file `path` by `content`, or leave it unchanged: write a temporary file, sync it, rename it."""
    data = content.encode() if isinstance(content, str) else content
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def package_version(package: str) -> str | None:
    """Return the version of an installed package; None if it has no metadata."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cache_folder() -> Path:
    """Return the folder for reproducible files: ``$XDG_CACHE_HOME/googlenet`` or ``~/.cache/googlenet``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "googlenet"
