"""Annotations as people have them: paths of other machines, typed YAML, duplicates, missing boxes."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask

from googlenet.detection.data.dataset import DetectionDataset, load_detection_dataset
from googlenet.detection.data.layout import path_ends

LINE = "1 0.5 0.5 0.5 0.25\n"
SPLITS = {
    "images/train/a.png": "", "labels/train/a.txt": LINE, "images/val/a.png": "", "labels/val/a.txt": f"{LINE}{LINE}",
}  # fmt: skip


def write(root: Path, files: dict[str, str]) -> Path:
    """Write text files, and an image of 40x20 pixels for each name of one."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".png"):
            Image.new("L", (40, 20), 90).save(root / name)
        else:
            (root / name).write_text(text)
    return root


def write_coco(root: Path, names: list[str], annotations: list[dict[str, Any]]) -> DetectionDataset:
    """Write and load a COCO file with an entry for each name, whose id is its position; there are a.png and b.png."""
    images = [{"id": index, "file_name": name} for index, name in enumerate(names)]
    items = [{"id": index, "category_id": 0, **item} for index, item in enumerate(annotations, start=1)]
    document = {"images": images, "annotations": items, "categories": [{"id": 0, "name": "x"}, {"id": 1, "name": "y"}]}
    write(root, {"images/a.png": "", "images/b.png": "", "annotations.json": json.dumps(document)})
    return load_detection_dataset(f"coco:{root}")


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("/content/ds/train/1.jpg", ["content/ds/train/1.jpg", "ds/train/1.jpg", "train/1.jpg", "1.jpg"]),
        (r"D:\ds\1.jpg", ["D:/ds/1.jpg", "ds/1.jpg", "1.jpg"]),
        (" C:/1.jpg", ["C:/1.jpg", "1.jpg"]),
        ("https://example.org/a/1.jpg", ["https:/example.org/a/1.jpg", "example.org/a/1.jpg", "a/1.jpg", "1.jpg"]),
        ("train/1.jpg", []),
        ("../1.jpg", []),
        ("/data/../secret/1.jpg", []),
        (str(Path(__file__)), []),  # a path on this machine
    ],
)
def test_path_ends(name: str, ends: list[str]) -> None:
    assert path_ends(name) == ends


@pytest.mark.parametrize("base", ["/kaggle/input/ds/", "/content/drive/My Drive/ds/", "C:\\Users\\me\\ds\\", "E:/ds/"])
def test_yaml_with_paths_of_another_machine(base: str, tmp_path: Path) -> None:
    separator = "\\" if "\\" in base else "/"
    train, val = (f"{base}images{separator}{split}" for split in ("train", "val"))
    root = write(tmp_path, {**SPLITS, "data.yaml": f"path: {base}\ntrain: {train}\nval: {val}\nnames: [a, b]\n"})
    data = load_detection_dataset(f"yolo:{root}")
    assert [len(sample.boxes) for sample in (*data.train, *data.validation)] == [1, 1]
    assert data.train[0].name == str(root / "images/train/a.png")
    assert data.validation[0].name == str(root / "images/val/a.png")
    for split, folder in (("train", "train"), ("validation", "val")):
        assert any(
            line.startswith(f"{split}: data.yaml names ") and line.endswith(f"{root / 'images' / folder} is used")
            for line in data.skipped
        )


@pytest.mark.parametrize("base", ["/kaggle/input/ds/images/", "D:\\ds\\images\\"])
def test_lists_with_paths_of_another_machine(base: str, tmp_path: Path) -> None:
    separator = base[-1]
    lines = "".join(f"{base}{split}{separator}a.png\n" for split in ("train", "val"))
    root = write(tmp_path, {**SPLITS, "data.yaml": "train: all.txt\nnames: [a, b]\n", "all.txt": lines})
    data = load_detection_dataset(f"yolo:{root}")
    assert [sample.name for sample in data.train] == [str(root / f"images/{split}/a.png") for split in ("train", "val")]
    assert any(line.startswith("2 paths of another machine, found by their ends (") for line in data.skipped)


