"""Atomic file and folder replacement, the cache folder, and versions of installed packages."""

import os
import shutil
import tempfile
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path

# A cache entry that was used within this time is not deleted: a process may be about to open it.
CACHE_GRACE_S = 3600.0
CACHE_MAX_AGE_S = 90 * 24 * 3600.0


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


def replace_folder(new: Path, target: Path, backup: Path) -> None:
    """Rename the folder `new` to `target`; an older `target` is moved to `backup`, and back if that fails."""
    existed = target.exists()
    if existed:
        target.rename(backup)
    try:
        new.rename(target)
    except BaseException:
        if existed:
            backup.rename(target)
        raise


def prune_cache(folder: Path, max_bytes: int, keep: Path) -> None:
    """Delete the files and folders in `folder` that were not used for 90 days, and the oldest beyond `max_bytes`.

    `keep` and what was used within the last hour stay. Entries that another process deletes meanwhile are skipped.
    """
    entries = []
    for path in folder.iterdir() if folder.is_dir() else ():
        with suppress(OSError):
            files = [path, *path.rglob("*")] if path.is_dir() else [path]
            entries.append((path.stat().st_mtime, sum(file.stat().st_size for file in files), path))
    total, now = sum(size for _, size, _ in entries), time.time()
    for used, size, path in sorted(entries):
        if now - used <= CACHE_GRACE_S or (total <= max_bytes and now - used <= CACHE_MAX_AGE_S):
            break
        if path != keep:
            total -= size
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def mark_used(path: Path) -> None:
    """Record that a cache entry is in use, for `prune_cache`."""
    with suppress(OSError):
        os.utime(path)


def package_version(package: str) -> str | None:
    """Return the version of an installed package; None if it has no metadata."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cache_folder() -> Path:
    """Return the folder for reproducible files: ``$XDG_CACHE_HOME/googlenet`` or ``~/.cache/googlenet``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "googlenet"
