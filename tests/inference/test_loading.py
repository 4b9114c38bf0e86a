"""Predictors of runs and exported folders in each engine."""

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from conftest import googlenet
from googlenet.checkpoint.load import load
from googlenet.data.dataset import LoadOptions, Split
from googlenet.data.sources import load_dataset
from googlenet.evaluation.predictor import FeaturePredictor
from googlenet.explain.cam import maps_of_features
from googlenet.inference.loading import load_predictor
from servers import serve_in_thread


@pytest.fixture(scope="module")
def test_images() -> Split:
    return load_dataset("fashion-mnist", LoadOptions(validation=0, max_samples=100)).test


def run_json(*arguments: object) -> Any:
    done = googlenet(*arguments, "--json")
    assert done.code == 0, done.err
    return done.json


def test_eager_and_folded_networks_agree(smoke_run: Path, test_images: Split) -> None:
    eager = load_predictor(str(smoke_run), task="classification")
    folded = load_predictor(str(smoke_run), "torch", 1, task="classification")
    assert eager.checkpoint and folded.checkpoint and eager.data == folded.data
    assert eager.data and (eager.data.max_samples, eager.data.split_seed) == (1000, 0)
    images = test_images.images[:5]
    expected = eager.predictor.predict(images)
    assert expected.dtype == torch.float32
    torch.testing.assert_close(folded.predictor.predict(images), expected, rtol=1e-4, atol=1e-4)
    # Floats are rounded for the engines only.
    assert torch.equal(folded.predictor.predict(images.float() + 0.3), folded.predictor.predict(images))
    assert not torch.equal(eager.predictor.predict(images.float() + 0.3), expected)


def test_an_exported_folder_knows_no_data(exported_folder: Path) -> None:
    model = load_predictor(str(exported_folder), "ncnn", 1)
    assert (model.checkpoint, model.data, model.task) == (None, None, "classification")
    assert model.predictor.min_size == 2 and model.stored_size == 16
    with pytest.raises(ValueError, match="exported for classification"):
        load_predictor(str(exported_folder), task="detection")


def test_usage_errors(smoke_run: Path) -> None:
    with pytest.raises(ValueError, match="--threads requires --engine"):
        load_predictor(str(smoke_run), threads=2)
    with pytest.raises(ValueError, match="unknown engine 'onnx'"):
        load_predictor(str(smoke_run), "onnx")
    with pytest.raises(ValueError, match="does not detect objects"):
        load_predictor(str(smoke_run), task="detection")


@pytest.mark.slow
def test_predict_and_evaluate_in_engines(
    exported_to_all: Path, smoke_run: Path, test_images: Split, tmp_path: Path, cache: Path
) -> None:
    """An exported folder and a run; the choice of ``auto`` is cached."""
    image = tmp_path / "image.png"
    Image.fromarray(test_images.images[0, 0].numpy()).save(image)
    (expected,) = run_json("predict", smoke_run, image)
    for path, engine in ((exported_to_all, "onnxruntime:float32"), (smoke_run, "torch"), (smoke_run, "onnxruntime")):
        (prediction,) = run_json("predict", path, image, "--engine", engine, "--threads", 1)
        assert [top["label"] for top in prediction["top"]] == [top["label"] for top in expected["top"]]
        np.testing.assert_allclose(
            [top["probability"] for top in prediction["top"]],
            [top["probability"] for top in expected["top"]],
            atol=0.02,
        )
    exact = run_json("evaluate", smoke_run, "--max-images", 200)
    data = ("--data", "fashion-mnist", "--max-images", 200)
    metrics = run_json("evaluate", exported_to_all, *data, "--threads", 1)  # auto
    assert abs(metrics["top1"] - exact["top1"]) < 0.05
    (cached,) = (cache / "googlenet" / "engines").iterdir()
    assert {"onnxruntime:int8", "openvino:int8", "openvino:float32", "ncnn:float32"} <= set(
        json.loads(cached.read_text())
    )


@pytest.mark.parametrize("engine", ["torch", "onnxruntime:float32", "openvino:float32", None])
def test_features_of_every_engine(
    engine: str | None, smoke_run: Path, exported_folder: Path, test_images: Split
) -> None:
    """The last feature map comes with the logits, which are its mean through the classifier."""
    checkpoint = load(smoke_run)
    path = exported_folder if engine and ":" in engine else smoke_run
    predictor = load_predictor(str(path), engine, 1 if engine else None, task="classification").predictor
    images = test_images.images[:3]
    images = torch.nn.functional.interpolate(images.float(), (16, 16)).round().to(torch.uint8)
    assert isinstance(predictor, FeaturePredictor) and predictor.head is not None
    logits, features = predictor.predict_with_features(images)
    torch.testing.assert_close(logits, predictor.predict(images), rtol=1e-5, atol=1e-5)
    with torch.inference_mode():
        expected = checkpoint.model.forward_features(checkpoint.preprocess.normalize(images.float()))
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-4)
    maps = maps_of_features(features, predictor.head, [2, 7])
    bias = checkpoint.model.classifier.bias[[2, 7]]
    torch.testing.assert_close(maps.mean((2, 3)) + bias, logits[:, [2, 7]], rtol=1e-4, atol=1e-4)


def test_a_server_predicts_like_the_command(exported_folder: Path, test_images: Split, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for path, pixels in zip(paths, test_images.images, strict=False):
        Image.fromarray(pixels[0].numpy()).resize((90, 70)).save(path)
    expected = run_json("predict", exported_folder, *paths, "--engine", "onnxruntime")
    with serve_in_thread(exported_folder, engine="onnxruntime") as url:
        files = [("image", path.read_bytes()) for path in paths]
        response = httpx.post(f"{url}/v1/predict", files=files, timeout=30).json()
    for image, other in zip(expected, response["images"], strict=True):
        assert [top["label"] for top in other["top"]] == [top["label"] for top in image["top"]]
        probabilities = [top["probability"] for top in image["top"]]
        assert [top["probability"] for top in other["top"]] == pytest.approx(probabilities, abs=1e-6)