@pytest.mark.parametrize("base", ["/content/ds/", "C:\\ds\\", "https://example.org/images/", "file:///home/me/"])
def test_coco_with_paths_of_another_machine(base: str, tmp_path: Path) -> None:
    boxes = [{"image_id": index, "bbox": [1, 2, 3 + index, 4]} for index in range(3)]
    data = write_coco(tmp_path, [f"{base}b.png", f"{base}a.png", f"{base}missing.png"], boxes)
    assert [Path(sample.name).name for sample in data.train] == ["b.png", "a.png"]
    assert [sample.boxes.tolist() for sample in data.train] == [[[1, 2, 4, 6]], [[1, 2, 5, 6]]]
    assert data.accounting.num_excluded("image") == 1
    assert any(line.startswith("2 paths of another machine") for line in data.skipped)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("[no, yes]", ("no", "yes")),
        ("{0: on, 1: OFF}", ("on", "OFF")),
        ("[010, 1.10]", ("010", "1.10")),
        ("[null, ~]", ("null", "~")),
        ("[2020-01-01, 1e3]", ("2020-01-01", "1e3")),
        ("[12:30:45, 0x1F]", ("12:30:45", "0x1F")),
    ],
)
def test_class_names_are_text_in_yaml(names: str, expected: tuple[str, ...], tmp_path: Path) -> None:
    text = f"train: images/train\nval:\ntest: null\nnc: 2\nnames: {names}\n"
    data = load_detection_dataset(f"yolo:{write(tmp_path, {**SPLITS, 'data.yaml': text})}")
    assert data.classes == expected
    assert not any("does not exist" in line for line in data.skipped)


@pytest.mark.parametrize(
    "order", [["0.5 0.5 0.5 0.25", "0.50 5e-1 0.5 0.250", "0.5 0.5 0.5 0.2"], ["0.1 0.1 0.1 0.1"] * 4]
)
def test_repeated_lines_of_yolo_are_one_box(order: list[str], tmp_path: Path) -> None:
    text = "".join(f"1 {line}\n" for line in order)
    files = {
        **SPLITS,
        "labels/train/a.txt": f"{text}0 {order[0]}\n",
        "data.yaml": "train: images/train\nnames: [a, b]\n",
    }
    data = load_detection_dataset(f"yolo:{write(tmp_path, files)}")
    distinct = len({tuple(map(float, line.split())) for line in order})
    assert data.train[0].labels.tolist() == [1] * distinct + [0], "an equal box of another class is another object"
    assert data.accounting.excluded["box", "train: listed twice"].count == len(order) - distinct
    assert data.accounting.encountered("box") == len(order) + 1


@pytest.mark.parametrize("folder", ["labelTxt", "annotations"])
def test_images_without_any_label_file_are_an_error(folder: str, tmp_path: Path) -> None:
    files = {
        "images/train/a.png": "",
        f"{folder}/train/a.txt": LINE,
        "data.yaml": "train: images/train\nnames: [a, b]\n",
    }
    with pytest.raises(ValueError, match=re.escape(f"No image has a label file in {tmp_path / 'labels/train'}, ")):
        load_detection_dataset(f"yolo:{write(tmp_path, files)}")


@pytest.mark.parametrize(
    "names", [["a.png", "a.png"], ["a.png", "images/a.png"], ["./a.png", "b.png", "images\\a.png"]]
)
def test_entries_of_the_same_image_are_one_sample(names: list[str], tmp_path: Path) -> None:
    last, box, other = len(names) - 1, [1, 2, 3, 4], [5, 6, 7, 8]
    annotations = [
        {"image_id": 0, "bbox": box},
        {"image_id": last, "bbox": box},
        {"image_id": last, "bbox": box, "category_id": 1},
        {"image_id": last, "bbox": other},
    ]
    data = write_coco(tmp_path, names, annotations)
    sample, *rest = data.train
    assert sample.boxes.tolist() == [[1, 2, 4, 6], [1, 2, 4, 6], [5, 6, 12, 14]]
    assert (sample.labels.tolist(), sample.image_id, len(rest)) == ([0, 1, 0], 0, len(names) - 2)
    counts = data.accounting
    assert counts.excluded["image", "train: listed twice: its boxes are added to the first entry"].count == 1
    assert counts.excluded["box", "train: listed twice"].examples == ["annotations.json: annotation 2"]
    assert (counts.encountered("image"), counts.encountered("box")) == (len(names), len(annotations))


def test_copies_of_voc_files_are_one_sample(tmp_path: Path) -> None:
    box = "<xmin>1.5</xmin><ymin>2.0</ymin><xmax>9.5</xmax><ymax>8</ymax>"
    for number, name in enumerate(("cat", "dog", "cat")):
        item = f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"
        text = f"<annotation><filename>a.png</filename>{item}</annotation>"
        write(tmp_path, {f"Annotations/{number}.xml": text, "JPEGImages/a.png": ""})
    (sample,) = load_detection_dataset(f"voc:{tmp_path}").train
    assert (sample.labels.tolist(), sample.boxes.tolist()) == ([0, 1], [[0.5, 1, 9.5, 8]] * 2)


