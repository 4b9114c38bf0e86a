"""Read and write COCO JSON annotations and results."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torchvision.ops import box_convert
from torchvision.transforms.functional import to_pil_image

from ...data.dataset import LoadOptions
from ...files import clean_name, write_atomically
from .dataset import DetectionDataset, Detections, Sample
from .fields import parse_flag, parse_id, parse_int, parse_number, parse_numbers, printable_name
from .layout import ANNOTATION_FOLDERS, SPLIT_NAMES, ImageFinder, search_folders, split_of, subfolders
from .loading import AnnotationFile, RawAnnotation, RawObject, build_detection_dataset

# Annotation files of a folder without splits, in lower case: Roboflow, FiftyOne, Label Studio, CVAT and others.
FILE_NAMES = ("_annotations.coco", "labels", "result", "instances_default", "annotations", "instances", "coco")
# Files beside COCO's instances that contain other annotations.
OTHER_FILES = ("keypoints", "captions", "stuff", "panoptic", "image_info")


class CocoFile(NamedTuple):
    """A JSON file, the folders to search for its images, and other files of the same split, which are not used."""

    path: Path
    folders: list[Path]
    others: list[Path]


def load(location: str, options: LoadOptions) -> DetectionDataset:
    """Load a JSON file or a folder in COCO format; see `find_coco_files`."""
    return load_coco(Path(location).resolve(), f"coco:{location}", options)


def load_coco(root: Path, source: str, options: LoadOptions) -> DetectionDataset:
    """Load the annotation files under `root`; `source` is the name of the data set in messages."""
    finder, files = ImageFinder(), dict[str, AnnotationFile]()
    for split, item in find_coco_files(root).items():
        finder.bases |= {root, *root.parents[:2], item.path.parent}
        files[split] = read_coco(item.path, item.folders, finder, files["train"].classes if files else None)
        if item.others:
            names = ", ".join(path.name for path in item.others)
            files[split].accounting.notes.append(f"{split}: {item.path.name} is used, and not {names}")
    return build_detection_dataset(source, files, finder, options)


def find_coco_files(root: Path) -> dict[str, CocoFile]:
    """Return the JSON file of each split, training first.

    `root` is a JSON file with training images, or a folder. Its JSON files, those in ``annotations`` and those in
    folders named like a split belong to the split in their name, or in that of their folder. Without one for
    training, the file with one of the usual names or the only JSON file is it. Raises ValueError for anything else.
    """
    if root.is_file():
        return {"train": CocoFile(root, _folders(root, root.parent, root.parent), [])}
    if not root.is_dir():
        raise ValueError(f"{root}: no such file or folder")
    inner = [folder for name, folder in subfolders(root).items() if name in ANNOTATION_FOLDERS]
    candidates: dict[str, list[Path]] = defaultdict(list)
    unnamed: list[Path] = []
    for folder in (*inner, root):
        for path in _json_files(folder):
            split = split_of(path.stem)
            (candidates[split] if split else unnamed).append(path)
    for split, names in SPLIT_NAMES.items():
        for folder in (path for name, path in subfolders(root).items() if name in names):
            candidates[split] += sorted(_json_files(folder), key=_rank)[:1]
    if not candidates["train"] and unnamed:
        usual = sorted(unnamed, key=_rank)
        if len(unnamed) > 1 and _rank(usual[0])[0] == len(FILE_NAMES):
            several = ", ".join(path.name for path in unnamed[:3])
            raise ValueError(f"{root}: several JSON files ({several}): name one, as coco:FILE")
        candidates["train"] = usual[:1]
    if not candidates["train"]:
        expected = "annotations/instances_train*.json, train/_annotations.coco.json or the path of a JSON file"
        raise ValueError(f"{root}: no training annotations; expected {expected}")
    found = {split: candidates[split] for split in SPLIT_NAMES if candidates[split]}
    beside = root if root.name.lower() in ANNOTATION_FOLDERS else None
    return {split: CocoFile(paths[0], _folders(paths[0], root, beside), paths[1:]) for split, paths in found.items()}


def _json_files(folder: Path) -> list[Path]:
    paths = (path for path in folder.glob("*") if path.suffix.lower() == ".json" and path.is_file())
    return sorted(path for path in paths if not any(name in path.stem.lower() for name in OTHER_FILES))


def _rank(path: Path) -> tuple[int, str]:
    stem = path.stem.lower()
    return FILE_NAMES.index(stem) if stem in FILE_NAMES else len(FILE_NAMES), path.name


def _folders(path: Path, root: Path, beside: Path | None) -> list[Path]:
    """Return the folders to search for the images of a JSON file in or below `root`; see `search_folders`."""
    name = re.sub(r"(?i)^instances_|\.coco$|^_?annotations_?", "", path.stem)
    split = split_of(path.stem) or split_of(path.parent.name)
    bases = [*([path.parent] if split_of(path.parent.name) else []), root]
    if split:
        return search_folders(bases, [name, *SPLIT_NAMES[split]], beside)
    general = search_folders(bases, [name, "default"], beside)
    # The folder of a split is searched if there is only one: in several, files of the same name are different images.
    by_split = [search_folders(bases, [name, "default", *names], beside) for names in SPLIT_NAMES.values()]
    longer = [folders for folders in by_split if len(folders) > len(general)]
    return longer[0] if len(longer) == 1 else general


def read_json(path: Path) -> dict[str, list[Any]]:
    """Read a file in COCO format, in UTF-8, UTF-16 or UTF-32; ValueError for anything else."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a readable JSON file ({error})") from None
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in keys):
        raise ValueError(f"{path}: not in COCO format: it needs the lists images, annotations and categories")
    return content


