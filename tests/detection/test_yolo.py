"""YOLO annotations in the layouts of Ultralytics, Roboflow, LabelImg and CVAT."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from googlenet.config.parse import read_recipe
from googlenet.detection.data.dataset import load_detection_dataset
from googlenet.training.fit import fit

LINE = "1 0.5 0.5 0.5 0.25\n"
NAMES = "names: [cat, dog]\n"


def write(root: Path, files: dict[str, str]) -> None:
    """Write text files, and an image of 40x20 pixels for each name of one."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith((".png", ".jpg")):
            Image.new("L", (40, 20), 90).save(root / name)
        else:
            (root / name).write_text(text)


@pytest.mark.parametrize(
    "files",
    [
        {"data.yaml": f"{NAMES}train: images/train\n", "images/train/a.png": "", "labels/train/a.txt": LINE},
        {"data.yaml": f"{NAMES}nc: 2\ntrain: ../train/images\nval: ../valid/images\n", "train/images/a.png": "",
         "train/labels/a.txt": LINE},  # Roboflow; no folder valid
        {"data.yml": "path: set\ntrain: [images/one, images/two]\nnames: {0: cat, 1: dog}\n",
         "set/images/one/a.png": "", "set/labels/one/a.txt": LINE, "set/images/two/b.png": ""},
        {"data.yaml": f"{NAMES}path: ../datasets/x\ntrain: train.txt\n", "train.txt": "./images/a.png\nimages\\b.png\n",
         "images/a.png": "", "labels/a.txt": LINE, "images/b.png": ""},
        {"data.yaml": f"{NAMES}train: .\n", "a.png": "", "a.txt": LINE},
        {"classes.txt": "cat\ndog\n", "images/a.png": "", "labels/a.txt": LINE},  # Label Studio
        {"classes.txt": "cat\ndog\n", "a.png": "", "a.txt": LINE},  # LabelImg
        {"obj.names": "cat\ndog\n", "obj_train_data/a.png": "", "obj_train_data/a.txt": LINE},  # CVAT
        {"obj.names": "cat\ndog\n", "train.txt": "data/obj_train_data/a.png\n", "obj_train_data/sub/x.png": "",
         "obj_train_data/a.png": "", "obj_train_data/a.txt": LINE},
        {"classes.txt": "cat\ndog\n", "Images/Train/a.png": "", "Labels/Train/a.txt": LINE},
    ],
)  # fmt: skip
def test_layouts(files: dict[str, str], tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root, files)
    data = load_detection_dataset(f"yolo:{root}")
    assert data.classes == ("cat", "dog")
    (sample,) = (sample for sample in data.train if Path(sample.name).stem == "a")
    assert (sample.boxes.tolist(), sample.labels.tolist()) == ([[10, 7.5, 30, 12.5]], [1])
    assert all(not len(sample.boxes) for sample in data.train if Path(sample.name).stem != "a"), "kept as negatives"
    assert data.accounting.num_excluded("image") == data.accounting.num_excluded("box") == 0
    if yaml := next((name for name in files if name.startswith("data.y")), None):
        assert len(load_detection_dataset(f"yolo:{root / yaml}").train) == len(data.train)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("2 0.5 0.5 0.1 0.1", "no class with this number"),
        ("-1 0.5 0.5 0.1 0.1", "no class with this number"),
        ("cat 0.5 0.5 0.1 0.1", "not a finite number"),
        ("0 0.5 nan 0.1 0.1", "not a finite number"),
        ("0 0.5 0.5 0.1", "not a line of class, x, y, width and height"),
        ("0 0.5 0.5 0.1 0.1 0.2 0.3 0.4", "not a line of class, x, y, width and height"),
        ("0 20 10 8 4", "coordinates in pixels: divide them by the width and height of the image"),
        ("0 0.5 0.5 300 0.1", "coordinates in pixels: divide them by the width and height of the image"),
        ("0 1.2 0.5 0.1 0.1", "coordinates outside 0..1"),
        ("0 -0.2 0.5 0.1 0.1", "coordinates outside 0..1"),
        ("0 0.5 0.5 0 0.1", "empty box"),
    ],
)
def test_wrong_lines_are_excluded_with_file_and_line(line: str, reason: str, tmp_path: Path) -> None:
    write(tmp_path, {"data.yaml": f"{NAMES}train: images\n", "images/a.png": "", "labels/a.txt": f"{LINE}\n{line}\n"})
    data = load_detection_dataset(f"yolo:{tmp_path}")
    assert len(data.train[0].boxes) == 1
    assert f"1 box excluded: train: {reason} (a.txt: line 3)" in data.skipped


