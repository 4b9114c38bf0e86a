"""Read Pascal VOC annotations: one XML file per image."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ...data.dataset import LoadOptions
from ...data.decode import SUFFIXES, printable
from ...files import clean_name, missing_folder
from .dataset import DetectionDataset
from .fields import decode_list, parse_flag, parse_int, parse_number, parse_xml, printable_name
from .layout import ANNOTATION_FOLDERS, SPLIT_NAMES, ImageFinder, search_folders, subfolder, subfolders
from .loading import AnnotationFile, RawAnnotation, RawObject, build_detection_dataset


class VocFile(NamedTuple):
    """An annotated image: its name, its XML file, and the document, or the reason why it cannot be used."""

    name: str
    path: Path
    document: ElementTree.Element | str


def load(location: str, options: LoadOptions) -> DetectionDataset:
    """Load a folder in Pascal VOC format; see `find_voc_files`."""
    root = Path(location).resolve()
    splits = {split: [_read(root, path) for path in paths] for split, paths in find_voc_files(root).items()}
    unlisted = splits.pop("unlisted", [])
    classes = voc_classes(splits["train"])
    if not classes:
        broken = next((f" ({item.name}: {item.document})" for item in splits["train"] if _is_broken(item)), "")
        raise ValueError(f"{root}: no XML file of the training images contains an object{broken}")
    finder = ImageFinder()
    parents = {item.path.parent for items in splits.values() for item in items}
    finder.bases |= {root, root.parent, *parents, *(parent.parent for parent in parents)}
    files = {split: read_voc(root, items, classes, finder) for split, items in splits.items()}
    for item in unlisted:
        count = 0 if isinstance(item.document, str) else len(list(item.document.iter("object")))
        files["train"].exclude_image("in no list of ImageSets/Main", item.name, count)
    return build_detection_dataset(f"voc:{location}", files, finder, options)


def find_voc_files(root: Path) -> dict[str, list[Path]]:
    """Return the XML files of each split, and as ``unlisted`` those that are in no list.

    `root` has ``Annotations/`` and the lists ``ImageSets/Main/train.txt`` etc. (without lists for training, all images
    are for training), or the XML files in folders named like a split, in `root` or in ``Annotations/``; or all XML
    files in or below `root` are for training. Names are accepted in any case. Raises ValueError without training
    annotations.
    """
    if not root.is_dir():
        raise missing_folder(root)
    folder = subfolder(root, *ANNOTATION_FOLDERS) or root
    lists = _find_lists(root)
    if lists and "train" not in lists:
        raise ValueError(f"{root}: ImageSets has {', '.join(path.name for path in lists.values())}, but no train.txt")
    if lists:
        available = {clean_name(path.relative_to(folder).with_suffix("").as_posix()): path for path in _xml(folder)}
        files = {split: _read_list(path, folder, available) for split, path in lists.items()}
        listed = {path for paths in files.values() for path in paths}
        return files | {"unlisted": [path for path in available.values() if path not in listed]}
    by_split: dict[str, list[Path]] = {}
    for split, names in SPLIT_NAMES.items():
        bases = dict.fromkeys((root, folder))
        inner = [path for base in bases for name, path in subfolders(base).items() if name in names]
        if paths := list(dict.fromkeys(path for each in inner for path in _xml(each))):
            by_split[split] = paths
    if not by_split and (paths := _xml(folder)):
        by_split = {"train": paths}
    if "train" not in by_split:
        raise ValueError(f"{root}: no XML files with training annotations in {root}, Annotations or train")
    return by_split


def _xml(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".xml" and path.is_file())


def _find_lists(root: Path) -> dict[str, Path]:
    """Return the list of each split in ``ImageSets/Main`` or ``ImageSets``; "trainval" replaces a missing "train"."""
    image_sets = subfolder(root, "imagesets")
    folder = image_sets and (subfolder(image_sets, "main") or image_sets)
    found = {path.stem.lower(): path for path in folder.glob("*") if path.suffix.lower() == ".txt"} if folder else {}
    lists: dict[str, Path] = {}
    for split, names in SPLIT_NAMES.items():
        for name in (*names, "trainval") if split == "train" else names:
            if name in found:
                lists.setdefault(split, found[name])
    return lists


def _read_list(path: Path, folder: Path, available: dict[str, Path]) -> list[Path]:
    """Return the XML files of a list, whose lines are names with or without suffix and VOC's flag 1 or -1."""

    def stem(line: str) -> str:
        name = line.replace("\\", "/").removeprefix("./")
        for candidate in (name, re.sub(r"\s+(-?1|0)$", "", name)):
            if candidate in available:
                return candidate
            suffix = Path(candidate).suffix.lower()
            if suffix in SUFFIXES or suffix == ".xml":
                candidate = candidate[: -len(suffix)]
            # The entry may be a path that is relative to another folder.
            for end in (candidate, candidate.rpartition("/")[2]):
                if end in available:
                    return end
        return candidate

    try:
        lines = decode_list(path.read_bytes(), lambda line: stem(line) in available)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable text file ({error})") from None
    stems = map(stem, lines)
    return [available.get(name) or folder / f"{name}.xml" for name in dict.fromkeys(stems)]