def masks() -> dict[str, tuple[Any, list[float]]]:
    """Return segmentations with their boxes: x, y, width, height."""
    pixels = np.zeros((20, 40), np.uint8, order="F")
    pixels[3:9, 5:17] = pixels[12, 30] = 1
    compressed = mask.encode(pixels)
    runs = np.flatnonzero(np.diff(np.concatenate([[0], pixels.flatten("F"), [2]]))).tolist()
    counts = np.diff([0, *runs]).tolist()
    text = {"size": [20, 40], "counts": compressed["counts"].decode()}
    expected = mask.toBbox(compressed).tolist()
    return {
        "polygon": ([[5, 3, 17, 3, 17.5, 9]], [5, 3, 12.5, 6]),
        "polygons": ([[5, 3, 17, 3, 17, 9], [30, 12, 31, 12, 31, 13]], [5, 3, 26, 10]),
        "compressed": (text, expected),
        "uncompressed": ({"size": [20, 40], "counts": counts}, expected),
    }


@pytest.mark.parametrize("box", [{}, {"bbox": []}, {"bbox": None}])
@pytest.mark.parametrize("kind", sorted(masks()))
def test_boxes_of_segmentations(kind: str, box: dict[str, Any], tmp_path: Path) -> None:
    segmentation, (x, y, width, height) = masks()[kind]
    data = write_coco(tmp_path, ["a.png"], [{"image_id": 0, "segmentation": segmentation, **box}])
    assert data.train[0].boxes.tolist() == [[x, y, x + width, y + height]]
    assert "train: 1 box without bbox, that of its segmentation (annotations.json: annotation 1)" in data.skipped


@pytest.mark.parametrize(
    "segmentation",
    [[], [[]], "text", 3, {"counts": "abc", "size": [20, 40]}, {"counts": [1]}, {"size": 3, "counts": []}],
)
def test_annotations_without_box_and_segmentation_are_excluded(segmentation: object, tmp_path: Path) -> None:
    good = {"image_id": 0, "bbox": [1, 2, 3, 4]}
    data = write_coco(tmp_path, ["a.png"], [good, {"image_id": 0, "segmentation": segmentation}])
    assert "1 box excluded: train: bbox: missing (annotations.json: annotation 2)" in data.skipped
    assert len(data.train[0].boxes) == 1


@pytest.mark.parametrize("boxes", [[[0.1, 0.1, 0.5, 0.5]], [[0, 0, 1, 1], [0.25, 0.5, 0.5, 0.25]]])
def test_fractions_in_coco_are_excluded(boxes: list[list[float]], tmp_path: Path) -> None:
    annotations = [{"image_id": 0, "bbox": box} for box in boxes]
    with pytest.raises(
        ValueError, match=f"{len(boxes)} box.* excluded: train: coordinates are fractions: multiply them"
    ):
        write_coco(tmp_path, ["a.png", "b.png"], annotations)
    data = write_coco(tmp_path, ["a.png", "b.png"], [*annotations, {"image_id": 1, "bbox": [1, 1, 9, 9]}])
    assert not data.accounting.excluded["box", "train: coordinates are fractions"].count, "small boxes beside others"


def test_fractions_in_voc_are_excluded(tmp_path: Path) -> None:
    box = "<xmin>0.1</xmin><ymin>0.2</ymin><xmax>0.9</xmax><ymax>1.0</ymax>"
    text = f"<annotation><object><name>cat</name><bndbox>{box}</bndbox></object></annotation>"
    with pytest.raises(ValueError, match="1 box excluded: train: coordinates are fractions"):
        load_detection_dataset(f"voc:{write(tmp_path, {'Annotations/a.xml': text, 'JPEGImages/a.png': ''})}")


@pytest.mark.parametrize(("val", "shared"), [("images/train", 1), ("[images/train, images/val]", 1), ("images/val", 0)])
def test_training_images_in_other_splits_are_named(val: str, shared: int, tmp_path: Path) -> None:
    text = f"train: images/train\nval: {val}\nnames: [a, b]\n"
    data = load_detection_dataset(f"yolo:{write(tmp_path, {**SPLITS, 'data.yaml': text})}")
    line = f"validation: {shared} images are training images, so its metrics are too good"
    assert (line in data.skipped) is bool(shared)


@pytest.mark.parametrize(
    ("names", "used"), [(["b.yaml", "a.yml"], "a.yml"), (["data.yaml", "dataset.yaml"], "data.yaml")]
)
def test_other_yaml_files_are_named(names: list[str], used: str, tmp_path: Path) -> None:
    texts = {name: f"train: images/train\nnames: [{name}, other]\n" for name in names}
    data = load_detection_dataset(f"yolo:{write(tmp_path, {**SPLITS, **texts})}")
    assert data.classes == (used, "other")
    assert f"{used} is used, and not {', '.join(set(names) - {used})}" in data.skipped
