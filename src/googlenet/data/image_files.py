"""Find image files: by suffix or, if a file has none, by content; everything else is rejected for a reason."""

import os
import re
import warnings
from collections.abc import Iterator
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from .accounting import Accounting
from .decode import HEIF_ADVICE, SUFFIXES, printable

SYSTEM_FOLDERS = frozenset((
    "__macosx", "@eadir", "$recycle.bin", "#recycle", "@recycle", "system volume information", "lost+found",
    "__pycache__",
))  # fmt: skip
HEIF_SUFFIXES = frozenset((".heic", ".heif", ".hif"))
RAW_SUFFIXES = frozenset((
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".mrw", ".nef",
    ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
))  # fmt: skip
MAX_DEPTH = 250  # of folders: deeper ones would exceed the recursion limit
RAW_ADVICE = "camera raw file: convert it to JPEG or PNG"
Identity = tuple[int, int]


class Rejected(NamedTuple):
    """A file, folder or link that is not usable; `invalid` if it claims to be an image."""

    kind: str
    reason: str
    path: Path
    invalid: bool = False


class Folder(NamedTuple):
    """A folder: its images and subfolders, each sorted by name, and what was rejected, also in hidden subfolders."""

    path: Path
    images: list[Path]
    folders: list["Folder"]
    rejected: list[Rejected]

    def walk(self) -> Iterator[Path]:
        """Yield all images in it and its subfolders, sorted by path."""
        items: list[tuple[str, Path | Folder]] = [(path.name, path) for path in self.images]
        items += [(folder.path.name, folder) for folder in self.folders]
        for _, item in sorted(items, key=itemgetter(0)):
            if isinstance(item, Folder):
                yield from item.walk()
            else:
                yield item

    def all_rejected(self) -> Iterator[Rejected]:
        """Yield everything that was rejected in it and its subfolders."""
        yield from self.rejected
        for folder in self.folders:
            yield from folder.all_rejected()

    def has_images(self) -> bool:
        """Return whether it or a subfolder contains an image."""
        return next(self.walk(), None) is not None


def scan_folder(root: Path) -> Folder:
    """List the files below `root`. Linked folders are followed, except those that contain the link itself."""
    resolved = root.resolve()
    return _scan(root, frozenset(_identity(os.stat(path)) for path in resolved.parents), "")


def image_files(folder: Path, accounting: Accounting) -> Iterator[Path]:
    """Yield the images in `folder` and its subfolders, sorted by path; the others are excluded in `accounting`."""
    found = scan_folder(folder)
    for item in found.all_rejected():
        exclude_rejected(item, accounting)
    for path in found.walk():
        accounting.use("file")
        yield path


def exclude_rejected(item: Rejected, accounting: Accounting) -> None:
    """Count a rejected item as excluded."""
    accounting.exclude(item.kind, item.reason, printable(item.path), invalid=item.invalid)


def suffix_of(name: str) -> str:
    """Return the suffix in lower case, such as ".jpg"; "" if a number or several words follow the last dot."""
    suffix = Path(name).suffix.lower()
    return "" if re.fullmatch(r"\.\d+|.*\s.*", suffix, re.DOTALL) else suffix


def why_not_image(path: Path) -> tuple[str, bool]:
    """Return why a file is not an image and whether it claims to be one; ("", False) for an image."""
    suffix = suffix_of(path.name)
    if suffix in SUFFIXES:
        return "", False
    if suffix in HEIF_SUFFIXES or suffix in RAW_SUFFIXES:
        return (HEIF_ADVICE if suffix in HEIF_SUFFIXES else RAW_ADVICE), True
    if suffix:
        return f"unsupported suffix {printable(suffix)}", False
    return _why_not_image_content(path), False


def identify_suffix(path: Path) -> str:
    """Return the suffix of an image file, from its content if its name has none."""
    if suffix := suffix_of(path.name):
        return suffix
    with Image.open(path, formats=_identifiable_formats()) as image:
        return min(suffix for suffix, name in Image.EXTENSION.items() if name == image.format and suffix in SUFFIXES)


def _why_not_image_content(path: Path) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            Image.open(path, formats=_identifiable_formats()).close()
    except PermissionError:
        return "no suffix, and permission denied"
    except Image.DecompressionBombError:
        return ""  # It is an image, which is rejected when it is decoded.
    except Exception:  # Pillow's parsers raise many types
        return "no suffix, and not an image"
    return ""


@cache
def _identifiable_formats() -> tuple[str, ...]:
    """Return the formats with a signature: TGA has none and would accept other data."""
    registered = Image.registered_extensions()
    return tuple(sorted({registered[suffix] for suffix in SUFFIXES if suffix in registered} - {"MPO", "TGA"}))


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


def _scan(path: Path, parents: frozenset[Identity], hidden: str) -> Folder:
    """List a folder; `parents` are the folders that contain it, and `hidden` is why all of its files are rejected."""
    folder = Folder(path, [], [], [])
    if len(parents) > MAX_DEPTH:
        folder.rejected.append(Rejected("folder", f"more than {MAX_DEPTH} folders deep", path, invalid=True))
        return folder
    try:
        parents |= {_identity(path.stat())}
        with os.scandir(path) as iterator:
            entries = sorted(iterator, key=lambda entry: entry.name)
    except OSError as error:
        folder.rejected.append(Rejected("folder", f"cannot be read ({error.strerror})", path, invalid=True))
        return folder
    for entry in entries:
        child, why_hidden = Path(entry.path), hidden or _why_hidden(entry.name)
        if not (os.path.isdir(child) if entry.is_symlink() else entry.is_dir()):
            rejected = _reject(entry, child, why_hidden)
            folder.images.extend([] if rejected else [child])
            folder.rejected.extend([rejected] if rejected else [])
        elif entry.is_symlink() and _identity(child.stat()) in parents:
            folder.rejected.append(Rejected("link", "link to a folder that contains it", child))
        else:
            inner = _scan(child, parents, why_hidden)
            folder.folders.extend([] if why_hidden else [inner])
            folder.rejected.extend(inner.all_rejected() if why_hidden else [])
    return folder


def _why_hidden(name: str) -> str:
    if name.lower() in SYSTEM_FOLDERS:
        return "in a system folder"
    return "hidden" if name.startswith(".") else ""


def _reject(entry: os.DirEntry[str], path: Path, hidden: str) -> Rejected | None:
    """Return why an entry that is not a folder is not an image; None for an image."""
    if entry.is_symlink() and not os.path.exists(path):
        return Rejected("link", hidden or "broken link", path, not hidden and suffix_of(path.name) in SUFFIXES)
    if not (os.path.isfile(path) if entry.is_symlink() else entry.is_file()):
        return Rejected("special file", hidden or "not a regular file", path)
    if hidden:
        return Rejected("file", hidden, path)
    reason, invalid = why_not_image(path)
    return Rejected("file", reason, path, invalid) if reason else None