def read_categories(path: Path, content: dict[str, list[Any]]) -> dict[str, str]:
    """Return the class name of each category id, in the order of the ids; ValueError without id or name.

    Names that several categories have are followed by the id.
    """
    names: dict[str, str] = {}
    for index, category in enumerate(content["categories"]):
        category = category if isinstance(category, dict) else {}
        category_id, name = parse_id(category.get("id")), clean_name(category.get("name") or "")
        if category_id is None or not name:
            raise ValueError(f"{path}: categories[{index}] needs an id and a name")
        if names.setdefault(category_id, name) != name:
            raise ValueError(f"{path}: categories[{index}]: the id {category_id} belongs to two categories")
    if all(parse_int(key) is not None for key in names):
        names = dict(sorted(names.items(), key=lambda item: parse_int(item[0]) or 0))
    counts = Counter(names.values())
    return {key: f"{name} ({key})" if counts[name] > 1 else name for key, name in names.items()}


def read_coco(
    path: Path, folders: Sequence[Path], finder: ImageFinder, classes: tuple[str, ...] | None = None
) -> AnnotationFile:
    """Read an annotation file whose images are in one of `folders`.

    Labels are indices into `classes`, by default the categories in the order of their ids. Unusable entries are
    excluded. Raises ValueError for a file that is not in COCO format.
    """
    content = read_json(path)
    categories = read_categories(path, content)
    known = classes or tuple(categories.values())
    if unknown := [name for name in categories.values() if name not in known]:
        raise ValueError(f"{path}: the class {unknown[0]} is not among those of the training images")
    labels = {key: known.index(name) for key, name in categories.items()}
    file = AnnotationFile(known)
    file_names: dict[str, set[str]] = defaultdict(set)
    for image in _dicts(content["images"]):
        file_names[parse_id(image.get("id")) or ""].add(str(image.get("file_name")))
    file_names.pop("", None)
    by_image: dict[str, list[RawObject]] = defaultdict(list)
    for index, item in enumerate(_dicts(content["annotations"])):
        name = f"{path.name}: annotation {printable_name(item.get('id', f'[{index}]'))}"
        if not item.get("bbox") and (box := _segmentation_box(item.get("segmentation"))):
            item = item | {"bbox": box}
            file.notes["box without bbox, that of its segmentation"].append(name)
        raw, image_id = _parse_object(item, labels, name), parse_id(item.get("image_id")) or ""
        if isinstance(raw, RawObject) and image_id in file_names:
            by_image[image_id].append(raw)
        else:
            file.exclude_box(raw if isinstance(raw, str) else "image_id: no such image", name)
    annotations = []
    for index, image in enumerate(_dicts(content["images"])):
        image_id, size = parse_id(image.get("id")) or "", _parse_size(image)
        name = f"{path.name}: image {printable_name(image.get('id', f'[{index}]'))}"
        if reason := _image_problem(image, size, file_names.get(image_id, set())):
            file.exclude_image(reason, name, len(by_image.pop(image_id, ())))
            continue
        file_names[image_id].add("")  # a second image with this id is listed twice
        found = finder.find([image["file_name"]], folders)
        raw_image = (printable_name(image["file_name"]), found, original_id(image["id"]), size)
        annotations.append(RawAnnotation(*raw_image, by_image.pop(image_id, [])))  # type: ignore[arg-type]
    return file.add_samples(annotations)


def _dicts(items: list[Any]) -> list[dict[str, Any]]:
    """Replace entries of a wrong type by empty ones, whose fields are missing."""
    return [item if isinstance(item, dict) else {} for item in items]


def _parse_object(item: dict[str, Any], labels: dict[str, int], name: str) -> RawObject | str:
    """Convert an annotation; or return the field that is wrong."""
    box, crowd, area = parse_numbers(item.get("bbox"), 4), parse_flag(item.get("iscrowd")), item.get("area")
    label, number = labels.get(parse_id(item.get("category_id")) or ""), 0.0 if area is None else parse_number(area)
    if not item.get("bbox"):
        return "bbox: missing"
    if box is None:
        return "bbox: not four finite numbers"
    if label is None:
        return "category_id: no such category"
    if crowd is None:
        return "iscrowd: neither 0 nor 1"
    if number is None:
        return "area: not a finite number"
    x, y, width, height = box
    return RawObject((x, y, x + width, y + height), label, crowd, number, name)


