"""ImageNet's layouts on a small made tree: Caffe's list, Kaggle's download, synset folders, and networks for them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.models import GoogLeNet_Weights

import googlenet as package
from googlenet.cli import main
from googlenet.data.file_list import read_list
from googlenet.data.imagenet import known_classes, names_of, same_classes
from googlenet.data.pictures import PictureError
from googlenet.data.preprocess import Preprocess
from googlenet.data.sources import load_dataset
from googlenet.training.checkpoint import Checkpoint, save_weights
from googlenet.training.recipe import Data, Model, Recipe, Size

# Of the 1000, out of their order on purpose; each has its own grey.
SYNSETS = {"n01443537": ("goldfish, Carassius auratus", 200), "n01440764": ("tench, Tinca tinca", 120),
           "n02012849": ("crane", 40)}  # fmt: skip
MAPPING = "".join(f"{synset} {SYNSETS[synset][0]}\n" for synset in sorted(SYNSETS))


def picture(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (level,) * 3).save(path)


def training(root: Path) -> Path:
    for synset, (_, level) in SYNSETS.items():
        for number in range(3):
            picture(root / "train" / synset / f"{synset}_{number}.JPEG", level + number)
    return root


def validation(folder: Path) -> list[tuple[str, str]]:
    """Flat pictures, and (name, synset) of each, in an order that is not theirs."""
    listed = []
    for number, synset in enumerate([*SYNSETS, *SYNSETS][::-1], start=1):
        picture(folder / f"ILSVRC2012_val_{number:08d}.JPEG", SYNSETS[synset][1])
        listed.append((f"ILSVRC2012_val_{number:08d}", synset))
    return listed[::-1]


@pytest.fixture
def caffe(tmp_path: Path) -> Path:
    numbers = {synset: number for number, synset in enumerate(sorted(SYNSETS))}
    lines = [f"{name}.JPEG {numbers[synset]}\n" for name, synset in validation(training(tmp_path) / "val")]
    (tmp_path / "val.txt").write_text("".join(lines))
    return tmp_path


def labels_are_the_greys(split: object, classes: tuple[str, ...]) -> bool:
    level = {names_of([synset], {synset: name})[0]: level for synset, (name, level) in SYNSETS.items()}
    middle = split.images.float().mean((1, 2, 3))  # type: ignore[attr-defined]
    expected = torch.tensor([level[classes[label]] for label in split.labels])  # type: ignore[attr-defined]
    return bool(((middle - expected).abs() < 8).all())


@pytest.mark.parametrize("resident", [True, False])
def test_caffes_list(caffe: Path, resident: bool) -> None:
    data = load_dataset(f"imagenet:{caffe}", size=8, resident=resident, workers=0)
    assert data.classes == ("tench", "goldfish", "crane bird"), "named without a mapping, as published networks do"
    assert data.synsets == tuple(sorted(SYNSETS))
    assert [len(split.labels) for split in (data.train, data.validation, data.test)] == [9, 6, 0]
    assert data.validation.labels.tolist() == [1, 0, 2, 1, 0, 2], "in the order of the list"
    if resident:
        renamed = tuple({"crane bird": "crane"}.get(name, name) for name in data.classes)
        assert labels_are_the_greys(data.train, renamed) and labels_are_the_greys(data.validation, renamed)
    assert not data.skipped


def test_kaggles_download(tmp_path: Path) -> None:
    inner = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    listed = validation(training(inner) / "val")
    rows = [f"{name},{synset} 10 20 30 40 {synset} 1 2 3 4\n" for name, synset in listed]
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(rows))
    (tmp_path / "LOC_synset_mapping.txt").write_text(MAPPING)
    picture(inner / "test" / "ILSVRC2012_test_00000001.JPEG", 9)
    data = load_dataset(f"imagenet:{tmp_path}", size=8, unreadable="refuse")
    assert data.classes == ("tench", "goldfish", "crane")
    assert labels_are_the_greys(data.train, data.classes) and labels_are_the_greys(data.validation, data.classes)
    assert not data.test, "its test pictures have no labels"


def test_folders_of_synsets_to_validate_on(tmp_path: Path) -> None:
    shutil.copytree(training(tmp_path) / "train", tmp_path / "val")
    data = load_dataset(f"imagenet:{tmp_path}", size=8)
    assert data.validation.labels.tolist() == data.train.labels.tolist()
    alone = load_dataset(f"imagenet:{tmp_path / 'val'}", size=8)
    assert not alone.train and len(alone.validation.labels) == 9
    assert alone.classes == data.classes and alone.mean == data.mean
    assert len(load_dataset(f"imagenet:{tmp_path / 'train'}", size=8, validation=0).train.labels) == 9


def test_validation_pictures_alone(caffe: Path) -> None:
    (caffe / "LOC_synset_mapping.txt").write_text(MAPPING)
    shutil.rmtree(caffe / "train")
    for place in (caffe, caffe / "val"):
        data = load_dataset(f"imagenet:{place}", size=8)
        assert not data.train and labels_are_the_greys(data.validation, data.classes)


def test_validation_pictures_of_all_classes(tmp_path: Path) -> None:
    """Without folders and without a mapping the numbers are those of the 1000, as published networks count them."""
    picture(tmp_path / "val" / "one.JPEG", 9)
    picture(tmp_path / "val" / "two.JPEG", 9)
    (tmp_path / "val" / "val.txt").write_text("one.JPEG 134\ntwo.JPEG 999\n")
    data = load_dataset(f"imagenet:{tmp_path / 'val'}", size=8)
    names = GoogLeNet_Weights.IMAGENET1K_V1.meta["categories"]
    assert data.classes == tuple(names) and same_classes(data, names)
    assert [names[label] for label in data.validation.labels] == ["crane bird", "toilet tissue"]
    assert not same_classes(data, names[::-1]) and not same_classes(data, names[:999])
    (tmp_path / "val" / "val.txt").write_text("one.JPEG 134\ntwo.JPEG 1000\n")
    with pytest.raises(ValueError, match="line 2 has class 1000, and there are 1000, counted from 0"):
        load_dataset(f"imagenet:{tmp_path / 'val'}", size=8)


def test_names_are_told_apart() -> None:
    synsets = ("n02012849", "n03126707", "n01440764", "n99999999")
    assert names_of(synsets, {}) == ("crane bird", "crane", "tench", "n99999999")
    mapping = {"n02012849": "crane", "n03126707": "crane", "n01440764": "tench, Tinca tinca", "n99999999": "tench, x"}
    assert names_of(synsets, mapping) == ("crane (n02012849)", "crane (n03126707)", "tench, Tinca tinca", "tench, x")
    assert len(known_classes()) == 1000 == len(set(known_classes().values()))
    assert list(known_classes()) == sorted(known_classes())


def test_a_network_answers_by_name_to_folders_of_synsets(
    caffe: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    names = ("tench", "goldfish", "crane bird")
    for number, classes in enumerate([names, tuple(sorted(SYNSETS))]):
        model = package.create("googlenet_d2l", 3, width=0.25).eval()
        kept = Checkpoint(
            model, Preprocess(16, 3, (0.5,) * 3, (0.2,) * 3), classes,
            Recipe(model=Model(name="googlenet_d2l", width=0.25), data=Data(validation=0), size=Size(train=16)), {},
        )  # fmt: skip
        save_weights(tmp_path / f"{number}.safetensors", kept)
        for source in (f"imagenet:{caffe}", f"folder:{caffe / 'train'}"):
            assert main(["evaluate", str(tmp_path / f"{number}.safetensors"), "--data", source, "--json"]) == 0
            found = json.loads(capsys.readouterr().out)
            assert list(found["per_class"]) == list(classes), "called as the network calls them"
            assert found["split"] == ("validation" if source.startswith("imagenet") else "train")
    crops = ["--crops", "10", "--data", f"imagenet:{caffe}", "--json"]
    assert main(["evaluate", str(tmp_path / "0.safetensors"), *crops]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 6
    # Other classes, or the same in another order, are refused.
    model = package.create("googlenet_d2l", 3, width=0.25).eval()
    other = Checkpoint(model, kept.preprocess, names[::-1], kept.recipe, {})
    save_weights(tmp_path / "other.safetensors", other)
    assert main(["evaluate", str(tmp_path / "other.safetensors"), "--data", f"imagenet:{caffe}"]) == 1
    assert "has the classes tench, goldfish, crane bird, the network knows crane bird" in capsys.readouterr().err


def test_lists(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("val/a b.JPEG 3\n\nc.JPEG n01440764\n")
    assert [(entry.line, entry.name, entry.label) for entry in read_list(path)] == [
        (1, "val/a b.JPEG", 3),
        (3, "c.JPEG", "n01440764"),
    ]
    for text, suffix, said in (
        ("a.JPEG\n", ".txt", "line 1 is not a picture and its class"),
        ("", ".txt", "lists no pictures"),
        ("ImageId,PredictionString\nx,\n", ".csv", "line 2 is not"),
    ):
        wrong = tmp_path / f"wrong{suffix}"
        wrong.write_text(text)
        with pytest.raises(ValueError, match=said):
            read_list(wrong)


def test_what_does_not_fit_together(caffe: Path) -> None:
    lines = (caffe / "val.txt").read_text().splitlines()
    source = f"imagenet:{caffe}"

    def says(text: list[str], match: str) -> None:
        (caffe / "val.txt").write_text("\n".join(text))
        with pytest.raises(ValueError, match=match):
            load_dataset(source, size=8)

    says([*lines, lines[0]], "val.txt: lines 1 and 7 are of the same picture")
    says([*lines[:-1], lines[-1].split()[0] + " 65"], "line 6 has class 65, and there are 3.*LOC_synset_mapping.txt")
    says(["other.JPEG 1"], "none of its pictures is in .*the first is other.JPEG")
    # A picture that is in one of the two alone is named and left out, or refused.
    (caffe / "val.txt").write_text("\n".join([*lines[1:], "gone.JPEG 0"]))
    data = load_dataset(source, size=8)
    assert len(data.validation.labels) == 5
    assert [reason.rpartition("/")[2] for reason in data.skipped] == [
        "val",
        f"{lines[0].split()[0]}: not listed in val.txt",
    ]
    with pytest.raises(PictureError, match=r"gone.JPEG: listed in val.txt, not in"):
        load_dataset(source, size=8, unreadable="refuse")
    (caffe / "val.txt").unlink()
    with pytest.raises(ValueError, match="no list beside it: put val.txt or LOC_val_solution.csv there"):
        load_dataset(source, size=8)
    (caffe / "LOC_synset_mapping.txt").write_text("n01440764\n")
    with pytest.raises(ValueError, match="LOC_synset_mapping.txt: line 1 is not a class's folder and its name"):
        load_dataset(source, size=8)
    (caffe / "empty").mkdir()
    for place, said in (("empty", "neither train nor val"), ("nowhere", "no such folder")):
        with pytest.raises(ValueError, match=said):
            load_dataset(f"imagenet:{caffe / place}", size=8)


def test_there_is_nothing_to_train_on(caffe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (caffe / "LOC_synset_mapping.txt").write_text(MAPPING)
    out = tmp_path / "out"
    flags = ["--data.source", f"imagenet:{caffe / 'val'}", "--out", str(out)]
    assert main(["train", "fashion-mnist-smoke", *flags]) == 1
    assert "has no training pictures" in capsys.readouterr().err and not out.exists()
