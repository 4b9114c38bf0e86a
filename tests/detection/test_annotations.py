"""COCO and Pascal VOC annotations: problems are counted, and usable samples are read correctly."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.datasets import VOCDetection

from googlenet.data.dataset import LoadOptions
from googlenet.detection.data.coco import write_coco
from googlenet.detection.data.dataset import load_detection_dataset
from googlenet.detection.data.scenes import Scenes


def save_image(path: Path, size: tuple[int, int], mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 100 if mode == "L" else (10, 200, 30)).save(path)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A COCO folder with every kind of problem, and one image without any."""
    save_image(tmp_path / "train2017" / "good.png", (100, 60))
    save_image(tmp_path / "train2017" / "empty.png", (50, 50))
    save_image(tmp_path / "train2017" / "unsized.png", (50, 50))
    save_image(tmp_path / "train2017" / "other-size.png", (30, 30))
    (tmp_path / "train2017" / "damaged.png").write_bytes(b"no image")
    save_image(tmp_path / "val2017" / "validation.png", (80, 40))
    sizes = {"good": (60, 100), "empty": (50, 50), "other-size": (40, 40), "damaged": (9, 9), "missing": (9, 9)}
    images = [
        {"id": number, "file_name": f"{name}.png", "height": h, "width": w}
        for number, (name, (h, w)) in enumerate(sizes.items(), start=11)
    ]
    images.append({"id": 16, "file_name": "unsized.png"})
    boxes: list[tuple[int, int, list[float] | None, int]] = [
        (11, 7, [10, 10, 20, 30], 0),
        (11, 3, [80, 40, 50, 50], 0),  # partly outside
        (11, 3, [0, 0, 100, 60], 1),  # a crowd
        (11, 3, [120, 10, 10, 10], 0),  # outside
        (11, 3, [10, 10, 0, 10], 0),  # empty
        (11, 3, [10, 10, -4, 10], 0),
        (11, 99, [1, 1, 5, 5], 0),  # unknown class
        (11, 3, None, 0),
        (77, 3, [1, 1, 5, 5], 0),  # unlisted image
        (13, 3, [1, 1, 5, 5], 0),
    ]
    annotations: list[dict[str, Any]] = [
        {"id": number, "image_id": image, "category_id": category, "bbox": box, "iscrowd": crowd}
        for number, (image, category, box, crowd) in enumerate(boxes)
    ]
    annotations[0]["area"] = 321.5
    categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 9, "name": "absent"}]
    (tmp_path / "annotations").mkdir()
    document = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(document))
    validation = {
        "images": [{"id": 1, "file_name": "validation.png", "height": 40, "width": 80}],
        "categories": categories,
    }
    validation["annotations"] = [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [0, 0, 8, 8]}]
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(validation))
    return tmp_path


def test_read_coco(coco: Path) -> None:
    data = load_detection_dataset(f"coco:{coco}")
    assert data.classes == ("cat", "dog", "absent"), "in the order of the ids"
    assert (len(data.train), len(data.validation), len(data.test), data.channels) == (3, 1, 0, 1)
    good, empty, unsized = data.train
    assert good.boxes.tolist() == [[10, 10, 30, 40], [80, 40, 100, 60], [0, 0, 100, 60]]
    assert (good.labels.tolist(), good.crowd.tolist()) == ([1, 0, 0], [False, False, True])
    assert (good.areas[0].item(), good.image_id) == (321.5, 11)
    assert good.read(3).shape == (3, 60, 100)
    assert len(empty.boxes) == len(unsized.boxes) == 0
    assert (unsized.height, unsized.width) == (50, 50)
    assert data.validation[0].labels.tolist() == [1]
    for message in (
        "train: 1 box partly outside the image, clipped to it (instances_train2017.json: annotation 1)",
        "1 box excluded: train: outside the image (instances_train2017.json: annotation 3)",
        "2 boxes excluded: train: empty box (instances_train2017.json: annotation 4, instances_train2017.json: "
        "annotation 5)",
        "1 box excluded: train: category_id: no such category (instances_train2017.json: annotation 6)",
        "1 box excluded: train: bbox: missing (instances_train2017.json: annotation 7)",
        "1 box excluded: train: image_id: no such image (instances_train2017.json: annotation 8)",
        "1 box excluded: train: the image is excluded (other-size.png)",
        "1 image excluded: train: no such file (missing.png)",
        "1 image excluded: train: not an image in a format that Pillow reads (damaged.png)",
        "1 image excluded: train: another size than annotated (other-size.png)",
        f"train: 2 images without objects, kept ({coco / 'train2017' / 'empty.png'}, "
        f"{coco / 'train2017' / 'unsized.png'})",
        "train: no object of class absent",
    ):
        assert message in data.skipped
    counts = data.accounting
    assert (counts.used["image"], counts.encountered("image")) == (4, 7), "3 of 6 for training, 1 for validation"
    assert (counts.used["box"], counts.encountered("box")) == (4, 11)
    assert (counts.used["file"], counts.encountered("file")) == (6, 6)
    with pytest.raises(ValueError, match="box instances_train2017.json: annotation 6: category_id"):
        load_detection_dataset(f"coco:{coco}", LoadOptions(on_error="raise"))


