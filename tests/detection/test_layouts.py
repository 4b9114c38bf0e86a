"""Annotation files as programs export them: layouts, encodings, ids, flags and paths."""

import json
import os
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from googlenet.config.schema import DataConfig, Recipe
from googlenet.detection.data.dataset import DetectionDataset, load_detection_dataset
from googlenet.detection.data.fields import parse_flag, parse_id, parse_int, parse_xml
from googlenet.detection.data.layout import split_of
from googlenet.detection.task import check_recipe

BOX = "<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>20</xmax><ymax>20</ymax></bndbox>"


def image(path: Path, size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, 90).save(path)


def coco(path: Path, *names: str, ids: list[Any] | None = None, encoding: str = "utf-8", **fields: Any) -> None:
    """Write an annotation file with a box on each image; `fields` are of each annotation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = ids or list(range(1, len(names) + 1))
    images = [{"id": key, "file_name": name, "height": 30, "width": 40} for key, name in zip(ids, names, strict=True)]
    boxes = [{"id": key, "image_id": key, "category_id": 3, "bbox": [4, 4, 8, 8]} | fields for key in ids]
    document = {"images": images, "annotations": boxes, "categories": [{"id": 3, "name": "猫"}]}
    path.write_bytes(json.dumps(document, ensure_ascii=False).encode(encoding))


def voc(path: Path, name: str = "cat", encoding: str | None = None, filename: str = "", more: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    declaration = f'<?xml version="1.0" encoding="{encoding}"?>' if encoding else ""
    text = f"{declaration}<annotation><filename>{filename or path.stem + '.png'}</filename><object><name>{name}</name>"
    path.write_bytes(f"{text}{more}{BOX}</object></annotation>".encode(encoding or "utf-8"))


def sizes(data: DetectionDataset) -> tuple[int, int, int]:
    return len(data.train), len(data.validation), len(data.test)


@pytest.mark.parametrize(
    ("json_path", "image_path", "file_name"),
    [
        ("annotations/instances_default.json", "images/1.png", "1.png"),  # CVAT
        ("annotations/instances_default.json", "images/default/1.png", "1.png"),
        ("annotations/instances_Train.json", "images/Train/1.png", "1.png"),
        ("result.json", "images/a/1.png", "images\\a\\1.png"),  # Label Studio
        ("result.json", "images/1.png", "./images/1.png"),
        ("labels.json", "data/1.png", "1.png"),  # FiftyOne
        ("annotations.json", "1.png", "1.png"),
        ("export-2024.json", "1.png", "1.png"),  # the only file: Labelbox
        ("train/_annotations.coco.json", "train/1.png", "1.png"),  # Roboflow
        ("Training/labels.json", "Training/data/1.png", "1.png"),
        ("annotations/training.json", "training/1.png", " 1.png "),
        ("annotations/all.json", "val2017/1.png", "val2017/1.png"),
        ("annotations/all.json", "val/1.png", "1.png"),
    ],
)
def test_coco_layouts(json_path: str, image_path: str, file_name: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    image(root / image_path)
    coco(root / json_path, file_name)
    for source in (root, root / json_path):
        data = load_detection_dataset(f"coco:{source}")
        assert (sizes(data), data.classes) == ((1, 0, 0), ("猫",)), source
        assert Path(data.train[0].name) == root / image_path


@pytest.mark.parametrize(
    ("validation", "test"), [("valid", "test"), ("Val", "Testing"), ("validation", "TEST"), ("dev", "eval")]
)
def test_split_names(validation: str, test: str, tmp_path: Path) -> None:
    for name in ("train", validation, test):
        image(tmp_path / "coco" / name / "1.png")
        coco(tmp_path / "coco" / name / "_annotations.coco.json", "1.png")
        image(tmp_path / "voc" / name / "1.png")
        voc(tmp_path / "voc" / name / "1.xml")
        image(tmp_path / "yolo" / name / "images" / "1.png")
        label = tmp_path / "yolo" / name / "labels" / "1.txt"
        label.parent.mkdir()
        label.write_text("0 0.5 0.5 0.2 0.2")
    (tmp_path / "yolo" / "classes.txt").write_text("cat\n")
    for kind in ("coco", "voc", "yolo"):
        data = load_detection_dataset(f"{kind}:{tmp_path / kind}")
        assert sizes(data) == (1, 1, 1), kind
        assert sum(len(sample.boxes) for sample in (*data.train, *data.validation, *data.test)) == 3


def test_split_of() -> None:
    assert [split_of(name) for name in ("instances_val2017", "Train", "my-test", "default", "trainer")] == [
        "validation", "train", "test", None, None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("xml", "images", "source"),
    [
        ("Annotations", "JPEGImages", "."),
        ("annotations", "images", "."),
        ("annotations", "images", "annotations"),
        ("ANNOTATIONS", "Images", "ANNOTATIONS"),
        ("Annotations/train", "images/train", "."),
        ("train/Annotations", "train/JPEGImages", "."),
        (".", ".", "."),
        ("a/b", "a/b", "."),
    ],
)
def test_voc_layouts(xml: str, images: str, source: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    image(root / images / "1.png")
    voc(root / xml / "1.xml")
    data = load_detection_dataset(f"voc:{root / source}")
    assert (sizes(data), data.train[0].boxes.tolist()) == ((1, 0, 0), [[4, 4, 20, 20]])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_encodings_of_json(encoding: str, tmp_path: Path) -> None:
    image(tmp_path / "1.png")
    coco(tmp_path / "x.json", "1.png", encoding=encoding)
    assert load_detection_dataset(f"coco:{tmp_path}").classes == ("猫",)


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("gb2312", "狗"), ("GBK", "貓"), ("Shift-JIS", "ネコ"), ("shift_jis", "犬"), ("windows-1252", "Kätzchen“"),
        ("utf-8", "猫"), ("utf-16", "猫"), ("iso-8859-1", "Hündin"), ("big5", "貓"),
    ],
)  # fmt: skip
def test_encodings_of_xml(encoding: str, name: str, tmp_path: Path) -> None:
    for stem in ("1", "2"):
        image(tmp_path / f"{stem}.png")
    voc(tmp_path / "1.xml", name, encoding)
    (tmp_path / "2.xml").write_bytes(b'<?xml version="1.0" encoding="no-such"?><annotation/>')
    data = load_detection_dataset(f"voc:{tmp_path}")
    assert data.classes == (name,)
    assert "1 image excluded: train: broken XML file: unknown encoding: no-such (2.xml)" in data.skipped


def test_xml_of_a_wrong_encoding_is_one_reason() -> None:
    for data in ("<a>\xe4</a>".encode("latin-1"), b'<?xml version="1.0" encoding="shift_jis"?><a>\x81</a>', b"<a>"):
        with pytest.raises(ValueError, match="broken XML file") as raised:
            parse_xml(data)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb2312", "shift_jis"])
def test_encodings_of_voc_lists(encoding: str, tmp_path: Path) -> None:
    for stem in ("図1", "図2", "図 3"):
        image(tmp_path / "JPEGImages" / f"{stem}.png")
        voc(tmp_path / "Annotations" / f"{stem}.xml", filename="x")
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    name = "图" if encoding == "gb2312" else "図"
    for path in (*tmp_path.rglob("*.xml"), *tmp_path.rglob("*.png")):
        path.rename(path.with_name(path.name.replace("図", name)))
    (lists / "train.txt").write_bytes(f"{name}1\n\n.\\{name}2.png\r\n{name} 3  1\n".encode(encoding))
    data = load_detection_dataset(f"voc:{tmp_path}")
    assert (sizes(data), data.accounting.num_excluded("image")) == ((3, 0, 0), 0)


def test_unlisted_xml_files_are_accounted(tmp_path: Path) -> None:
    for stem in ("1", "2", "3"):
        image(tmp_path / "JPEGImages" / f"{stem}.png")
        voc(tmp_path / "Annotations" / f"{stem}.xml")
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "trainval.txt").write_text("1\n")
    data = load_detection_dataset(f"voc:{tmp_path}")
    counts = data.accounting
    assert (sizes(data), counts.num_excluded("image"), counts.num_excluded("box")) == ((1, 0, 0), 2, 2)
    (lists / "trainval.txt").rename(lists / "val.txt")
    with pytest.raises(ValueError, match=r"val.txt, but no train.txt"):
        load_detection_dataset(f"voc:{tmp_path}")


def test_unicode_forms_of_names(tmp_path: Path) -> None:
    for kind, form in (("coco", "NFD"), ("voc", "NFC"), ("yolo", "NFC")):
        other = "NFC" if form == "NFD" else "NFD"
        on_disk, named = (unicodedata.normalize(f, "Äpfel é") for f in (form, other))
        image(tmp_path / kind / f"{on_disk}.png")
        if kind == "coco":
            coco(tmp_path / kind / "x.json", f"{named}.png")
        elif kind == "voc":
            voc(tmp_path / kind / "1.xml", filename=f" {named}.png")
        else:
            (tmp_path / kind / f"{named}.txt").write_text("0 0.5 0.5 0.2 0.2")
            (tmp_path / kind / "classes.txt").write_text("x")
        data = load_detection_dataset(f"{kind}:{tmp_path / kind}")
        assert (sizes(data), len(data.train[0].boxes), data.skipped) == ((1, 0, 0), 1, []), kind


@pytest.mark.parametrize("ids", [["3f2a-uuid", "photo.jpg"], [7, 0], ["7", "08"], [1.0, 2.0], [10**30, -1]])
def test_ids_of_any_type(ids: list[Any], tmp_path: Path) -> None:
    for name in ("1.png", "2.png"):
        image(tmp_path / name)
    coco(tmp_path / "x.json", "1.png", "2.png", ids=ids)
    document = json.loads((tmp_path / "x.json").read_text())
    for item in document["annotations"]:
        item["image_id"] = str(item["image_id"]) if isinstance(item["image_id"], int) else item["image_id"]
        item["category_id"] = "3"
    (tmp_path / "x.json").write_text(json.dumps(document))
    data = load_detection_dataset(f"coco:{tmp_path}")
    assert [len(sample.boxes) for sample in data.train] == [1, 1]
    assert [sample.image_id for sample in data.train] == ids


def test_ids_of_several_images(tmp_path: Path) -> None:
    """The boxes of an id that two images have belong to either; an entry that is repeated is used once."""
    for name in ("1.png", "2.png", "3.png"):
        image(tmp_path / name)
    coco(tmp_path / "x.json", "1.png", "2.png", "3.png", "3.png", ids=[5, 5, 6, 6])
    counts = load_detection_dataset(f"coco:{tmp_path}").accounting
    assert counts.used["image"] == 1 and counts.encountered("image") == 4 and counts.encountered("box") == 4
    assert {reason for kind, reason in counts.excluded if kind == "image"} == {
        "train: id: several images have it", "train: listed twice",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, False), (1, True), ("0", False), ("1", True), (0.0, False), ("1.0", True), (False, False), (True, True),
     ("false", False), ("True", True), (None, False), ("", False), (" 0 ", False), (2, None), ("maybe", None),
     ([], None)],
)  # fmt: skip
def test_flags(value: Any, expected: bool | None, tmp_path: Path) -> None:
    assert parse_flag(value) is expected
    image(tmp_path / "coco" / "1.png")
    image(tmp_path / "coco" / "2.png")
    coco(tmp_path / "coco" / "x.json", "1.png", iscrowd=value)
    document = json.loads((tmp_path / "coco" / "x.json").read_text())
    document["images"].append({"id": 2, "file_name": "2.png"})
    document["annotations"].append({"id": 2, "image_id": 2, "category_id": 3, "bbox": [1, 1, 5, 5]})
    (tmp_path / "coco" / "x.json").write_text(json.dumps(document))
    data = load_detection_dataset(f"coco:{tmp_path / 'coco'}")
    assert data.train[0].crowd.tolist() == ([] if expected is None else [expected])
    if expected is None:
        assert "1 box excluded: train: iscrowd: neither 0 nor 1 (x.json: annotation 1)" in data.skipped


@pytest.mark.parametrize("field", ["difficult", "truncated"])
def test_flags_of_voc(field: str, tmp_path: Path) -> None:
    for stem, value in (("1", "false"), ("2", "0.0"), ("3", "1"), ("4", "?")):
        image(tmp_path / f"{stem}.png")
        voc(tmp_path / f"{stem}.xml", more=f"<{field}>{value}</{field}>")
    data = load_detection_dataset(f"voc:{tmp_path}")
    crowd = [sample.crowd.tolist() for sample in data.train]
    if field == "difficult":
        assert crowd == [[False], [False], [True], []]
        assert "1 box excluded: train: difficult: neither 0 nor 1 (4.xml: object 1)" in data.skipped
    else:
        assert crowd == [[False]] * 4
        assert any("truncated" in line and "4.xml" in line for line in data.skipped)


def test_numbers_and_ids() -> None:
    assert [parse_int(value) for value in ("3", 3.0, "3.0", 3.5, "x", None, True, 1e400)] == [3, 3, 3, *[None] * 5]
    assert [parse_id(value) for value in (7, "7", 7.0, " a ", None, float("nan"), [], "")] == [
        "7", "7", "7", "a", None, None, None, None,
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["../secret.png", "images/../../secret.png", "ABSOLUTE", "..\\secret.png"])
def test_files_outside_the_data_folder_are_rejected(name: str, tmp_path: Path) -> None:
    image(tmp_path / "secret.png")
    root, name = tmp_path / "set", name.replace("ABSOLUTE", str(tmp_path / "secret.png"))
    for kind in ("coco", "voc", "yolo"):
        image(root / kind / "images" / "1.png")
    coco(root / "coco" / "labels.json", "1.png", name)
    voc(root / "voc" / "annotations" / "1.xml")
    voc(root / "voc" / "annotations" / "2.xml", filename=name)
    (root / "yolo" / "classes.txt").write_text("x")
    (root / "yolo" / "images" / "1.txt").write_text("0 0.5 0.5 0.2 0.2")
    (root / "yolo" / "train.txt").write_text(f"images/1.png\n{name}\n")
    (root / "yolo" / "data.yaml").write_text("names: [x]\ntrain: train.txt\n")
    # The file is outside of each set, also if the name is relative to its folder of images.
    image(root / "secret.png")
    for kind in ("coco", "voc", "yolo"):
        data = load_detection_dataset(f"{kind}:{root / kind}")
        assert sizes(data) == (1, 0, 0), kind
        (line,) = (line for line in data.skipped if line.startswith("1 image excluded"))
        assert "outside the data folder" in line and "secret" in line, kind
    data = load_detection_dataset(f"coco:{root / 'coco' / 'labels.json'}")
    assert sizes(data) == (1, 0, 0)


def test_links_in_the_data_folder_are_followed(tmp_path: Path) -> None:
    image(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "set").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "set" / "images")
    coco(tmp_path / "set" / "labels.json", "1.png")
    assert sizes(load_detection_dataset(f"coco:{tmp_path / 'set'}")) == (1, 0, 0)


def test_exif_rotation_without_an_annotated_size(tmp_path: Path) -> None:
    """Fractions of YOLO are those of the image as it is displayed."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (40, 20), 90).save(tmp_path / "1.png", exif=exif)
    (tmp_path / "classes.txt").write_text("x")
    (tmp_path / "1.txt").write_text("0 0.5 0.5 0.5 0.25")
    (sample,) = load_detection_dataset(f"yolo:{tmp_path}").train
    assert (sample.height, sample.width) == (40, 20)
    torch.testing.assert_close(sample.boxes, torch.tensor([[5.0, 15.0, 15.0, 25.0]]))


