"""Every image, box and file of a random source is used or excluded for a reason."""

import json
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from googlenet.data.dataset import LoadOptions
from googlenet.detection.data.dataset import DetectionDataset, load_detection_dataset

FILES = st.lists(
    st.sampled_from(["a", "B b", "ü", "u\u0308", "日本", "x$1_$2", "a.b", "c'd", "#1", "-", "0"]),
    unique_by=lambda name: unicodedata.normalize("NFC", name), min_size=1, max_size=5,
)  # fmt: skip
STATES = st.sampled_from(["good", "good", "empty", "missing", "unlisted", "broken"])
NUMBERS = st.sampled_from([0.25, 0.5, 1, 0, -3, float("nan"), "x", "0.5", None, 70, 1e400])
CLASSES = ("cat", "dog")
BROKEN = b"not an image"
SETTINGS = settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))


def write_image(path: Path, state: str) -> int:
    """Write the image file in a state, and return the number of files."""
    if state == "missing":
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    if state in ("broken", "empty"):
        path.write_bytes(BROKEN if state == "broken" else b"")
    else:
        Image.new("L", (40, 30), 90).save(path)
    return 1


def check(source: str, expected: Counter[str]) -> DetectionDataset:
    data = load_detection_dataset(source)
    counts = data.accounting
    assert {kind: counts.encountered(kind) for kind in expected} == expected, counts.lines()
    splits = (data.train, data.validation, data.test)
    assert counts.used["image"] == sum(map(len, splits))
    assert counts.used["box"] == sum(len(sample.boxes) for split in splits for sample in split)
    for (_, reason), exclusion in counts.excluded.items():
        assert reason and exclusion.count >= len(exclusion.examples) > 0
    return data


