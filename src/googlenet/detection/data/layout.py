"""Find annotation files, folders and images in the layouts that annotation programs export."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...data.accounting import MAX_EXAMPLES, Accounting
from ...data.decode import printable
from ...data.image_files import scan_folder
from ...data.sources.splits import SPLIT_KEYWORDS, SPLITS
from ...files import clean_name

# The names of each split, in any case; those of VOC's "trainval" lists are handled by `voc`.
SPLIT_NAMES = {split: tuple(word for word, name in SPLIT_KEYWORDS.items() if name == split) for split in SPLITS}
# Usual names of folders of images, in lower case.
IMAGE_FOLDERS = ("images", "data", "jpegimages", "image", "imgs", "img")
ANNOTATION_FOLDERS = ("annotations", "annotation", "labels", "xml", "xmls")


def split_of(name: str) -> str | None:
    """Return the split that a file or folder name such as ``instances_val2017`` or ``Train`` mentions, or None."""
    words = re.findall(r"[a-z]+", name.lower())
    return next((split for split, names in SPLIT_NAMES.items() if set(words) & set(names)), None)


def subfolder(folder: Path, *names: str) -> Path | None:
    """Return the subfolder with the first of `names`, in lower case, whatever its case on disk; or None."""
    found = subfolders(folder)
    return next((found[name] for name in names if name in found), None)


def subfolders(folder: Path) -> dict[str, Path]:
    """Return the subfolders by their names in lower case; none if `folder` is not a folder."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        names = sorted((entry.name for entry in entries if entry.is_dir()), reverse=True)
    return {name.lower(): folder / name for name in names}


def search_folders(bases: Sequence[Path], names: Sequence[str], beside: Path | None = None) -> list[Path]:
    """Return the folders that may contain the images of a split, the most specific first.

    They are, of each of `bases`, subfolders with one of the `names`, also in or above ``images`` etc., the subfolders
    ``images`` etc., and the bases themselves. The same subfolders of the parent of `beside` are searched, and the
    parent itself if `beside` is called ``annotations`` or similar.
    """
    names = [name.lower() for name in names]
    parents = [beside.parent] if beside else []
    specific: list[Path] = []
    general: list[Path] = []
    for base in dict.fromkeys([*bases, *parents]):
        containers = _existing(base, IMAGE_FOLDERS)
        for container in (base, *containers):
            for folder in _existing(container, names):
                specific += [*_existing(folder, IMAGE_FOLDERS), folder]
        allowed = base in bases or (beside and beside.name.lower() in ANNOTATION_FOLDERS)
        general += [*containers, *([base] if allowed else [])]
    return list(dict.fromkeys([*specific, *general]))


def _existing(folder: Path, names: Iterable[str]) -> list[Path]:
    found = subfolders(folder)
    return [found[name] for name in names if name in found]


def path_ends(name: str) -> list[str]:
    """Return the ends of an absolute path or URL, which is not on this machine, the longest first; else none.

    Annotations are often written on another machine: ``/content/data/train/1.jpg``, ``C:\\data\\train\\1.jpg``.
    """
    name = clean_name(name).replace("\\", "/")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not re.match(r"/|[A-Za-z]:/|\w+://", name) or ".." in parts or os.path.exists(name):
        return []
    return ["/".join(parts[start:]) for start in range(len(parts))]


class ImageFinder:
    """Finds the image files that annotations name, and counts the files that none names.

    Only files inside the searched folders are found. Links in them are followed, but ``..`` is not.
    """

    def __init__(self) -> None:
        self.bases: set[Path] = set()  # folders that contain other files than images, too
        self.listed: set[Path] = set()
        self.relocated: list[str] = []  # names that are paths on another machine
        self.folders: dict[Path, bool] = {}  # searched, and whether an image was found there
        self._by_name: dict[Path, dict[str, Path]] = {}

    def find(self, names: Sequence[str], folders: Sequence[Path]) -> Path | str:
        """Return the file with the first of `names` in the first of `folders`; or the reason why it is not found.

        Names may have ``\\`` as separator, spaces around them, and another Unicode form than the file on disk. Of an
        absolute path that does not exist on this machine, the longest end that exists in one of the folders is used.
        """
        for folder in folders:
            self.folders.setdefault(folder, False)
        reason = "no such file"
        for name in names:
            for variant in dict.fromkeys((name, clean_name(name).replace("\\", "/"))):
                for folder in folders:
                    path = Path(os.path.normpath(folder / variant))
                    if re.match(r"[A-Za-z]:[/\\]", variant) or not any(map(path.is_relative_to, folders)):
                        reason = "outside the data folder: name a file inside it"
                    elif os.path.isfile(path):
                        return self._list(path, folder)
            for folder in folders:
                if found := self._index(folder).get(os.path.normpath(clean_name(name).replace("\\", "/"))):
                    return self._list(found, folder)
        for name in names:
            for end in path_ends(name):
                for folder in folders:
                    if os.path.isfile(folder / end):
                        self.relocated.append(printable(name))
                        return self._list(folder / end, folder)
        return reason

    def _list(self, path: Path, folder: Path) -> Path:
        self.listed.add(path)
        self.folders[folder] = True
        return path

    def _index(self, folder: Path) -> dict[str, Path]:
        """Return the image files of a folder by their cleaned relative names."""
        if folder not in self._by_name:
            files = scan_folder(folder).walk()
            self._by_name[folder] = {clean_name(path.relative_to(folder).as_posix()): path for path in files}
        return self._by_name[folder]

    def count_files(self, accounting: Accounting) -> None:
        """Count the image files: used if an annotation lists them, else excluded.

        Those of all searched folders are counted, but of `bases` only if an image was found there.
        """
        counted = set(self.listed)
        for folder, has_images in self.folders.items():
            if has_images or folder not in self.bases:
                counted.update(self._index(folder).values())
        accounting.use("file", len(self.listed))
        if self.relocated:
            examples = ", ".join(self.relocated[:MAX_EXAMPLES])
            accounting.notes.append(
                f"{len(self.relocated):,} paths of another machine, found by their ends ({examples})"
            )
        for path in sorted(counted - self.listed):
            accounting.exclude("file", "not listed in the annotations", printable(path))