def _segmentation_box(value: Any) -> list[float] | None:
    """Return x, y, width and height of polygons or of a run-length encoded mask; None for anything else."""
    try:
        if isinstance(value, dict):
            from faster_coco_eval.core import mask

            height, width = map(int, value["size"])
            encoded = mask.frPyObjects(value, height, width) if isinstance(value["counts"], list) else value
            box: list[float] = mask.toBbox(encoded).tolist()
            return box
        x, y = ([float(number) for polygon in value for number in polygon[axis::2]] for axis in (0, 1))
        return [min(x), min(y), max(x) - min(x), max(y) - min(y)]
    except (ImportError, KeyError, TypeError, ValueError, RuntimeError, OverflowError):
        return None


def _parse_size(image: dict[str, Any]) -> tuple[int, int] | str | None:
    """Return (height, width) of an image; None if they are missing or 0, or the reason why they are invalid."""
    values = (image.get("height"), image.get("width"))
    height, width = map(parse_int, values)
    if None in values or "" in values or (height == 0 and width == 0):
        return None
    if height is None or width is None or min(height, width) < 1:
        return "height, width: not positive integers"
    return height, width


def _image_problem(image: dict[str, Any], size: tuple[int, int] | str | None, file_names: set[str]) -> str | None:
    """Return the field of an image that is wrong, or None; `file_names` are those of the images with its id."""
    if not file_names:
        return "id: missing"
    if len(file_names - {""}) > 1:
        return "id: several images have it"
    if "" in file_names:
        return "listed twice"
    if not isinstance(image.get("file_name"), str) or not image["file_name"].strip():
        return "file_name: missing"
    return size if isinstance(size, str) else None


def original_id(value: Any) -> int | str:
    """Return an id as the file has it: pycocotools compares ids without converting them."""
    return int(value) if isinstance(value, int | float) else str(value)


class CocoIds(NamedTuple):
    """The ids of an annotation file: of its images by file name, and of the categories by class name."""

    images: dict[str, int | str]
    categories: dict[str, int | str]

    @classmethod
    def read(cls, path: Path) -> "CocoIds":
        """Read the ids of an annotation file; ValueError for a file that is not in COCO format."""
        content = read_json(path)
        ids = {parse_id(item["id"]): original_id(item["id"]) for item in content["categories"] if "id" in item}
        categories = {name: ids[key] for key, name in read_categories(path, content).items()}
        images = (item for item in _dicts(content["images"]) if parse_id(item.get("id")))
        return cls({_normalized(item.get("file_name")): original_id(item["id"]) for item in images}, categories)

    def image_id(self, path: str) -> int | str | None:
        """Return the id of an image file: of the entry whose name is the longest end of its path; None without one."""
        parts = _normalized(Path(path).absolute().as_posix()).split("/")
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        return next((self.images[end] for end in ends if end in self.images), None)


def _normalized(name: Any) -> str:
    return re.sub(r"^(\./)+", "", clean_name(name).replace("\\", "/"))


def coco_annotations(samples: Sequence[Sample], classes: Sequence[str], file_names: Sequence[str]) -> dict[str, Any]:
    """Return the annotations of samples in COCO format; a category id is the class index plus 1."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for sample, name in zip(samples, file_names, strict=True):
        image_id = sample.image_id
        images.append({"id": image_id, "file_name": name, "height": sample.height, "width": sample.width})
        boxes = box_convert(sample.boxes, "xyxy", "xywh").tolist()
        rows = zip(boxes, sample.labels.tolist(), sample.crowd.tolist(), sample.areas.tolist(), strict=True)
        for index, (box, label, crowd, area) in enumerate(rows, start=len(annotations) + 1):
            annotation = {"id": index, "image_id": image_id, "category_id": label + 1, "bbox": box}
            annotations.append(annotation | {"area": area, "iscrowd": int(crowd)})
    categories = [{"id": index, "name": name} for index, name in enumerate(classes, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def coco_results(
    image_id: int | str, detections: Detections, category_ids: Sequence[int | str] | None = None
) -> list[dict[str, Any]]:
    """Return the detections on an image in COCO's results format; by default category ids are class indices plus 1."""
    boxes = box_convert(detections.boxes.double(), "xyxy", "xywh").tolist()
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label] if category_ids else label + 1,
            "bbox": box,
            "score": score,
        }
        for box, score, label in zip(boxes, detections.scores.tolist(), detections.labels.tolist(), strict=True)
    ]


def write_coco(root: Path, split: str, samples: Sequence[Sample], classes: Sequence[str]) -> list[Path]:
    """Write the images as ``SPLIT/*.png``, then ``annotations/instances_SPLIT.json``; return the written files."""
    (root / split).mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    names = []
    for sample in samples:
        names.append(f"{str(sample.image_id).zfill(6)}.png")
        to_pil_image(sample.pixels).save(root / split / names[-1], "PNG", compress_level=3)
    path = root / "annotations" / f"instances_{split}.json"
    write_atomically(path, json.dumps(coco_annotations(samples, classes, names)))
    return [path, *(root / split / name for name in names)]
