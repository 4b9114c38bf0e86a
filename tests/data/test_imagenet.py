"""ImageNet's layouts in small: Caffe's list, Kaggle's download, synset folders, and their evaluation."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.models import GoogLeNet_Weights

import googlenet as package
from googlenet.checkpoint.format import Checkpoint, write_checkpoint
from googlenet.cli.main import main
from googlenet.config.parse import read_recipe
from googlenet.config.schema import DataConfig, ModelConfig, Recipe, SizeConfig
from googlenet.data.decode import ImageError
from googlenet.data.preprocess import Preprocess
from googlenet.data.sources import LoadOptions, load_dataset
from googlenet.data.sources.imagenet import class_names, classes_match, imagenet_synsets, read_label_file
from googlenet.training.schedules import learning_rate_factor

# Three of the 1000 synsets, not in their order, each with its own gray level.
SYNSETS = {"n01443537": ("goldfish, Carassius auratus", 200), "n01440764": ("tench, Tinca tinca", 120),
           "n02012849": ("crane", 40)}  # fmt: skip
MAPPING = "".join(f"{synset} {SYNSETS[synset][0]}\n" for synset in sorted(SYNSETS))


def write_image(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (level,) * 3).save(path)


def write_training_images(root: Path) -> Path:
    for synset, (_, level) in SYNSETS.items():
        for number in range(3):
            write_image(root / "train" / synset / f"{synset}_{number}.JPEG", level + number)
    return root


def write_validation_images(folder: Path) -> list[tuple[str, str]]:
    """Write images to one folder; return (name, synset) of each, in another order."""
    listed = []
    for number, synset in enumerate([*SYNSETS, *SYNSETS][::-1], start=1):
        write_image(folder / f"ILSVRC2012_val_{number:08d}.JPEG", SYNSETS[synset][1])
        listed.append((f"ILSVRC2012_val_{number:08d}", synset))
    return listed[::-1]


@pytest.fixture
def caffe(tmp_path: Path) -> Path:
    numbers = {synset: number for number, synset in enumerate(sorted(SYNSETS))}
    listed = write_validation_images(write_training_images(tmp_path) / "val")
    lines = [f"{name}.JPEG {numbers[synset]}\n" for name, synset in listed]
    (tmp_path / "val.txt").write_text("".join(lines))
    return tmp_path


def labels_match_levels(split: object, classes: tuple[str, ...]) -> bool:
    level = {class_names([synset], {synset: name})[0]: level for synset, (name, level) in SYNSETS.items()}
    middle = split.images.float().mean((1, 2, 3))  # type: ignore[attr-defined]
    expected = torch.tensor([level[classes[label]] for label in split.labels])  # type: ignore[attr-defined]
    return bool(((middle - expected).abs() < 8).all())


@pytest.mark.parametrize("in_memory", [True, False])
def test_caffes_list(caffe: Path, in_memory: bool) -> None:
    data = load_dataset(f"imagenet:{caffe}", LoadOptions(size=8, in_memory=in_memory, num_workers=0))
    # Without a mapping, classes have the names of published networks.
    assert data.classes == ("tench", "goldfish", "crane bird")
    assert data.synsets == tuple(sorted(SYNSETS))
    assert [len(split.labels) for split in (data.train, data.validation, data.test)] == [9, 6, 0]
    assert data.validation.labels.tolist() == [1, 0, 2, 1, 0, 2], "in the order of the list"
    if in_memory:
        renamed = tuple({"crane bird": "crane"}.get(name, name) for name in data.classes)
        assert labels_match_levels(data.train, renamed) and labels_match_levels(data.validation, renamed)
    assert not data.skipped


def test_kaggles_download(tmp_path: Path) -> None:
    inner = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    listed = write_validation_images(write_training_images(inner) / "val")
    rows = [f"{name},{synset} 10 20 30 40 {synset} 1 2 3 4\n" for name, synset in listed]
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(rows))
    (tmp_path / "LOC_synset_mapping.txt").write_text(MAPPING)
    write_image(inner / "test" / "ILSVRC2012_test_00000001.JPEG", 9)
    data = load_dataset(f"imagenet:{tmp_path}", LoadOptions(size=8, on_error="raise"))
    assert data.classes == ("tench", "goldfish", "crane")
    assert labels_match_levels(data.train, data.classes) and labels_match_levels(data.validation, data.classes)
    assert not data.test, "its test images have no labels"


def test_validation_images_in_synset_folders(tmp_path: Path) -> None:
    shutil.copytree(write_training_images(tmp_path) / "train", tmp_path / "val")
    data = load_dataset(f"imagenet:{tmp_path}", LoadOptions(size=8))
    assert data.validation.labels.tolist() == data.train.labels.tolist()
    alone = load_dataset(f"imagenet:{tmp_path / 'val'}", LoadOptions(size=8))
    assert not alone.train and len(alone.validation.labels) == 9
    assert alone.classes == data.classes and alone.mean == data.mean
    assert len(load_dataset(f"imagenet:{tmp_path / 'train'}", LoadOptions(size=8, validation=0)).train.labels) == 9


def test_validation_images_without_training_images(caffe: Path) -> None:
    (caffe / "LOC_synset_mapping.txt").write_text(MAPPING)
    shutil.rmtree(caffe / "train")
    for root in (caffe, caffe / "val"):
        data = load_dataset(f"imagenet:{root}", LoadOptions(size=8))
        assert not data.train and labels_match_levels(data.validation, data.classes)


def test_validation_images_of_all_classes(tmp_path: Path) -> None:
    """Without folders and a mapping, labels are the class indices of published networks."""
    write_image(tmp_path / "val" / "one.JPEG", 9)
    write_image(tmp_path / "val" / "two.JPEG", 9)
    (tmp_path / "val" / "val.txt").write_text("one.JPEG 134\ntwo.JPEG 999\n")
    data = load_dataset(f"imagenet:{tmp_path / 'val'}", LoadOptions(size=8))
    names = GoogLeNet_Weights.IMAGENET1K_V1.meta["categories"]
    assert data.classes == tuple(names) and classes_match(data, names)
    assert [names[label] for label in data.validation.labels] == ["crane bird", "toilet tissue"]
    assert not classes_match(data, names[::-1]) and not classes_match(data, names[:999])
    (tmp_path / "val" / "val.txt").write_text("one.JPEG 134\ntwo.JPEG 1000\n")
    with pytest.raises(ValueError, match="line 2 has class 1000 of 1000 classes, counted from 0"):
        load_dataset(f"imagenet:{tmp_path / 'val'}", LoadOptions(size=8))


def test_class_names_are_unique() -> None:
    synsets = ("n02012849", "n03126707", "n01440764", "n99999999")
    assert class_names(synsets, {}) == ("crane bird", "crane", "tench", "n99999999")
    mapping = {"n02012849": "crane", "n03126707": "crane", "n01440764": "tench, Tinca tinca", "n99999999": "tench, x"}
    assert class_names(synsets, mapping) == ("crane (n02012849)", "crane (n03126707)", "tench, Tinca tinca", "tench, x")
    assert len(imagenet_synsets()) == 1000 == len(set(imagenet_synsets().values()))
    assert list(imagenet_synsets()) == sorted(imagenet_synsets())


def test_a_network_is_evaluated_on_synset_folders_by_class_name(
    caffe: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    names = ("tench", "goldfish", "crane bird")
    for number, classes in enumerate([names, tuple(sorted(SYNSETS))]):
        model = package.create_model("googlenet_d2l", 3, width_mult=0.25).eval()
        config = ModelConfig(name="googlenet_d2l", width_mult=0.25)
        recipe = Recipe(model=config, data=DataConfig(val_split=0), size=SizeConfig(train=16))
        checkpoint = Checkpoint(model, Preprocess(16, 3, (0.5,) * 3, (0.2,) * 3), classes, recipe, {})
        write_checkpoint(tmp_path / f"{number}.safetensors", checkpoint)
        for source in (f"imagenet:{caffe}", f"folder:{caffe / 'train'}"):
            assert main(["evaluate", str(tmp_path / f"{number}.safetensors"), "--data", source, "--json"]) == 0
            result = json.loads(capsys.readouterr().out)
            assert list(result["per_class"]) == list(classes), "named as in the checkpoint"
            assert result["split"] == ("validation" if source.startswith("imagenet") else "train")
    crops = ["--crops", "10", "--data", f"imagenet:{caffe}", "--json"]
    assert main(["evaluate", str(tmp_path / "0.safetensors"), *crops]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 6
    # Other classes, or the same in another order, are an error.
    model = package.create_model("googlenet_d2l", 3, width_mult=0.25).eval()
    other = Checkpoint(model, checkpoint.preprocess, names[::-1], checkpoint.recipe, {})
    write_checkpoint(tmp_path / "other.safetensors", other)
    assert main(["evaluate", str(tmp_path / "other.safetensors"), "--data", f"imagenet:{caffe}"]) == 1
    assert "has the classes tench, goldfish, crane bird, but the network has crane bird" in capsys.readouterr().err


def test_label_files(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("val/a b.JPEG 3\n\nc.JPEG n01440764\n")
    assert read_label_file(path) == [(1, "val/a b.JPEG", 3), (3, "c.JPEG", "n01440764")]
    for text, suffix, message in (
        ("a.JPEG\n", ".txt", "line 1 is not an image and its class"),
        ("", ".txt", "lists no images"),
        ("ImageId,PredictionString\nx,\n", ".csv", "line 2 is not"),
    ):
        invalid = tmp_path / f"wrong{suffix}"
        invalid.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_label_file(invalid)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("line_end", ["\r\n", "\r"])
@pytest.mark.parametrize("prefix", ["", "val\\\\", "C:\\\\images\\\\", "val/"])
def test_lists_of_windows(caffe: Path, encoding: str, line_end: str, prefix: str) -> None:
    for name, text in (("val.txt", (caffe / "val.txt").read_text()), ("synset_words.txt", MAPPING)):
        lines = [prefix * (name == "val.txt") + line for line in text.splitlines()]
        (caffe / name).write_bytes("".join(line + line_end for line in lines).encode(encoding))
    data = load_dataset(f"imagenet:{caffe}", LoadOptions(size=8, on_error="raise"))
    assert data.classes == ("tench", "goldfish", "crane") and labels_match_levels(data.validation, data.classes)
    assert data.accounting.used == {"entry": 6, "file": 9 + 6 + 2} and not data.skipped


@pytest.mark.parametrize("label", ["-1", "1.5", "1e3", "nan", "12345678901234567890", "\u00b2"])
def test_invalid_class_indices_are_named(caffe: Path, label: str) -> None:
    lines = (caffe / "val.txt").read_text().splitlines()
    lines[3] = f"{lines[3].split()[0]} {label}"
    (caffe / "val.txt").write_text("\n".join(lines))
    if label == "\u00b2":  # not a number but an unknown name
        data = load_dataset(f"imagenet:{caffe}", LoadOptions(size=8))
        assert "1 entry excluded: of a class without training images" in data.skipped[0] and "line 4" in data.skipped[0]
    else:
        with pytest.raises(ValueError, match=rf"val.txt: line 4 has the class '{label}': neither a class folder nor"):
            load_dataset(f"imagenet:{caffe}", LoadOptions(size=8))


def test_lists_that_are_no_text_are_named(caffe: Path) -> None:
    (caffe / "val.txt").write_bytes(b"a.JPEG 0\nb\xff.JPEG 1\n")
    with pytest.raises(ValueError, match="val.txt: line 2 is not utf-8 text; save the file as UTF-8"):
        load_dataset(f"imagenet:{caffe}", LoadOptions(size=8))


@pytest.mark.parametrize(("train", "val"), [("Train", "valid"), ("training_images", "val2012")])
def test_splits_in_other_forms(caffe: Path, train: str, val: str) -> None:
    (caffe / "train").rename(caffe / train)
    (caffe / "val").rename(caffe / val)
    data = load_dataset(f"imagenet:{caffe}", LoadOptions(size=8))
    assert [len(data.train), len(data.validation)] == [9, 6] and not data.skipped


def test_inconsistent_files(caffe: Path) -> None:
    lines = (caffe / "val.txt").read_text().splitlines()
    source = f"imagenet:{caffe}"

    def check_error(text: list[str], match: str) -> None:
        (caffe / "val.txt").write_text("\n".join(text))
        with pytest.raises(ValueError, match=match):
            load_dataset(source, LoadOptions(size=8))

    check_error([*lines, lines[0]], "val.txt: lines 1 and 7 list the same image")
    check_error([*lines[:-1], lines[-1].split()[0] + " 65"], "line 6 has class 65 of 3 classes.*LOC_synset_mapping.txt")
    check_error(["other.JPEG 1"], "none of its images is in .*the first is other.JPEG")
    # An image that is only listed, or only in the folder, is skipped, or an error.
    (caffe / "val.txt").write_text("\n".join([*lines[1:], "gone.JPEG 0"]))
    data = load_dataset(source, LoadOptions(size=8))
    assert len(data.validation.labels) == 5
    assert "listed in val.txt, but not an image in" in data.skipped[0] and "line 6: gone.JPEG" in data.skipped[0]
    assert "not listed in val.txt" in data.skipped[1] and lines[0].split()[0] in data.skipped[1]
    assert data.accounting.used == {"entry": 5, "file": 9 + 5 + 1} and data.accounting.encountered("entry") == 6
    with pytest.raises(ImageError, match=r"gone.JPEG: listed in val.txt, but not"):
        load_dataset(source, LoadOptions(size=8, on_error="raise"))
    (caffe / "val.txt").unlink()
    with pytest.raises(ValueError, match="no label file; put val.txt or LOC_val_solution.csv beside it"):
        load_dataset(source, LoadOptions(size=8))
    (caffe / "LOC_synset_mapping.txt").write_text("n01440764\n")
    with pytest.raises(ValueError, match="LOC_synset_mapping.txt: line 1 is not a class folder and its name"):
        load_dataset(source, LoadOptions(size=8))
    (caffe / "empty").mkdir()
    for name, message in (("empty", "neither train nor val"), ("nowhere", "no such folder")):
        with pytest.raises(ValueError, match=message):
            load_dataset(f"imagenet:{caffe / name}", LoadOptions(size=8))


def test_training_needs_training_images(caffe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (caffe / "LOC_synset_mapping.txt").write_text(MAPPING)
    out = tmp_path / "out"
    flags = ["--data.source", f"imagenet:{caffe / 'val'}", "--out", str(out)]
    assert main(["train", "fashion-mnist-smoke", *flags]) == 1
    assert "has no training images" in capsys.readouterr().err and not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "size", "model"),
    [
        ("imagenet-googlenet", 64, "--model.width_mult=0.25"),
        ("imagenet-googlenet-bn", 64, "--model.width_mult=0.25"),
        ("imagenet-inception-v3", 75, "--model.aux=true"),
    ],
)
def test_recipes_of_the_papers_run(recipe: str, size: int, model: str, caffe: Path) -> None:
    """One epoch of three steps, on images of three classes; the network, heads and augmentation are the recipe's."""
    flags = [f"--data=imagenet:{caffe}", f"--size.train={size}", "--batch_size=3", "--epochs=1", model, "--device=cpu"]
    assert main(["train", recipe, *flags, "--out", str(caffe / "run")]) == 0
    checkpoint = package.load(caffe / "run")
    assert checkpoint.classes[:2] == ("tench", "goldfish") and len(checkpoint.classes) == 3
    assert checkpoint.recipe.augment.min_crop_scale == 0.08 and checkpoint.recipe.model.aux
    assert 0 <= checkpoint.metrics["validation"]["top1"] <= 1


def test_the_recipe_of_googlenet_has_the_papers_options() -> None:
    recipe = read_recipe("imagenet-googlenet")
    assert (recipe.model.name, recipe.model.aux, recipe.loss.aux_weight) == ("googlenet", True, 0.3)
    assert (recipe.optimizer.name, recipe.optimizer.momentum) == ("sgd", 0.9)
    factors = [learning_rate_factor(recipe.schedule, epoch * 100, 25_000, 100) for epoch in (0, 7.99, 8, 16)]
    assert factors == pytest.approx([1, 1, 0.96, 0.96**2])
    assert (recipe.size.sizes, recipe.augment.min_crop_scale, recipe.augment.random_interpolation) == (
        (224,),
        0.08,
        True,
    )
