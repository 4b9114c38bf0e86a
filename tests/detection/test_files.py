"""COCO and Pascal VOC folders as they are found: what is wrong is counted, what is left is right."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.datasets import VOCDetection

from googlenet.detection.coco import write_coco
from googlenet.detection.scenes import Scenes
from googlenet.detection.sources import load_detection


def grey(path: Path, size: tuple[int, int], mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 100 if mode == "L" else (10, 200, 30)).save(path)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A folder in which everything is wrong that can be, and one picture that is right."""
    grey(tmp_path / "train2017" / "good.png", (100, 60))
    grey(tmp_path / "train2017" / "empty.png", (50, 50))
    grey(tmp_path / "train2017" / "other-size.png", (30, 30))
    (tmp_path / "train2017" / "damaged.png").write_bytes(b"no picture")
    grey(tmp_path / "val2017" / "held.png", (80, 40))
    sizes = {"good": (60, 100), "empty": (50, 50), "other-size": (40, 40), "damaged": (9, 9), "missing": (9, 9)}
    images = [
        {"id": number, "file_name": f"{name}.png", "height": h, "width": w}
        for number, (name, (h, w)) in enumerate(sizes.items(), start=11)
    ]
    images.append({"id": 16, "file_name": "empty.png"})
    boxes: list[tuple[int, int, list[float] | None, int]] = [
        (11, 7, [10, 10, 20, 30], 0),
        (11, 3, [80, 40, 50, 50], 0),  # partly outside
        (11, 3, [0, 0, 100, 60], 1),  # a crowd
        (11, 3, [120, 10, 10, 10], 0),  # wholly outside
        (11, 3, [10, 10, 0, 10], 0),  # of no area
        (11, 3, [10, 10, -4, 10], 0),
        (11, 99, [1, 1, 5, 5], 0),  # of no known class
        (11, 3, None, 0),
        (77, 3, [1, 1, 5, 5], 0),  # of no listed picture
        (13, 3, [1, 1, 5, 5], 0),
    ]
    annotations: list[dict[str, Any]] = [
        {"id": number, "image_id": image, "category_id": category, "bbox": box, "iscrowd": crowd}
        for number, (image, category, box, crowd) in enumerate(boxes)
    ]
    annotations[0]["area"] = 321.5
    categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 9, "name": "unseen"}]
    (tmp_path / "annotations").mkdir()
    document = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(document))
    held = {"images": [{"id": 1, "file_name": "held.png", "height": 40, "width": 80}], "categories": categories}
    held["annotations"] = [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [0, 0, 8, 8]}]
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(held))
    return tmp_path


def test_coco_as_found(coco: Path) -> None:
    data = load_detection(f"coco:{coco}")
    assert data.classes == ("cat", "dog", "unseen"), "by id"
    assert (len(data.train), len(data.validation), len(data.test), data.channels) == (3, 1, 0, 1)
    good, empty, unsized = data.train
    assert good.boxes.tolist() == [[10, 10, 30, 40], [80, 40, 100, 60], [0, 0, 100, 60]]
    assert (good.labels.tolist(), good.crowd.tolist()) == ([1, 0, 0], [False, False, True])
    assert (good.areas[0].item(), good.number) == (321.5, 11)
    assert good.read(3).shape == (3, 60, 100)
    assert len(empty.boxes) == len(unsized.boxes) == 0
    assert (unsized.height, unsized.width) == (50, 50)
    assert data.validation[0].labels.tolist() == [1]
    for said in (
        "train: 1 boxes partly outside their picture, clipped to it",
        "train: 1 boxes wholly outside their picture, left out",
        "train: 2 boxes of no area, left out",
        "train: 1 annotations of an unknown category, left out",
        "train: 1 annotations without a box, left out",
        "train: 1 annotations of a picture that is not listed, left out",
        "train: 1 pictures missing, left out",
        "train: 1 pictures that cannot be read, left out",
        "train: 1 pictures of another size than their boxes were made for, left out",
        "train: 2 pictures without an object, kept",
        "train: no object of class unseen",
    ):
        assert said in data.skipped
    with pytest.raises(ValueError, match="3 of its train pictures cannot be used"):
        load_detection(f"coco:{coco}", unreadable="refuse")


def test_pictures_that_break_off_are_left_out(coco: Path) -> None:
    noise = torch.randint(256, (60, 100), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    path = coco / "train2017" / "good.png"
    Image.fromarray(noise.numpy()).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="no training picture has a box"):
        load_detection(f"coco:{coco}")


