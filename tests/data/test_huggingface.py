"""Data sets of Hugging Face in local files: formats, columns, and the pixels that `datasets` itself decodes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import googlenet
from googlenet.data.sources import LoadOptions, absolute_source, load_dataset

datasets = pytest.importorskip("datasets")

NAMES = ["cat", "dog", "eel"]
SIZE = 6


@pytest.fixture(autouse=True)
def offline(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use neither the network nor the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def pixels(split: str, number: int) -> Any:
    seed = {"train": 0, "validation": 1000, "test": 2000}[split] + number
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def build(split: str, count: int, **columns: list[Any]) -> Any:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    images = [Image.fromarray(pixels(split, number)) for number in range(count)]
    data = datasets.Dataset.from_dict({"image": images, "label": [n % 3 for n in range(count)]}, features=features)
    for name, values in columns.items():
        data = data.add_column(name, values)
    return data


def build_dict(**columns: list[Any]) -> Any:
    return datasets.DatasetDict({
        split: build(split, count, **{name: values[:count] for name, values in columns.items()})
        for split, count in (("train", 12), ("validation", 6), ("test", 3))
    })  # fmt: skip


def assert_loaded(data: Any, *, num_train: int = 12, sizes: tuple[int, int] = (6, 3)) -> None:
    assert data.classes == tuple(NAMES)
    parts = {"train": (data.train, num_train), "validation": (data.validation, sizes[0]), "test": (data.test, sizes[1])}
    for name, (split, count) in parts.items():
        assert len(split) == count
        for number, image in enumerate(next(iter(split.pixels([torch.arange(count)])))):
            assert np.array_equal(image.permute(1, 2, 0), pixels(name, number))
            assert split.labels[number] == number % 3


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("form", ["saved", "parquet folder"])
def test_splits(tmp_path: Path, form: str, in_memory: bool) -> None:
    data = build_dict(patient=[f"p{n}" for n in range(12)], fold=[n % 2 for n in range(12)])
    folder = tmp_path / "data"
    if form == "saved":
        data.save_to_disk(folder)
    else:
        folder.mkdir()
        for split, part in data.items():
            part.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    options = LoadOptions(size=SIZE, num_workers=0, in_memory=in_memory)
    result = load_dataset(f"hf:{folder}", options)
    assert_loaded(result)
    assert isinstance(result.train.images, torch.Tensor) is in_memory
    assert result.train.columns["patient"].tolist() == [f"p{n}" for n in range(12)]
    assert result.fold_column == "fold" and result.test.columns["fold"].tolist() == [0, 1, 0]
    assert result.accounting.used == {"image": 21} and not result.skipped


def test_one_parquet_file_is_for_training(tmp_path: Path) -> None:
    build("train", 12).to_parquet(tmp_path / "all.parquet")
    data = load_dataset(f"hf:{tmp_path / 'all.parquet'}", LoadOptions(size=SIZE, validation=0))
    assert_loaded(data, sizes=(0, 0))
    held_out = load_dataset("hf:all.parquet", LoadOptions(size=SIZE, validation=3, root=str(tmp_path)))
    assert len(held_out.validation) == 3
    assert absolute_source("hf:all.parquet", str(tmp_path)) == f"hf:{tmp_path}/all.parquet"
    assert absolute_source("hf:owner/name:config", str(tmp_path)) == "hf:owner/name:config"
    with pytest.raises(ValueError, match="contains the images themselves: use --data hf:"):
        load_dataset(f"table:{tmp_path / 'all.parquet'}")


def test_image_folder(tmp_path: Path) -> None:
    """Images in files of their own."""
    for split, count in (("train", 12), ("validation", 6), ("test", 3)):
        for number in range(count):
            path = tmp_path / "data" / split / NAMES[number % 3] / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels(split, number)).save(path)
    data = load_dataset(f"hf:{tmp_path / 'data'}", LoadOptions(size=SIZE, num_workers=0))
    assert data.classes == tuple(NAMES) and [len(s) for s in (data.train, data.validation, data.test)] == [12, 6, 3]
    folder = load_dataset(f"folder:{tmp_path / 'data'}", LoadOptions(size=SIZE, num_workers=0))
    assert {i.numpy().tobytes() for i in data.train.images} == {i.numpy().tobytes() for i in folder.train.images}


def test_columns_and_excluded_images(tmp_path: Path) -> None:
    data = build("train", 12, breed=["x", "y", "", "y", *"xyxyxyxy"], age=list(range(12)))
    data = data.cast_column("image", datasets.Image(decode=False))
    rows = data.to_list()
    rows[4]["image"] = {"bytes": b"no image", "path": None}
    rows[5]["label"] = -1
    damaged = datasets.Dataset.from_list(rows, features=data.features).cast_column("image", datasets.Image())
    datasets.DatasetDict({"train": damaged, "extra": build("test", 3)}).save_to_disk(tmp_path / "data")
    result = load_dataset(f"hf:{tmp_path / 'data'}", LoadOptions(size=SIZE, validation=0))
    assert len(result.train) == 10 and result.train.columns["age"].tolist() == [0, 1, 2, 3, 6, 7, 8, 9, 10, 11]
    assert result.skipped == [
        "3 images excluded: in a split that is not train, validation or test (extra 0, ...)",
        "1 image excluded: no label, or of a class without training images (train 5)",
        "1 image excluded: not an image in a format that Pillow reads (train 4)",
    ]
    assert result.accounting.encountered("image") == 15
    breeds = load_dataset(f"hf:{tmp_path / 'data'}", LoadOptions(size=SIZE, label_column="breed", validation=0))
    assert breeds.classes == ("x", "y") and "age" in breeds.train.columns
    with pytest.raises(ValueError, match=r"no column 'bred' \(did you mean breed"):
        load_dataset(f"hf:{tmp_path / 'data'}", LoadOptions(label_column="bred"))
    with pytest.raises(ValueError, match="the column 'age' has no images; for paths in a table use --data table:FILE"):
        load_dataset(f"hf:{tmp_path / 'data'}", LoadOptions(image_column="age"))


def test_invalid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.Dataset.from_dict({"a": [1, 2], "b": [1, 2]}).to_parquet(tmp_path / "numbers.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    (tmp_path / "data.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    for name, message in {
        str(tmp_path / "numbers.parquet"): "no column has images; the columns are a, b",
        str(tmp_path / "broken.parquet"): "cannot load the data set",
        str(tmp_path / "data.txt"): "not a file that datasets reads",
        str(tmp_path / "empty"): "cannot load the data set",
        str(tmp_path / "missing"): "cannot load the data set",
        "owner/not-there": "cannot load the data set: .*; without a network, give the path of a downloaded folder",
    }.items():
        with pytest.raises(ValueError, match=message) as raised:
            load_dataset(f"hf:{name}")
        assert "\n" not in str(raised.value)
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'googlenet\[hf\]'"):
        load_dataset("hf:owner/name")


@pytest.mark.slow
def test_train_and_evaluate(tmp_path: Path) -> None:
    build_dict().save_to_disk(tmp_path / "data")
    flags = ["--image-size", 32, "--epochs", 1, "--batch_size", 4, "--model.width_mult", 0.25]
    for in_memory in ("true", "false"):
        run = tmp_path / in_memory
        source = ["--data", f"hf:{tmp_path / 'data'}", "--data.in_memory", in_memory]
        done = googlenet("train", "fashion-mnist-smoke", *source, *flags, "--out", run)
        assert done.code == 0, done.err
        assert googlenet("evaluate", run, "--json").json["images"] == 3
