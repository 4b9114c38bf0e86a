"""Pascal VOC folders: an XML file per picture, read as they are found."""

import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..data.pictures import SUFFIXES
from .dataset import Found
from .files import Annotated, checked

SPLIT_NAMES = {"train": ("train", "trainval"), "validation": ("val",), "test": ("test",)}


def voc_files(root: Path) -> dict[str, list[Path]]:
    """Of each split that `root` has, its XML files.

    `root` has ``Annotations/``, ``JPEGImages/`` and ``ImageSets/Main/train.txt`` and the like, as the challenge gave
    them out; without lists all are training pictures. Or XML files lie beside their pictures, as labelling programs
    leave them, in `root` or in its folders ``train``, ``val`` (or ``valid``) and ``test``. ValueError for no XML
    file.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    place = root / "Annotations" if (root / "Annotations").is_dir() else root
    found: dict[str, list[Path]] = {}
    for split, names in SPLIT_NAMES.items():
        for name in names:
            listing = root / "ImageSets" / "Main" / f"{name}.txt"
            if split not in found and listing.is_file():
                lines = [line.split()[0] for line in listing.read_text().splitlines() if line.strip()]
                found[split] = [place / f"{stem}.xml" for stem in lines]
        for name in (*names, "valid"):
            if split not in found and not (split != "validation" and name == "valid"):
                files = sorted((root / name).glob("*.xml"))
                found |= {split: files} if files else {}
    if not found:
        files = sorted(place.glob("*.xml"))
        found = {"train": files} if files else {}
    if "train" not in found:
        raise ValueError(f"{root}: no XML files of annotations to train on; looked in Annotations, train and {root}")
    return found


def voc_classes(files: Sequence[Path]) -> tuple[str, ...]:
    """The names of all objects in `files`, in alphabetical order; files that cannot be read are left out."""
    names = set()
    for path in files:
        root = _xml(path)
        if root is not None:
            names |= {name for one in root.iter("object") if (name := (one.findtext("name") or "").strip())}
    return tuple(sorted(names))


def read_voc(root: Path, files: Sequence[Path], classes: tuple[str, ...]) -> tuple[Found, bool]:
    """The pictures of the XML `files`, and whether all are grey.

    The challenge counts pixels from 1 and its boxes include the last one; here they start at 0 and end behind it.
    Objects marked difficult are neither asked for nor false alarms there: they are `crowd` here. Objects of classes
    that are not in `classes` are counted and left out.
    """
    problems: Counter[str] = Counter()
    annotated = []
    for number, path in enumerate(files, start=1):
        document = _xml(path)
        if document is None:
            kind = "XML files that cannot be read, left out" if path.exists() else "XML files missing, left out"
            problems[kind] += 1
            continue
        annotated.append(_annotated(number, path, document, root, classes, problems))
    return checked(annotated, classes, problems)


def _xml(path: Path) -> ElementTree.Element | None:
    try:
        return ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError):
        return None


def _annotated(
    number: int,
    path: Path,
    document: ElementTree.Element,
    root: Path,
    classes: tuple[str, ...],
    problems: Counter[str],
) -> Annotated:
    boxes, labels, difficult = [], [], []
    for one in document.iter("object"):
        name = (one.findtext("name") or "").strip()
        box = one.find("bndbox")
        if name not in classes:
            problems["objects of an unknown class, left out"] += 1
            continue
        try:
            assert box is not None
            left, top, right, bottom = (float(box.findtext(key) or "") for key in ("xmin", "ymin", "xmax", "ymax"))
        except (AssertionError, ValueError):
            problems["annotations without a box, left out"] += 1
            continue
        boxes.append((left - 1, top - 1, right, bottom))
        labels.append(classes.index(name))
        difficult.append((one.findtext("difficult") or "0").strip() == "1")
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in boxes]
    return Annotated(_picture(path, document, root), number, _size(document), boxes, labels, difficult, areas)


def _picture(path: Path, document: ElementTree.Element, root: Path) -> Path:
    """The picture's file: as the XML names it, or of the XML file's own name."""
    folders = [root / "JPEGImages", path.parent, root]
    named = (document.findtext("filename") or "").strip()
    names = [named] if named else []
    names += [path.stem + suffix for suffix in (".jpg", *sorted(SUFFIXES))]
    there = (folder / name for name in names for folder in folders)
    return next((place for place in there if place.is_file()), folders[0] / (named or f"{path.stem}.jpg"))


def _size(document: ElementTree.Element) -> tuple[int, int] | None:
    try:
        height, width = (int(document.findtext(f"size/{key}") or "") for key in ("height", "width"))
    except ValueError:
        return None
    return (height, width) if height > 0 and width > 0 else None
