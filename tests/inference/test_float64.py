"""Predictions on a device without float64 (MPS): everything in float64 is computed on the CPU."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import googlenet as package
from conftest import googlenet
from fake_device import DEVICE, WithoutFloat64, fake_device
from googlenet.checkpoint.load import load
from googlenet.data.preprocess import Preprocess
from googlenet.evaluation.calibration import calibrate
from googlenet.evaluation.metrics import Predictions, run_inference
from googlenet.explain import ANALYSES
from googlenet.models.ensemble import Ensemble


def test_the_device_has_no_float64() -> None:
    with WithoutFloat64():
        x = torch.ones(3, device=DEVICE)
        for convert in (
            lambda: x.double(),
            lambda: x.to(torch.float64),
            lambda: torch.zeros(2, dtype=torch.float64, device=DEVICE),
            lambda: x.sum(dtype=torch.float64),
            lambda: torch.ones(2, dtype=torch.float64).to(DEVICE),
        ):
            with pytest.raises(TypeError, match="float64"):
                convert()
        assert x.cpu().double().dtype == torch.float64


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        "--tta-flip",
        "--tta-shift 2 --tta-flip",
        "--sizes 16,20",
        "--size 20 --calibrate --split test",
        pytest.param("--sizes 16,20 --tta-shift 1 --calibrate --split test", marks=pytest.mark.slow),
        "--crops 1,10",
        "--crops 144 --max-images 4",
        "--ensemble RUN",
        "--ensemble RUN --crops 10",
        "--precise-bn 2",
    ],
)
def test_evaluate(arguments: str, smoke_run: Path, tmp_path: Path) -> None:
    shutil.copytree(smoke_run, tmp_path / "run")
    words = arguments.replace("RUN", str(smoke_run)).split()
    with fake_device() as device:
        done = googlenet("evaluate", tmp_path / "run", "--max-images", 40, *words, "--json")
    assert done.code == 0, done.err
    assert device.copies, "the device computed something"
    assert 0 <= done.json["top1"] <= 1


@pytest.mark.parametrize("arguments", ["", "--tta-flip", "--tta-shift 3", "--sizes 16,24 --tta-flip"])
def test_predict(arguments: str, smoke_run: Path, tmp_path: Path) -> None:
    for number in range(3):
        Image.new("L", (30, 20 + number), 80 * number).save(tmp_path / f"{number}.png")
    with fake_device() as device:
        done = googlenet("predict", smoke_run, tmp_path, *arguments.split(), "--json")
    assert done.code == 0, done.err
    assert device.copies, "the device computed something"
    assert len(done.json) == 3


FAST_ANALYSES = ("cam",)


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in FAST_ANALYSES))
        for name in ANALYSES
        if name != "gradients"
    ],
)
def test_explain(method: str, smoke_run: Path, tmp_path: Path) -> None:
    Image.new("L", (30, 20), 80).save(tmp_path / "image.png")
    with fake_device() as device:
        arguments = ["--methods", method, "--max-images", 60, "--out", tmp_path / "out", "--json"]
        done = googlenet("explain", smoke_run, tmp_path / "image.png", *arguments)
    assert done.code == 0, done.err
    assert device.copies, "the device computed something"


@pytest.mark.parametrize(
    "name", ["googlenet_bn", "googlenet", pytest.param("inception_resnet_v2", marks=pytest.mark.slow)]
)
def test_fold(name: str) -> None:
    preprocess = Preprocess(224, 3, (0.4,) * 3, (0.2,) * 3)
    model = package.create_model(name, 4, 3).eval()
    with WithoutFloat64():
        for network in (model.to(DEVICE), Ensemble([model.to(DEVICE)] * 2)):
            folded = package.fold(network, preprocess)
            assert {tensor.device for tensor in folded.state_dict().values()} == {DEVICE}


def test_ensemble_and_calibration(smoke_run: Path) -> None:
    with WithoutFloat64():
        network: Any = load(smoke_run).network.to(DEVICE)
        batches = [(torch.rand(5, 1, 16, 16), torch.arange(5)) for _ in range(2)]
        predictions = run_inference(Ensemble([network, network]), batches, DEVICE)
        assert isinstance(predictions, Predictions) and predictions.logits.device.type == "cpu"
        assert 0.05 <= calibrate(predictions, predictions).temperature <= 20