def broken_exif(kind: str) -> dict[str, Any]:
    """Return options of Pillow that write metadata which Pillow cannot read."""
    info = PngInfo()
    if kind == "profile":
        info.add_text("Raw profile type exif", "\nexif\n  9\nzz", zip=True)
    return {"pnginfo": info, "exif": b"garbage"} if kind == "chunk" else {"pnginfo": info}


@pytest.mark.parametrize("kind", ["chunk", "profile"])
def test_damaged_exif_excludes_no_image(kind: str, tmp_path: Path) -> None:
    """The pixels are intact, with a size in the annotation (COCO) and without one (YOLO)."""
    Image.new("L", (40, 30), 90).save(tmp_path / "1.png", **broken_exif(kind))
    coco(tmp_path / "a.json", "1.png")
    (tmp_path / "classes.txt").write_text("x")
    (tmp_path / "1.txt").write_text("0 0.5 0.5 0.5 0.25")
    for source in (f"coco:{tmp_path / 'a.json'}", f"yolo:{tmp_path}"):
        data = load_detection_dataset(source)
        assert sizes(data)[0] == 1 and not data.accounting.num_excluded("image"), source


@pytest.mark.parametrize(("mode", "suffix"), [("I;16", "png"), ("F", "tif")])
def test_deep_images_are_noted(mode: str, suffix: str, tmp_path: Path) -> None:
    """A detector scales each deep image by its own range, which is said; the recipe's range is refused."""
    coco(tmp_path / "a.json", f"1.{suffix}")
    Image.new(mode, (40, 30), 9).save(tmp_path / f"1.{suffix}")
    data = load_detection_dataset(f"coco:{tmp_path / 'a.json'}")
    assert any("1 image of more than 8 bits, scaled by its own range" in line for line in data.skipped)
    recipe = replace(Recipe(task="detection"), data=DataConfig(max_value=4095))
    with pytest.raises(ValueError, match=r"data\.max_value, crop_pct and interpolation are for classification"):
        check_recipe(recipe, data)