def test_polygons_and_confidences(tmp_path: Path) -> None:
    polygon, confidence = "0 0.25 0.5 0.75 0.25 0.5 0.75", "0 0.5 0.5 0.25 0.5 0.87"
    write(tmp_path, {"data.yaml": f"{NAMES}train: images\n", "images/a.png": "",
                     "labels/a.txt": f"{polygon}\n{confidence}\n"})  # fmt: skip
    data = load_detection_dataset(f"yolo:{tmp_path}")
    torch.testing.assert_close(data.train[0].boxes, torch.tensor([[10.0, 5, 30, 15], [15, 5, 25, 15]]))
    assert any("confidence" in line and "a.txt: line 2" in line for line in data.skipped)
    assert not data.accounting.excluded


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"images/a.png": ""}, "no class names; expected data.yaml"),
        ({"data.yaml": "names: [a, b]\nnc: 3\ntrain: images\n", "images/a.png": ""}, "nc is 3, but there are 2 names"),
        ({"data.yaml": "names: [a, a]\ntrain: images\n", "images/a.png": ""}, "two classes have the same name"),
        ({"data.yaml": "names: {x: a}\ntrain: images\n", "images/a.png": ""}, "names: neither a list"),
        ({"data.yaml": f"{NAMES}train: nowhere\n", "images/a.png": ""}, "train: no such file or folder: .*nowhere"),
        ({"data.yaml": "names: [", "images/a.png": ""}, "not a readable YAML file"),
        ({"data.yaml": "- 3", "images/a.png": ""}, "no class names|not in YOLO format"),
        ({"data.yaml": f"{NAMES}train: images\n", "images/a.png": ""}, "no usable training image has a box"),
    ],
)
def test_unusable_sources_get_one_line(files: dict[str, str], message: str, tmp_path: Path) -> None:
    write(tmp_path, files)
    with pytest.raises(ValueError, match=message) as raised:
        load_detection_dataset(f"yolo:{tmp_path}")
    assert "\n" not in str(raised.value)


def test_missing_images_and_orphan_labels(tmp_path: Path) -> None:
    write(tmp_path, {"data.yaml": f"{NAMES}train: train.txt\n", "train.txt": "images/a.png\nimages/gone.png\n",
                     "images/a.png": "", "images/unlisted.png": "", "labels/a.txt": LINE, "labels/gone.txt": LINE,
                     "labels/orphan.txt": LINE * 3})  # fmt: skip
    counts = load_detection_dataset(f"yolo:{tmp_path}").accounting
    assert (counts.used["image"], counts.used["box"], counts.used["file"]) == (1, 1, 1)
    assert (counts.num_excluded("image"), counts.num_excluded("box"), counts.num_excluded("file")) == (2, 4, 1)


def test_train_and_evaluate(tmp_path: Path) -> None:
    lines = {f"{split}/labels/{n}.txt": LINE for split in ("train", "valid") for n in range(4)}
    write(tmp_path, {name.replace("labels", "images").replace(".txt", ".png"): "" for name in lines})
    write(tmp_path, lines | {"data.yaml": f"{NAMES}train: train/images\nval: valid/images\n"})
    flags = [f"--data.source=yolo:{tmp_path}", "--size.schedule=fixed", "--size.train=64", "--epochs=1"]
    result = fit(read_recipe("scenes-smoke", [*flags, "--batch_size=2"]), tmp_path / "run", progress=False)
    assert result.metrics["validation"]["images"] == 4
