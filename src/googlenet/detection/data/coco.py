"""Read and write COCO JSON annotations and results."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchvision.ops import box_convert
from torchvision.transforms.functional import to_pil_image

from ...data.dataset import LoadOptions
from ...files import write_atomically
from .dataset import DetectionDataset, Detections, Sample
from .loading import NO_BOX, AnnotationFile, RawAnnotation, RawObject, build_detection_dataset, validate_annotations

# Common names of each split.
SPLIT_NAMES = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}
ROBOFLOW_FILE = "_annotations.coco.json"


def load(location: str, options: LoadOptions) -> DetectionDataset:
    """Load a JSON file or a folder in COCO format; see `find_coco_files`."""
    return load_coco(Path(location), f"coco:{location}", options)


def load_coco(root: Path, source: str, options: LoadOptions) -> DetectionDataset:
    """Load the annotation files under `root`; `source` is the name of the data set in messages."""
    paths = find_coco_files(root)
    files = {"train": read_coco(*paths.pop("train"))}
    for split, (path, folders) in paths.items():
        files[split] = read_coco(path, folders, files["train"].classes)
    return build_detection_dataset(source, files, options)


def find_coco_files(root: Path) -> dict[str, tuple[Path, tuple[Path, ...]]]:
    """Return the JSON file of each split, with the folders to search for its images.

    `root` is a JSON file with training images, or a folder with ``annotations/instances_train2017.json`` and
    ``train2017/`` (COCO) or ``train/_annotations.coco.json`` (Roboflow). Raises ValueError for anything else.
    """
    if root.is_file():
        return {"train": (root, (root.parent, root.parent / "images"))}
    if not root.is_dir():
        raise ValueError(f"{root}: no such file or folder")
    files: dict[str, tuple[Path, tuple[Path, ...]]] = {}
    for split, names in SPLIT_NAMES.items():
        for name in names:
            for path in sorted((root / "annotations").glob(f"instances_{name}*.json")):
                folder = path.stem.removeprefix("instances_")
                files.setdefault(split, (path, (root / folder, root / "images" / folder, root / "images", root)))
            roboflow = root / name / ROBOFLOW_FILE
            if roboflow.is_file():
                files.setdefault(split, (roboflow, (root / name,)))
    if "train" not in files:
        expected = f"annotations/instances_train*.json, train/{ROBOFLOW_FILE} or the path of a JSON file"
        raise ValueError(f"{root}: no training annotations; expected {expected}")
    return files


def read_coco(path: Path, folders: Sequence[Path], classes: tuple[str, ...] | None = None) -> AnnotationFile:
    """Read an annotation file whose images are in one of `folders`.

    Labels are indices into `classes`, by default the categories in the order of their ids. Annotations of unknown
    images or categories are counted and left out. Raises ValueError for a file that is not in COCO format.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable JSON file ({error})") from None
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
        raise ValueError(f"{path}: not in COCO format: it needs images, annotations and categories")
    problems: Counter[str] = Counter()
    try:
        categories = sorted(content["categories"], key=lambda category: int(category["id"]))
        names = tuple(str(category["name"]) for category in categories)
        if len(set(names)) < len(names):
            names = tuple(f"{category['name']} ({category['id']})" for category in categories)
        known = classes or names
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"{path}: the class {unknown[0]} is not among those of the training images")
        labels = {int(category["id"]): known.index(name) for category, name in zip(categories, names, strict=True)}
        by_image: dict[int, list[RawObject]] = defaultdict(list)
        for item in content["annotations"]:
            if len(item.get("bbox") or ()) != 4:
                problems[NO_BOX] += 1
            elif int(item["category_id"]) not in labels:
                problems["annotations of an unknown category, skipped"] += 1
            else:
                x, y, width, height = map(float, item["bbox"])
                label, area = labels[int(item["category_id"])], float(item.get("area") or 0)
                raw = RawObject((x, y, x + width, y + height), label, bool(item.get("iscrowd", 0)), area)
                by_image[int(item["image_id"])].append(raw)
        annotations = []
        for image in content["images"]:
            candidates = [folder / str(image["file_name"]) for folder in folders]
            image_path = next((candidate for candidate in candidates if candidate.exists()), candidates[0])
            size = (int(image["height"]), int(image["width"])) if image.get("height") and image.get("width") else None
            annotations.append(RawAnnotation(image_path, int(image["id"]), size, by_image.pop(int(image["id"]), [])))
        problems["annotations of an unlisted image, skipped"] += sum(map(len, by_image.values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not in COCO format ({type(error).__name__}: {error})") from None
    if len({annotation.image_id for annotation in annotations}) < len(annotations):
        raise ValueError(f"{path}: two images have the same id")
    return validate_annotations(annotations, known, problems)


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


def coco_results(image_id: int, detections: Detections) -> list[dict[str, Any]]:
    """Return the detections on an image in COCO's results format; a category id is the class index plus 1."""
    boxes = box_convert(detections.boxes.double(), "xyxy", "xywh").tolist()
    return [
        {"image_id": image_id, "category_id": label + 1, "bbox": box, "score": score}
        for box, score, label in zip(boxes, detections.scores.tolist(), detections.labels.tolist(), strict=True)
    ]


def write_coco(root: Path, split: str, samples: Sequence[Sample], classes: Sequence[str]) -> list[Path]:
    """Write the images as ``SPLIT/*.png``, then ``annotations/instances_SPLIT.json``; return the written files."""
    (root / split).mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    names = []
    for sample in samples:
        names.append(f"{sample.image_id:06d}.png")
        to_pil_image(sample.pixels).save(root / split / names[-1], "PNG", compress_level=3)
    path = root / "annotations" / f"instances_{split}.json"
    write_atomically(path, json.dumps(coco_annotations(samples, classes, names)))
    return [path, *(root / split / name for name in names)]