def test_truncated_images_are_skipped(coco: Path) -> None:
    noise = torch.randint(256, (60, 100), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    path = coco / "train2017" / "good.png"
    Image.fromarray(noise.numpy()).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="no usable training image has a box"):
        load_detection_dataset(f"coco:{coco}")


def test_written_annotations_are_read_back(coco: Path, tmp_path: Path) -> None:
    before = load_detection_dataset(f"coco:{coco}")
    write_coco(tmp_path / "copy", "train", before.train, before.classes)
    after = load_detection_dataset(f"coco:{tmp_path / 'copy'}")
    assert after.classes == before.classes
    for original, copied in zip(before.train, after.train, strict=True):
        for value, read in zip(original[1:], copied[1:], strict=True):
            assert torch.equal(value, read) if isinstance(value, torch.Tensor) else value == read


def test_exif_rotation(coco: Path) -> None:
    """Boxes may have been drawn with or without the rotation; the size in the annotation decides."""
    tall = Image.new("L", (100, 60), 0)
    tall.paste(255, (10, 10, 30, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to display
    tall.save(coco / "train2017" / "good.png", exif=exif)
    good = load_detection_dataset(f"coco:{coco}").train[0]
    assert good.read(1).shape == (1, 60, 100)
    assert (good.read(1)[0, 10:40, 10:30] == 255).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "not in COCO format"),
        ("{", "not a readable JSON file"),
        ('{"images": {}, "annotations": [], "categories": []}', "not in COCO format"),
        ('{"images": [{}], "annotations": [], "categories": []}', "no training image can be used.*id: missing"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', r"categories\[0\] needs an id and a name"),
        ('{"images": [], "annotations": [], "categories": []}', "no training image can be used"),
    ],
)
def test_malformed_files_get_one_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as raised:
        load_detection_dataset(f"coco:{path}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("source", ["coco:nowhere", "voc:nowhere", "voc:.", "coco:", "scenes:train=x", "scenes:a=1"])
def test_invalid_sources_get_one_line(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"no such|no XML|unknown data source|scenes takes"):
        load_detection_dataset(source)


XML = (
    "<annotation><filename>{name}</filename><size><width>{width}</width><height>{height}</height><depth>1</depth>"
    "</size>{objects}</annotation>"
)
OBJECT = (
    "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>"
    "<ymax>{}</ymax></bndbox></object>"
)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "VOCdevkit" / "VOC2012"
    save_image(root / "JPEGImages" / "a.jpg", (100, 60), "RGB")
    save_image(root / "JPEGImages" / "b.jpg", (50, 40), "RGB")
    objects = OBJECT.format("dog", 0, 11, 11, 30, 40) + OBJECT.format("cat", 1, 1, 1, 100, 60)
    (root / "Annotations").mkdir()
    (root / "Annotations" / "a.xml").write_text(XML.format(name="a.jpg", width=100, height=60, objects=objects))
    (root / "Annotations" / "b.xml").write_text(XML.format(name="b.jpg", width=50, height=40, objects=""))
    (root / "Annotations" / "c.xml").write_text("<annotation>")
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\nb\nc\nd\n")
    (root / "ImageSets" / "Main" / "val.txt").write_text("b\n")
    return root


def test_read_voc(voc: Path) -> None:
    data = load_detection_dataset(f"voc:{voc}")
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.validation), data.channels) == (2, 1, 3)
    first = data.train[0]
    # The pixels 11 to 30, counted from 1, are 10 to 29, counted from 0.
    assert first.boxes.tolist() == [[10, 10, 30, 40], [0, 0, 100, 60]]
    assert (first.labels.tolist(), first.crowd.tolist()) == ([1, 0], [False, True])
    assert "1 image excluded: train: broken XML file: no element found (Annotations/c.xml)" in data.skipped
    assert "1 image excluded: train: no such XML file (Annotations/d.xml)" in data.skipped
    (voc / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n")
    reference = VOCDetection(str(voc.parents[1]), year="2012", image_set="train")
    assert [Path(path).name for path in reference.images] == [Path(sample.name).name for sample in data.train]


def test_xml_next_to_images(voc: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    for split in ("train", "valid"):
        (flat / split).mkdir(parents=True)
        for path in (voc / "JPEGImages" / "a.jpg", voc / "Annotations" / "a.xml"):
            (flat / split / path.name).write_bytes(path.read_bytes())
    data = load_detection_dataset(f"voc:{flat}")
    assert (len(data.train), len(data.validation)) == (1, 1)


def test_validation_split_and_max_samples(tmp_path: Path) -> None:
    for number in range(10):
        save_image(tmp_path / f"{number}.png", (40, 40))
    images = [{"id": n, "file_name": f"{n}.png", "height": 40, "width": 40} for n in range(10)]
    annotations = [{"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 9, 9]} for n in range(10)]
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "x"}]}
    (tmp_path / "all.json").write_text(json.dumps(document))
    data = load_detection_dataset(f"coco:{tmp_path / 'all.json'}", LoadOptions(validation=0.2, seed=1))
    ids = [[sample.image_id for sample in split] for split in (data.train, data.validation)]
    assert (len(ids[0]), len(ids[1]), sorted(ids[0] + ids[1])) == (8, 2, list(range(10)))
    assert len(load_detection_dataset(f"coco:{tmp_path / 'all.json'}", LoadOptions(max_samples=4)).train) == 4
    assert Scenes.parse("train=3") == Scenes(train=3)
