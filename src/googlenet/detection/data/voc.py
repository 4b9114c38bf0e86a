"""Read Pascal VOC annotations: one XML file per image."""

import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ...data.dataset import LoadOptions
from ...data.decode import SUFFIXES
from .dataset import DetectionDataset
from .loading import NO_BOX, AnnotationFile, RawAnnotation, RawObject, build_detection_dataset, validate_annotations

SPLIT_NAMES = {"train": ("train", "trainval"), "validation": ("val",), "test": ("test",)}


def load(location: str, options: LoadOptions) -> DetectionDataset:
    """Load a folder in Pascal VOC format; see `find_voc_files`."""
    root = Path(location)
    paths = find_voc_files(root)
    classes = voc_classes(paths["train"])
    if not classes:
        raise ValueError(f"{root}: no XML file of the training images contains an object")
    files = {split: read_voc(root, split_paths, classes) for split, split_paths in paths.items()}
    return build_detection_dataset(f"voc:{location}", files, options)


def find_voc_files(root: Path) -> dict[str, list[Path]]:
    """Return the XML files of each split.

    `root` has ``Annotations/``, ``JPEGImages/`` and ``ImageSets/Main/train.txt`` etc. (without these lists all images
    are for training), or the XML files are next to their images, in `root` or in its folders ``train``, ``val`` (or
    ``valid``) and ``test``. Raises ValueError without training annotations.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    folder = root / "Annotations" if (root / "Annotations").is_dir() else root
    files: dict[str, list[Path]] = {}
    for split, names in SPLIT_NAMES.items():
        for name in names:
            image_set = root / "ImageSets" / "Main" / f"{name}.txt"
            if image_set.is_file():
                lines = [line.split()[0] for line in image_set.read_text().splitlines() if line.strip()]
                files.setdefault(split, [folder / f"{stem}.xml" for stem in lines])
        for name in (*names, "valid") if split == "validation" else names:
            if paths := sorted((root / name).glob("*.xml")):
                files.setdefault(split, paths)
    if not files and (paths := sorted(folder.glob("*.xml"))):
        files = {"train": paths}
    if "train" not in files:
        raise ValueError(f"{root}: no XML files with training annotations in {root}, Annotations or train")
    return files


def voc_classes(paths: Sequence[Path]) -> tuple[str, ...]:
    """Return the class names of all objects in alphabetical order; unreadable files are left out."""
    objects = (item for path in paths if (root := _parse_xml(path)) is not None for item in root.iter("object"))
    return tuple(sorted({name for item in objects if (name := (item.findtext("name") or "").strip())}))


def read_voc(root: Path, paths: Sequence[Path], classes: tuple[str, ...]) -> AnnotationFile:
    """Read the XML files of a split.

    VOC coordinates start at 1 and include the last pixel. Objects marked difficult become crowd boxes, because VOC
    neither requires nor penalizes their detection. Objects of other classes are counted and left out.
    """
    problems: Counter[str] = Counter()
    annotations = []
    for image_id, path in enumerate(paths, start=1):
        document = _parse_xml(path)
        if document is None:
            problems["unreadable XML files, skipped" if path.exists() else "XML files missing, skipped"] += 1
            continue
        image, objects = _find_image(path, document, root), _read_objects(document, classes, problems)
        annotations.append(RawAnnotation(image, image_id, _image_size(document), objects))
    return validate_annotations(annotations, classes, problems)


def _parse_xml(path: Path) -> ElementTree.Element | None:
    try:
        return ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError):
        return None


def _read_objects(document: ElementTree.Element, classes: tuple[str, ...], problems: Counter[str]) -> list[RawObject]:
    objects = []
    for item in document.iter("object"):
        name = (item.findtext("name") or "").strip()
        if name not in classes:
            problems["objects of an unknown class, skipped"] += 1
            continue
        try:
            x1, y1, x2, y2 = (float(item.findtext(f"bndbox/{key}") or "") for key in ("xmin", "ymin", "xmax", "ymax"))
        except ValueError:
            problems[NO_BOX] += 1
            continue
        difficult = (item.findtext("difficult") or "0").strip() == "1"
        objects.append(RawObject((x1 - 1, y1 - 1, x2, y2), classes.index(name), difficult))
    return objects


def _find_image(path: Path, document: ElementTree.Element, root: Path) -> Path:
    """Return the image file that the XML file names, or one with the name of the XML file."""
    folders = [root / "JPEGImages", path.parent, root]
    filename = (document.findtext("filename") or "").strip()
    names = [filename] if filename else []
    names += [path.stem + suffix for suffix in (".jpg", *sorted(SUFFIXES))]
    candidates = (folder / name for name in names for folder in folders)
    return next((image for image in candidates if image.is_file()), folders[0] / (filename or f"{path.stem}.jpg"))


def _image_size(document: ElementTree.Element) -> tuple[int, int] | None:
    try:
        height, width = (int(document.findtext(f"size/{key}") or "") for key in ("height", "width"))
    except ValueError:
        return None
    return (height, width) if height > 0 and width > 0 else None