def _read(root: Path, path: Path) -> VocFile:
    name = printable_name(printable(path.relative_to(root))) if path.is_relative_to(root) else printable_name(path)
    try:
        return VocFile(name, path, parse_xml(path.read_bytes()))
    except FileNotFoundError:
        return VocFile(name, path, "no such XML file")
    except OSError as error:
        return VocFile(name, path, f"unreadable XML file: {error.strerror}")
    except ValueError as error:
        return VocFile(name, path, str(error))


def _is_broken(item: VocFile) -> bool:
    return isinstance(item.document, str)


def voc_classes(items: Iterable[VocFile]) -> tuple[str, ...]:
    """Return the class names of all objects in alphabetical order."""
    documents = (item.document for item in items if not isinstance(item.document, str))
    objects = (element for document in documents for element in document.iter("object"))
    return tuple(sorted({name for element in objects if (name := _text(element, "name"))}))


def read_voc(root: Path, items: Sequence[VocFile], classes: tuple[str, ...], finder: ImageFinder) -> AnnotationFile:
    """Read the XML files of a split.

    VOC coordinates start at 1 and include the last pixel. Objects marked difficult become crowd boxes, because VOC
    neither requires nor penalizes their detection.
    """
    file, annotations, folders = AnnotationFile(classes), [], dict[Path, list[Path]]()
    for image_id, item in enumerate(items, start=1):
        if isinstance(item.document, str):
            file.exclude_image(item.document, item.name, 0)
            continue
        objects = []
        for number, element in enumerate(item.document.iter("object"), start=1):
            name = f"{item.name}: object {number}"
            raw = _parse_object(element, classes, name)
            if isinstance(raw, str):
                file.exclude_box(raw, name)
                continue
            objects.append(raw)
            if parse_flag(_text(element, "truncated")) is None:
                file.notes["box with a field truncated neither 0 nor 1, which has no effect"].append(name)
        size = _image_size(item.document)
        if isinstance(size, str):
            file.exclude_image(size, item.name, len(objects))
            continue
        parent = item.path.parent
        if parent not in folders:
            beside = root if parent == root or root.name.lower() in ANNOTATION_FOLDERS else None
            above = [parent.parent] if parent != root and parent.name.lower() in ANNOTATION_FOLDERS else []
            folders[parent] = search_folders([parent, *above, root], _image_folder_names(parent), beside)
        filename = _text(item.document, "filename")
        names = [filename] if filename else []
        names += [item.path.stem + suffix for suffix in (".jpg", *sorted(SUFFIXES))]
        found = finder.find(names, folders[parent])
        name = f"{item.name}, {printable_name(filename)}" if isinstance(found, str) and filename else item.name
        annotations.append(RawAnnotation(name, found, image_id, size, objects))
    return file.add_samples(annotations)


def _image_folder_names(parent: Path) -> list[str]:
    """Return names of the folder of the images of the XML files in `parent`: its own, or those of its split."""
    split = next((names for names in SPLIT_NAMES.values() if parent.name.lower() in names), ())
    return [parent.name, *split]


def _text(element: ElementTree.Element, tag: str) -> str:
    return clean_name(element.findtext(tag) or "")


def _parse_object(element: ElementTree.Element, classes: tuple[str, ...], name: str) -> RawObject | str:
    """Convert an object; or return the field that is wrong."""
    label = _text(element, "name")
    if label not in classes:
        return f"name: no class {label!r} in the training images" if label else "name: missing"
    if element.find("bndbox") is None:
        return "bndbox: missing"
    edges = []
    for key in ("xmin", "ymin", "xmax", "ymax"):
        edge = parse_number(_text(element, f"bndbox/{key}"))
        if edge is None:
            return f"bndbox/{key}: not a finite number"
        edges.append(edge)
    difficult = parse_flag(_text(element, "difficult"))
    if difficult is None:
        return "difficult: neither 0 nor 1"
    box = (edges[0] - 1, edges[1] - 1, edges[2], edges[3])
    return RawObject(box, classes.index(label), difficult, None, name)


def _image_size(document: ElementTree.Element) -> tuple[int, int] | str | None:
    """Return (height, width); None if they are missing or 0, or the reason why they are invalid."""
    texts = [_text(document, f"size/{key}") for key in ("height", "width")]
    height, width = map(parse_int, texts)
    if "" in texts or (height == 0 and width == 0):
        return None
    if height is None or width is None or min(height, width) < 1:
        return "size: height and width are not positive integers"
    return height, width