def test_what_is_written_is_read_back(coco: Path, tmp_path: Path) -> None:
    before = load_detection(f"coco:{coco}")
    write_coco(tmp_path / "again", "train", before.train, before.classes)
    after = load_detection(f"coco:{tmp_path / 'again'}")
    assert after.classes == before.classes
    for one, other in zip(before.train, after.train, strict=True):
        for value, read in zip(one[1:], other[1:], strict=True):
            assert torch.equal(value, read) if isinstance(value, torch.Tensor) else value == read


def test_a_picture_on_its_side(coco: Path) -> None:
    """A camera's rotation: boxes may have been drawn with it or without; the size tells."""
    tall = Image.new("L", (100, 60), 0)
    tall.paste(255, (10, 10, 30, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees to be seen
    tall.save(coco / "train2017" / "good.png", exif=exif)
    good = load_detection(f"coco:{coco}").train[0]
    assert good.read(1).shape == (1, 60, 100)
    assert (good.read(1)[0, 10:40, 10:30] == 255).all()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "not in COCO's form"),
        ("{", "not a JSON file"),
        ('{"images": [{}], "annotations": [], "categories": []}', "not in COCO's form"),
        ('{"images": [], "annotations": [], "categories": []}', "no training picture"),
    ],
)
def test_files_of_another_form_get_one_line(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=said) as raised:
        load_detection(f"coco:{path}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("source", ["coco:nowhere", "voc:nowhere", "voc:.", "coco:", "scenes:train=x", "scenes:a=1"])
def test_unknown_sources_get_one_line(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"no such|no XML|unknown source|scenes take"):
        load_detection(source)


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
    grey(root / "JPEGImages" / "a.jpg", (100, 60), "RGB")
    grey(root / "JPEGImages" / "b.jpg", (50, 40), "RGB")
    objects = OBJECT.format("dog", 0, 11, 11, 30, 40) + OBJECT.format("cat", 1, 1, 1, 100, 60)
    (root / "Annotations").mkdir()
    (root / "Annotations" / "a.xml").write_text(XML.format(name="a.jpg", width=100, height=60, objects=objects))
    (root / "Annotations" / "b.xml").write_text(XML.format(name="b.jpg", width=50, height=40, objects=""))
    (root / "Annotations" / "c.xml").write_text("<annotation>")
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\nb\nc\nd\n")
    (root / "ImageSets" / "Main" / "val.txt").write_text("b\n")
    return root


def test_voc_as_found(voc: Path) -> None:
    data = load_detection(f"voc:{voc}")
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.validation), data.channels) == (2, 1, 3)
    first = data.train[0]
    # Pixels 11 to 30, counted from 1: the box begins at 10 and ends behind pixel 29.
    assert first.boxes.tolist() == [[10, 10, 30, 40], [0, 0, 100, 60]]
    assert (first.labels.tolist(), first.crowd.tolist()) == ([1, 0], [False, True])
    assert "train: 1 XML files that cannot be read, left out" in data.skipped
    assert "train: 1 XML files missing, left out" in data.skipped
    (voc / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n")
    theirs = VOCDetection(str(voc.parents[1]), year="2012", image_set="train")
    assert [Path(path).name for path in theirs.images] == [Path(one.name).name for one in data.train]


def test_xml_beside_pictures(voc: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    for split in ("train", "valid"):
        (flat / split).mkdir(parents=True)
        for path in (voc / "JPEGImages" / "a.jpg", voc / "Annotations" / "a.xml"):
            (flat / split / path.name).write_bytes(path.read_bytes())
    data = load_detection(f"voc:{flat}")
    assert (len(data.train), len(data.validation)) == (1, 1)


def test_held_out_and_limited(tmp_path: Path) -> None:
    for number in range(10):
        grey(tmp_path / f"{number}.png", (40, 40))
    images = [{"id": n, "file_name": f"{n}.png", "height": 40, "width": 40} for n in range(10)]
    annotations = [{"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 9, 9]} for n in range(10)]
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "x"}]}
    (tmp_path / "all.json").write_text(json.dumps(document))
    data = load_detection(f"coco:{tmp_path / 'all.json'}", validation=0.2, seed=1)
    numbers = [[one.number for one in split] for split in (data.train, data.validation)]
    assert (len(numbers[0]), len(numbers[1]), sorted(numbers[0] + numbers[1])) == (8, 2, list(range(10)))
    assert len(load_detection(f"coco:{tmp_path / 'all.json'}", limit=4).train) == 4
    assert Scenes.parse("train=3") == Scenes(train=3)
