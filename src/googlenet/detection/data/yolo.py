"""Read YOLO annotations: one text file per image with a line ``class x y width height`` per object."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ...data.dataset import LoadOptions
from ...data.decode import printable
from ...data.image_files import scan_folder
from ...files import clean_name
from .dataset import DetectionDataset
from .fields import decode_list, decode_marked, parse_int, parse_numbers, printable_name
from .layout import SPLIT_NAMES, ImageFinder, path_ends, subfolder
from .loading import LISTED_TWICE, AnnotationFile, RawAnnotation, RawObject, build_detection_dataset

# Class names without a YAML file, one per line: LabelImg, CVAT (Darknet).
NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "labels/classes.txt")
# Text files beside images that are not labels.
OTHER_FILES = re.compile(r"(?i)(classes|readme.*|(train|val|valid|validation|test)(ing)?)\.txt")
# Rounding errors of fractions, and values that can only be pixels.
TOLERANCE, PIXELS = 1e-3, 2.0


class YoloConfig(NamedTuple):
    """The class names by index, and the folders and lists of images of each split."""

    names: dict[int, str]
    splits: dict[str, list[Path]]
    notes: tuple[str, ...] = ()


def load(location: str, options: LoadOptions) -> DetectionDataset:
    """Load a YAML file or a folder in YOLO format; see `find_yolo_files`."""
    root = Path(location).resolve()
    config = find_yolo_files(root)
    folder = root if root.is_dir() else root.parent
    finder, label_finder, files = ImageFinder(), LabelFinder(), dict[str, AnnotationFile]()
    finder.bases.add(folder)
    for split, sources in config.splits.items():
        files[split] = read_yolo(sources, config.names, folder, (finder, label_finder))
    files["train"].accounting.notes += config.notes
    if not label_finder.used and any(file.samples for file in files.values()):
        raise ValueError(f"yolo:{location}: no usable training image has a box. {label_finder.searched()}")
    for path in label_finder.orphans():
        files["train"].exclude_image("label file of no listed image", printable(path), len(_lines(path)))
    return build_detection_dataset(f"yolo:{location}", files, finder, options)


def find_yolo_files(root: Path) -> YoloConfig:
    """Return the class names, and the images of each split.

    `root` is a YAML file or a folder with one (Ultralytics, Roboflow), or a folder with ``classes.txt`` or
    ``obj.names``. Images are in the folders and lists that the YAML file names, or in ``images/train``,
    ``train/images``, ``train``, ``obj_train_data`` etc.; or all images in ``images`` or `root` are for training.
    Raises ValueError without class names or training images.
    """
    if not root.exists():
        raise ValueError(f"{root}: no such file or folder")
    folder = root if root.is_dir() else root.parent
    content: dict[str, Any] = {}
    paths = [root] if root.is_file() else _yaml_files(root)
    path = paths[0] if paths else None
    if path:
        content = _read_yaml(path)
    names = _yaml_names(path, content) if path and ({"names", "nc"} & content.keys()) else _listed_names(folder)
    if not names:
        raise ValueError(f"{root}: no class names; expected data.yaml with names, classes.txt or obj.names")
    splits, notes = _yaml_splits(path, content) if path else ({}, [])
    splits = splits or _folder_splits(folder)
    if path and len(paths) > 1:
        notes.append(f"{path.name} is used, and not {', '.join(each.name for each in paths[1:])}")
    if "train" not in splits:
        raise ValueError(f"{root}: no training images; expected train in data.yaml, images/train or train/images")
    return YoloConfig(names, splits, tuple(notes))


def _yaml_files(root: Path) -> list[Path]:
    paths = sorted(path for path in root.glob("*") if path.suffix.lower() in (".yaml", ".yml") and path.is_file())
    described = [path for path in paths if path.stem.lower() in ("data", "dataset")]
    return described or [path for path in paths if re.search(rb"(?m)^(names|nc)\s*:", path.read_bytes())]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
        text = decode_marked(data)
        # Without YAML's types, by which the class names no, 010 and 1.10 would become False, 8 and 1.1.
        content = yaml.load(data.decode() if text is None else text, Loader=yaml.BaseLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not a readable YAML file ({printable_name(error)})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not in YOLO format: it needs names and train")
    return {str(key).lower(): None if value in ("", "~", "null") else value for key, value in content.items()}


def _yaml_names(path: Path, content: dict[str, Any]) -> dict[int, str]:
    """Return the class names of ``names``, a list or a mapping from indices; numbers if there is only ``nc``."""
    names, count = content.get("names"), content.get("nc")
    number = parse_int(count)
    if count is not None and (number is None or number < 1):
        raise ValueError(f"{path}: nc: not a positive integer")
    if names is None and number:
        return {index: str(index) for index in range(number)}
    items = (
        list(names.items()) if isinstance(names, dict) else list(enumerate(names if isinstance(names, list) else []))
    )
    indices = [parse_int(index) for index, _ in items]
    labels = [clean_name(name) for _, name in items]
    if not items or not all(labels) or any(index is None or index < 0 for index in indices):
        raise ValueError(f"{path}: names: neither a list of class names nor a mapping from indices to names")
    if len(set(labels)) < len(labels):
        raise ValueError(f"{path}: names: two classes have the same name")
    if number is not None and number != len(items):
        raise ValueError(f"{path}: nc is {number}, but there are {len(items)} names")
    return dict(sorted((index, label) for index, label in zip(indices, labels, strict=True) if index is not None))


def _listed_names(folder: Path) -> dict[int, str]:
    path = next((path for path in (folder / name for name in NAME_FILES) if path.is_file()), None)
    lines = decode_list(path.read_bytes(), str.isprintable) if path else []
    if len(set(lines)) < len(lines):
        raise ValueError(f"{path}: two classes have the same name")
    return dict(enumerate(lines))


def _yaml_splits(path: Path, content: dict[str, Any]) -> tuple[dict[str, list[Path]], list[str]]:
    """Return the folders and lists of each split, and messages about those that do not exist; ValueError for train.

    Paths are relative to ``path``, or else to the YAML file. Roboflow's ``../train/images`` is next to the file.
    """
    base = path.parent / str(content.get("path") or "")
    splits, notes = dict[str, list[Path]](), []
    for split, keys in SPLIT_NAMES.items():
        values: Any = next((content[key] for key in keys if content.get(key)), [])
        for value in values if isinstance(values, list) else [values]:
            name = clean_name(value).replace("\\", "/")
            variants = [name, re.sub(r"^(\.\./)+", "", name)]
            candidates = [folder / variant for variant in variants for folder in (base, path.parent)]
            candidates += [path.parent / end for end in path_ends(name)]
            found = next((candidate.resolve() for candidate in candidates if candidate.exists()), None)
            if found:
                splits.setdefault(split, []).append(found)
                if not candidates[0].exists() and path_ends(name):
                    notes.append(f"{split}: {path.name} names {printable_name(name)}, and {found} is used")
            elif split == "train":
                raise ValueError(f"{path}: {split}: no such file or folder: {candidates[0]}")
            else:
                notes.append(f"{split}: {path.name} names {printable_name(name)}, which does not exist")
    return splits, notes


def _folder_splits(folder: Path) -> dict[str, list[Path]]:
    """Return the folders or lists of each split without a YAML file."""
    images = subfolder(folder, "images")
    lists = {path.stem.lower(): path for path in folder.glob("*") if path.suffix.lower() == ".txt"}
    splits: dict[str, list[Path]] = {}
    for split, names in SPLIT_NAMES.items():
        for name in names:
            inner, own = images and subfolder(images, name), subfolder(folder, name, f"obj_{name}_data")
            found = inner or (own and (subfolder(own, "images") or own)) or lists.get(name)
            if found:
                splits.setdefault(split, [found])
    return splits or {"train": [images or folder]}


class LabelFinder:
    """Finds the label file of each image, and those that belong to no image."""

    def __init__(self) -> None:
        self.used: set[Path] = set()
        self._by_stem: dict[Path, dict[str, Path]] = {}

    def find(self, image: Path) -> Path | None:
        """Return the label file of an image, in ``labels`` instead of ``images`` or next to it; None without one."""
        for folder in (_label_folder(image.parent), image.parent):
            if found := self._index(folder).get(image.stem) or self._index(folder).get(clean_name(image.stem)):
                self.used.add(found)
                return found
        return None

    def searched(self) -> str:
        """Return where label files were searched, for an error message."""
        folders = ", ".join(printable(folder) for folder in list(self._by_stem)[:4])
        return f"No image has a label file in {folders or 'a folder'}: images/1.jpg needs labels/1.txt or images/1.txt"

    def orphans(self) -> list[Path]:
        """Return the label files of no image in the searched folders."""
        found = {path for files in self._by_stem.values() for path in files.values()}
        return sorted(found - self.used)

    def _index(self, folder: Path) -> dict[str, Path]:
        if folder not in self._by_stem:
            files = (path for path in folder.glob("*") if path.suffix.lower() == ".txt" and path.is_file())
            labels = [path for path in files if not OTHER_FILES.fullmatch(path.name)]
            self._by_stem[folder] = {clean_name(path.stem): path for path in labels}
            self._by_stem[folder] |= {path.stem: path for path in labels}
        return self._by_stem[folder]


def _label_folder(folder: Path) -> Path:
    """Replace the last folder called ``images`` by ``labels``, in any case."""
    for base in (folder, *folder.parents):
        if base.name.lower() == "images":
            return (subfolder(base.parent, "labels") or base.parent / "labels") / folder.relative_to(base)
    return folder


def read_yolo(
    sources: Sequence[Path], names: dict[int, str], root: Path, finders: tuple[ImageFinder, LabelFinder]
) -> AnnotationFile:
    """Read the labels of the images in folders and lists; an image without a label file has no objects."""
    file, (finder, label_finder) = AnnotationFile(tuple(names.values())), finders
    labels = {index: row for row, index in enumerate(names)}
    annotations, seen = [], set[Path]()
    for source in sources:
        folders = [source] if source.is_dir() else [root, source.parent]
        if source.is_dir():
            finder.folders.setdefault(source, False)
            entries = [path.relative_to(source).as_posix() for path in scan_folder(source).walk()]
        else:
            entries = decode_list(source.read_bytes(), lambda line: os.path.isfile(root / line))
        for name in entries:
            found, shown = finder.find([name, name.removeprefix("data/")], folders), printable_name(printable(name))
            path = folders[0] / name if isinstance(found, str) else found
            if path in seen:
                file.exclude_image(LISTED_TWICE, shown, 0)
                continue
            seen.add(path)
            # The labels of a missing image are counted as excluded.
            label_file = label_finder.find(path) if found == path or found == "no such file" else None
            objects = _read_labels(label_file, labels, file) if label_file else []
            annotations.append(RawAnnotation(shown, found, len(seen), None, objects, relative=True))
    return file.add_samples(annotations)


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """Return the fields of each line that is not empty, with its number."""
    data = path.read_bytes()
    text = decode_marked(data) or data.decode(errors="replace")
    return [(number, line.split()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]


def _read_labels(path: Path, labels: dict[int, int], file: AnnotationFile) -> list[RawObject]:
    """Read the objects of a label file; unusable lines are excluded."""
    objects, seen = [], set[tuple[Any, ...]]()
    for number, fields in _lines(path):
        name = f"{printable_name(printable(path.name))}: line {number}"
        raw = _parse_line(fields, labels, name)
        if isinstance(raw, str):
            file.exclude_box(raw, name)
            continue
        if raw[:2] in seen:
            file.exclude_box(LISTED_TWICE, name)
            continue
        seen.add(raw[:2])
        objects.append(raw)
        if len(fields) == 6:
            file.notes["box with a sixth value, a confidence, which has no effect"].append(name)
    return objects


def _parse_line(fields: list[str], labels: dict[int, int], name: str) -> RawObject | str:
    """Convert ``class x y width height``, or class and the x, y of a polygon; or return what is wrong."""
    index, values = parse_int(fields[0]), parse_numbers(fields[1:], len(fields) - 1)
    if len(fields) not in (5, 6) and (len(fields) < 7 or len(fields) % 2 == 0):
        return "not a line of class, x, y, width and height"
    if index is None or values is None:
        return "not a finite number"
    if index not in labels:
        return "no class with this number"
    coordinates = values[:4] if len(fields) < 7 else values
    if max(coordinates) > PIXELS:
        return "coordinates in pixels: divide them by the width and height of the image"
    if min(coordinates) < -TOLERANCE or max(coordinates) > 1 + TOLERANCE:
        return "coordinates outside 0..1"
    if len(fields) < 7:
        x, y, width, height = coordinates
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    else:
        box = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    return RawObject(box, labels[index], False, None, name)
