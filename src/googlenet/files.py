"""Atomic replacement of files and folders, text files of any common encoding, the cache, package versions."""

import errno
import json
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

if sys.platform != "win32":
    import fcntl

# A cache entry that was used within this time is not deleted: a process may be about to open it.
CACHE_GRACE_S = 3600.0
CACHE_MAX_AGE_S = 90 * 24 * 3600.0
# What is stored instead of a file that was not downloaded, by its first bytes.
PLACEHOLDERS = (
    (rb"$", "damaged (an empty file): copy or download it again"),
    (rb"version https://git-lfs", "a Git LFS pointer instead of the file: run git lfs pull"),
    (rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype html|html)", "an HTML page instead of the file: download it again"),
)
HEAD_BYTES = 512
_LOCKED: list[BinaryIO] = []


def describe_placeholder(head: bytes) -> str | None:
    """Return what a file with these first bytes is, and what to do, if it was not downloaded; None for other files."""
    return next((text for pattern, text in PLACEHOLDERS if re.match(pattern, head)), None)


def raise_for_placeholder(path: Path) -> None:
    """Raise ValueError if a file was not downloaded: it is empty, an HTML page or a Git LFS pointer."""
    with path.open("rb") as file:
        if problem := describe_placeholder(file.read(HEAD_BYTES)):
            raise ValueError(f"{path}: {problem}")


def missing_folder(path: Path) -> ValueError:
    """Return the error for a path that is not a folder."""
    return ValueError(f"{path}: {'a file; name a folder' if path.exists() else 'no such folder'}")


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace the file `path` by `content`, or leave it unchanged: write a temporary file, sync it, rename it."""
    data = content.encode() if isinstance(content, str) else content
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        # Unlike a file of `tempfile`, which only its owner can read, it has the permissions of the umask.
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
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


def lock_file(path: Path) -> bool:
    """Reserve an existing file for this process until the end of `unlock_at_end`; False if another one has it.

    Locks of POSIX records end with the process, even if it is killed, and its children do not inherit them. Systems and
    file systems without such locks reserve nothing.
    """
    if sys.platform == "win32":
        return True
    with suppress(FileNotFoundError, PermissionError):
        _LOCKED.append(path.open("r+b"))
        try:
            fcntl.lockf(_LOCKED[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


@contextmanager
def unlock_at_end() -> Iterator[None]:
    """Release all files of `lock_file` at the end of the context."""
    try:
        yield
    finally:
        while _LOCKED:
            _LOCKED.pop().close()


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Reserve a file, created if necessary, within the context; yields False if another process has it."""
    path.touch()
    held = len(_LOCKED)
    try:
        yield lock_file(path)
    finally:
        while len(_LOCKED) > held:
            _LOCKED.pop().close()


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


def read_text(path: Path) -> str:
    r"""Read a file in UTF-8, UTF-16 or UTF-32; line ends become ``\n``.

    Raises ValueError with the file, and the line of an invalid byte.
    """
    try:
        return decode_text(path.read_bytes()).replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}: line {line} is not {error.encoding} text; save the file as UTF-8") from None


def decode_text(data: bytes) -> str:
    """Decode UTF-8, UTF-16 or UTF-32, and remove the byte order mark; UnicodeDecodeError for invalid bytes."""
    return data.decode(json.detect_encoding(data))


def clean_name(value: Any) -> str:
    """Return a name in Unicode's composed form (NFC), without spaces around it: macOS decomposes file names."""
    return unicodedata.normalize("NFC", str(value)).strip()


def package_version(package: str) -> str | None:
    """Return the version of an installed package; None if it has no metadata."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cache_folder() -> Path:
    """Return the folder for reproducible files: ``$XDG_CACHE_HOME/googlenet`` or ``~/.cache/googlenet``."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "googlenet"
    except RuntimeError:  # a user without a home folder
        return Path(os.devnull) / "googlenet"


def cache_file(*parts: str) -> Path:
    """Return the path `parts` in the cache folder.

    If it does not exist there and the folder cannot be written to, as in a container with a read-only home, return its
    path in a temporary folder of this process: a cache only saves time.
    """
    path = cache_folder().joinpath(*parts)
    # Not Path.exists, which raises an error for a folder that this user cannot enter.
    return path if os.path.exists(path) else _writable(cache_folder()).joinpath(*parts)


@cache
def _writable(folder: Path) -> Path:
    """Return `folder`, created if necessary, or a temporary folder, after a warning, if it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        advice = "set XDG_CACHE_HOME to a writable folder to keep results between runs"
        print(f"{folder}: cannot write to the cache; {advice}", file=sys.stderr)
        return Path(_temporary_folder().name)


@cache
def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="googlenet-cache-")