@SETTINGS
@given(st.data())
def test_coco(draw: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, expected = Path(folder), Counter[str](image=1, box=1, file=1)
        write_image(root / "train" / "good.png", "good")
        images: list[Any] = [{"id": "good", "file_name": "good.png"}]
        boxes: list[Any] = [{"id": 0, "image_id": "good", "category_id": "1", "bbox": [1, 1, 9, 9]}]
        for name in draw.draw(FILES):
            state = draw.draw(STATES)
            expected["file"] += write_image(root / "train" / f"{name}.png", state)
            if state == "unlisted":
                continue
            wrong = [{}, {"id": None}, {"file_name": 3}, {"height": "x", "width": 5}, {"file_name": "../x.png"}]
            changes = draw.draw(st.sampled_from([{}, {}, {}, *wrong]))
            images.append({"id": name, "file_name": f"{name}.png", "height": 30, "width": 40} | changes)
            for number in range(draw.draw(st.integers(0, 3))):
                box = [draw.draw(NUMBERS) for _ in range(draw.draw(st.sampled_from([4, 4, 4, 3])))]
                item = {"id": f"{name}{number}", "image_id": name, "category_id": 1, "bbox": box}
                item |= draw.draw(st.sampled_from([{}, {}, {"category_id": 9}, {"iscrowd": "?"}, {"image_id": "none"}]))
                boxes.append(item)
        boxes += draw.draw(st.lists(st.sampled_from([None, 5, {}]), max_size=2))
        images += draw.draw(st.lists(st.sampled_from([None, "x", {}]), max_size=2))
        expected["image"], expected["box"] = len(images), len(boxes)
        categories = [{"id": 1, "name": "cat"}, {"id": "2", "name": "dog"}]
        document = {"images": images, "annotations": boxes, "categories": categories}
        encoding = draw.draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
        (root / "instances_train.json").write_bytes(json.dumps(document, ensure_ascii=False).encode(encoding))
        check(f"coco:{root}", expected)


@SETTINGS
@given(st.data())
def test_voc(draw: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, expected = Path(folder), Counter[str](image=1, box=1, file=1)
        names = {"Annotations": draw.draw(st.sampled_from(["Annotations", "annotations"]))}
        images = root / draw.draw(st.sampled_from(["JPEGImages", "images", "Images"]))
        xml = root / names["Annotations"]
        xml.mkdir()

        def write(name: str, objects: str, encoding: str = "utf-8", end: str = "</annotation>") -> None:
            text = f'<?xml version="1.0" encoding="{encoding}"?><annotation><filename>{escape(name)}.png</filename>'
            (xml / f"{name}.xml").write_bytes((text + objects + end).encode(encoding, errors="xmlcharrefreplace"))

        def box(values: list[Any], name: str = "cat", more: str = "") -> str:
            tags = zip(("xmin", "ymin", "xmax", "ymax"), values, strict=True)
            edges = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
            return f"<object><name>{name}</name>{more}<bndbox>{edges}</bndbox></object>"

        write_image(images / "good.png", "good")
        write("good", box([1, 1, 9, 9]))
        for name in draw.draw(FILES):
            state = draw.draw(STATES)
            expected["file"] += write_image(images / f"{name}.png", state)
            if state == "unlisted":
                continue
            expected["image"] += 1
            is_broken = draw.draw(st.sampled_from([False, False, False, True]))
            objects = []
            for _ in range(draw.draw(st.integers(0, 3))):
                more = draw.draw(st.sampled_from(["", "<difficult>false</difficult>", "<difficult>?</difficult>"]))
                values = [draw.draw(NUMBERS) for _ in range(4)]
                objects.append(box(values, draw.draw(st.sampled_from(["cat", "dog", "", " cat "])), more))
            encoding = draw.draw(st.sampled_from(["utf-8", "gb2312", "Shift-JIS", "windows-1252"]))
            write(name, "".join(objects), encoding, "" if is_broken else "</annotation>")
            # The objects of a file that is not XML cannot be counted.
            expected["box"] += 0 if is_broken else len(objects)
        check(f"voc:{root}", expected)


@SETTINGS
@given(st.data())
def test_yolo(draw: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, expected = Path(folder), Counter[str](image=1, box=1, file=1)
        images, labels, use_list = root / "images" / "train", root / "labels" / "train", draw.draw(st.booleans())
        labels.mkdir(parents=True)
        write_image(images / "good.png", "good")
        (labels / "good.txt").write_text("0 0.5 0.5 0.2 0.2\n")
        listed = ["images/train/good.png"]
        for name in draw.draw(FILES):
            state = draw.draw(STATES)
            is_file = write_image(images / f"{name}.png", state)
            expected["file"] += is_file
            lines = []
            for _ in range(draw.draw(st.integers(0, 3))):
                values = [draw.draw(NUMBERS) for _ in range(draw.draw(st.sampled_from([4, 4, 5, 6, 3, 7])))]
                lines.append(" ".join(str(value) for value in [draw.draw(st.sampled_from([0, 1, 9, "x"])), *values]))
            if draw.draw(st.booleans()):
                (labels / f"{name}.txt").write_text("\n".join(lines))
                expected["box"] += len(lines)
            has_labels = (labels / f"{name}.txt").exists()
            if use_list and state != "unlisted":
                listed.append(f"./images/train/{name}.png")
                expected["image"] += 1
            elif use_list:
                expected["image"] += has_labels  # a label file of no listed image
            else:
                expected["image"] += is_file or has_labels
        (root / "train.txt").write_text("\n".join(listed))
        train = "train.txt" if use_list else "images/train"
        (root / "data.yaml").write_text(f"names: {json.dumps(CLASSES)}\ntrain: {train}\n")
        check(f"yolo:{root}", expected)


@pytest.mark.parametrize("layout", ["coco", "voc", "yolo"])
def test_on_error_raise_names_the_first(layout: str, tmp_path: Path) -> None:
    writers: dict[str, Callable[[Path], None]] = {"coco": two_coco, "voc": two_voc, "yolo": two_yolo}
    writers[layout](tmp_path)
    source = f"{layout}:{tmp_path}"
    data = load_detection_dataset(source)
    assert (data.accounting.used["image"], data.accounting.num_excluded("image")) == (1, 1)
    with pytest.raises(ValueError, match=r"image .*second.*data.on_error is raise") as raised:
        load_detection_dataset(source, LoadOptions(on_error="raise"))
    assert "\n" not in str(raised.value)
    # Without any usable image, the message has the reasons and the searched folders.
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(BROKEN)
    with pytest.raises(ValueError, match="2 images excluded.*searched in .*images"):
        load_detection_dataset(source)


def two_images(root: Path) -> None:
    write_image(root / "images" / "first.png", "good")
    write_image(root / "images" / "second.png", "broken")


def two_coco(root: Path) -> None:
    two_images(root)
    images = [{"id": n, "file_name": f"{name}.png"} for n, name in enumerate(["first", "second"])]
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 5, 5]} for n in range(2)]
    document = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "x"}]}
    (root / "train.json").write_text(json.dumps(document))


def two_voc(root: Path) -> None:
    two_images(root)
    (root / "annotations").mkdir()
    for name in ("first", "second"):
        box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        (root / "annotations" / f"{name}.xml").write_text(f"<a><object><name>x</name>{box}</object></a>")


def two_yolo(root: Path) -> None:
    two_images(root)
    (root / "labels").mkdir()
    for name in ("first", "second"):
        (root / "labels" / f"{name}.txt").write_text("0 0.5 0.5 0.2 0.2")
    (root / "classes.txt").write_text("x\n")


def test_max_samples_are_accounted(tmp_path: Path) -> None:
    two_coco(tmp_path)
    write_image(tmp_path / "images" / "second.png", "good")
    counts = load_detection_dataset(f"coco:{tmp_path}", LoadOptions(max_samples=1)).accounting
    for kind in ("image", "box"):
        assert (counts.used[kind], counts.encountered(kind)) == (1, 2)
    assert any("data.max_samples" in line for line in counts.lines())
