"""COCO JSON: folders of pictures and annotations as they are found, read and written."""

import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..files import write_atomically
from .boxes import to_xywh
from .dataset import Detections, Found, Picture
from .files import Annotated, checked

# Names of the same split in the wild.
SPLIT_NAMES = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}
ROBOFLOW = "_annotations.coco.json"


def coco_files(root: Path) -> dict[str, tuple[Path, tuple[Path, ...]]]:
    """Of each split that `root` has, its JSON file and the folders in which its pictures may lie.

    `root` is a JSON file, all of it training pictures; or a folder in COCO's own form
    (``annotations/instances_train2017.json``, ``train2017/``), or with a folder per split and the JSON file in it
    (``train/_annotations.coco.json``). ValueError for anything else.
    """
    if root.is_file():
        return {"train": (root, (root.parent, root.parent / "images"))}
    if not root.is_dir():
        raise ValueError(f"{root}: no such file or folder")
    found: dict[str, tuple[Path, tuple[Path, ...]]] = {}
    for split, names in SPLIT_NAMES.items():
        for name in names:
            for path in sorted((root / "annotations").glob(f"instances_{name}*.json")):
                part = path.stem.removeprefix("instances_")
                found.setdefault(split, (path, (root / part, root / "images" / part, root / "images", root)))
            inside = root / name / ROBOFLOW
            if inside.is_file():
                found.setdefault(split, (inside, (root / name,)))
    if "train" not in found:
        raise ValueError(
            f"{root}: no annotations to train on; looked for annotations/instances_train*.json and train/{ROBOFLOW} "
            "(or name a JSON file)"
        )
    return found


def read_coco(path: Path, folders: Sequence[Path], classes: tuple[str, ...] | None = None) -> tuple[Found, bool]:
    """The pictures of one annotation file, which lie in the first of `folders` that has them; whether all are grey.

    Classes are the file's categories by id. With `classes` they must be among these, and are numbered by them.
    Annotations of unknown pictures or categories are counted and left out. ValueError for a file that is not in
    COCO's form.
    """
    content = _json(path)
    problems: Counter[str] = Counter()
    try:
        categories = sorted(content["categories"], key=lambda category: int(category["id"]))
        names = tuple(str(category["name"]) for category in categories)
        if len(set(names)) < len(names):
            names = tuple(f"{category['name']} ({category['id']})" for category in categories)
        known = classes or names
        if not set(names) <= set(known):
            raise ValueError(f"{path}: has the class {next(n for n in names if n not in known)}, the others have not")
        label = {int(category["id"]): known.index(name) for category, name in zip(categories, names, strict=True)}
        boxes: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in content["annotations"]:
            if len(annotation.get("bbox") or ()) != 4:
                problems["annotations without a box, left out"] += 1
            elif int(annotation["category_id"]) not in label:
                problems["annotations of an unknown category, left out"] += 1
            else:
                boxes[int(annotation["image_id"])].append(annotation)
        annotated = []
        for image in content["images"]:
            mine = boxes.pop(int(image["id"]), [])
            annotated.append(_annotated(image, mine, label, folders))
        if boxes:
            problems["annotations of a picture that is not listed, left out"] += sum(map(len, boxes.values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not in COCO's form ({type(error).__name__}: {error})") from None
    if len({one.number for one in annotated}) < len(annotated):
        raise ValueError(f"{path}: two pictures have the same id")
    return checked(annotated, known, problems)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a JSON file that can be read ({error})") from None
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
        raise ValueError(f"{path}: not in COCO's form: it needs images, annotations and categories")
    return content


def _annotated(
    image: dict[str, Any], annotations: list[dict[str, Any]], label: dict[int, int], folders: Sequence[Path]
) -> Annotated:
    name = str(image["file_name"])
    path = next((folder / name for folder in folders if (folder / name).exists()), folders[0] / name)
    size = (int(image["height"]), int(image["width"])) if image.get("height") and image.get("width") else None
    corners = [(x, y, x + w, y + h) for x, y, w, h in (map(float, one["bbox"]) for one in annotations)]
    return Annotated(
        path,
        int(image["id"]),
        size,
        corners,
        [label[int(one["category_id"])] for one in annotations],
        [bool(one.get("iscrowd", 0)) for one in annotations],
        [float(one.get("area") or (r - x) * (b - y)) for one, (x, y, r, b) in zip(annotations, corners, strict=True)],
    )


def truth_document(pictures: Iterable[Picture], classes: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """The pictures' boxes in COCO's form; category ids are class numbers plus 1, `names` the files' names."""
    pictures = list(pictures)
    annotations = []
    for picture in pictures:
        rows = zip(
            to_xywh(picture.boxes).tolist(), picture.labels.tolist(), picture.crowd.tolist(), picture.areas.tolist(),
            strict=True,
        )  # fmt: skip
        annotations += [
            {"image_id": picture.number, "category_id": label + 1, "bbox": box, "area": area, "iscrowd": int(crowd)}
            for box, label, crowd, area in rows
        ]
    return {
        "images": [
            {"id": picture.number, "file_name": name, "height": picture.height, "width": picture.width}
            for picture, name in zip(pictures, names, strict=True)
        ],
        "annotations": [{"id": number, **annotation} for number, annotation in enumerate(annotations, start=1)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes, start=1)],
    }


def results(pictures: Sequence[Picture], found: Sequence[Detections]) -> list[dict[str, Any]]:
    """Detections in COCO's results form: image_id, category_id (class number plus 1), bbox, score."""
    pairs = zip(pictures, found, strict=True)
    return [one for picture, detections in pairs for one in results_of(picture.number, detections)]


def results_of(number: int, found: Detections) -> list[dict[str, Any]]:
    """The detections on picture `number` in COCO's results form."""
    boxes, scores, labels = to_xywh(found.boxes.double()).tolist(), found.scores.tolist(), found.labels.tolist()
    return [
        {"image_id": number, "category_id": label + 1, "bbox": box, "score": score}
        for box, score, label in zip(boxes, scores, labels, strict=True)
    ]


def write_coco(root: Path, split: str, pictures: Sequence[Picture], classes: Sequence[str]) -> list[Path]:
    """Write ``annotations/instances_SPLIT.json`` and the pictures as PNGs into ``SPLIT/``; JSON last."""
    (root / split).mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    names = []
    for picture in pictures:
        assert isinstance(picture.pixels, torch.Tensor)
        pixels = picture.pixels.permute(1, 2, 0).contiguous().numpy()
        buffer = io.BytesIO()
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG", compress_level=3)
        names.append(f"{picture.number:06d}.png")
        (root / split / names[-1]).write_bytes(buffer.getvalue())
    path = root / "annotations" / f"instances_{split}.json"
    write_atomically(path, json.dumps(truth_document(pictures, classes, names)))
    return [path, *(root / split / name for name in names)]
