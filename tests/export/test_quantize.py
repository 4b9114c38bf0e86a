"""Quantization within an allowed loss of accuracy."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import googlenet as package
from googlenet.data.dataset import LoadOptions
from googlenet.data.preprocess import Preprocess
from googlenet.data.sources import load_dataset
from googlenet.errors import FailedError
from googlenet.evaluation.predictor import Predictor
from googlenet.export.backends import BACKENDS
from googlenet.export.engine import open_exported
from googlenet.export.quantize import CalibrationData, Quantizer, quantize, select_calibration_data


class FixedPredictor:
    """Returns the row of `logits` that the first pixel of each image names."""

    name, classes, min_size, preprocess = "fixed", ("a",), 1, Preprocess(1, 1, (0.0,), (1.0,))

    def __init__(self, logits: torch.Tensor):
        self.logits = logits

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits[images[:, 0, 0, 0].long()]


def test_the_most_sensitive_layers_stay_in_float32(tmp_path: Path) -> None:
    """Each int8 layer adds a known amount of noise to the logits of ten classes and a hundred images."""
    noise = {"conv1": 0.0, "inception_3a": 3.0, "inception_4a": 0.5, "inception_5b": 2.0, "classifier": 1.0}
    labels = torch.arange(100) % 10
    exact = torch.nn.functional.one_hot(labels, 10).float()
    # Ten images each have a margin of 1, 2, ..., 10: noise above the margin makes the prediction wrong.
    exact *= 1 + (torch.arange(100) // 10).float().unsqueeze(1)
    written: list[list[str]] = []

    def write(float_layers: Sequence[str]) -> list[str]:
        written.append(list(float_layers))
        return [f"without {','.join(float_layers)}"]

    def open_files(files: Sequence[str]) -> Predictor:
        if not files:
            return FixedPredictor(exact)
        float_layers = files[0].removeprefix("without ").split(",")
        total = sum(value for layer, value in noise.items() if layer not in float_layers)
        return FixedPredictor(exact + total * torch.nn.functional.one_hot((labels + 1) % 10, 10))

    quantizer = Quantizer("onnxruntime", write, open_files)
    rows = torch.arange(100).view(-1, 1, 1, 1)
    data = CalibrationData(rows[:5], rows, labels)
    # All int8: noise 6.5, so margins 1 to 6 are wrong: 0.6. Without 3a it is 3.5, without 5b too 1.5: 0.1.
    result = quantize(quantizer, data, list(noise), 0.14)
    assert (result.float_layers, result.validation_drop) == (["inception_3a", "inception_5b"], pytest.approx(0.1))
    assert written[0] == [] and written[-1] == ["inception_3a", "inception_5b"]
    assert sorted(written[1:6]) == sorted([layer] for layer in noise), "each is measured alone, once"
    # Three quarters of the allowed loss: 0.1 is within 0.14, but not within 0.13.
    assert quantize(quantizer, data, list(noise), 0.13).float_layers[2:] == ["classifier"]


def test_int8_that_loses_too_much_is_refused(exported_folder: Path, smoke_run: Path, tmp_path: Path) -> None:
    train = load_dataset("fashion-mnist", LoadOptions(validation=0, max_samples=60)).train
    data = select_calibration_data(train, package.load(smoke_run).preprocess, 20)
    assert len(data.calibration_images) == 20 and len(data.validation_images) == 40
    work = tmp_path / "lossy"
    shutil.copytree(exported_folder, work)
    quantizer = Quantizer(
        "onnxruntime",
        lambda layers: BACKENDS["onnx"].module.quantize(work, torch.split(data.calibration_images, 1), layers),
        lambda files: open_exported(exported_folder, f"onnxruntime:{'int8' if files else 'float32'}", 1),
    )
    with pytest.raises(FailedError, match="1 of 1 layers in float32"):
        quantize(quantizer, data, ["classifier"], -2.0)
