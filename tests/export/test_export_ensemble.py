"""Ensembles in one file."""

from pathlib import Path

import pytest
import torch

import googlenet
from googlenet.checkpoint.format import Checkpoint
from googlenet.config.schema import ModelConfig, Recipe
from googlenet.data.dataset import Split
from googlenet.data.preprocess import Preprocess
from googlenet.errors import FailedError
from googlenet.export.engine import open_exported
from googlenet.export.exporter import ExportData, ExportOptions, QuantizationConfig, export
from googlenet.export.quantize import layer_of, quantizable_layers
from googlenet.models.ensemble import Ensemble
from googlenet.models.folding import fold

CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def ensemble() -> Checkpoint:
    networks = [
        googlenet.create("googlenet_bn", 3, 1, pool_mode="same", width_mult=0.125 * (1 + seed), seed=seed)
        for seed in range(2)
    ]
    recipe = Recipe(model=ModelConfig(name="googlenet_bn"))
    return Checkpoint(Ensemble(networks).eval(), Preprocess(24, 1, (0.3,), (0.4,)), CLASSES, recipe, {})


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (30, 1, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_the_folded_ensemble_averages_its_members(ensemble: Checkpoint, pixels: torch.Tensor) -> None:
    with torch.inference_mode():
        members = [network(ensemble.preprocess(pixels, 24)).softmax(1) for network in ensemble.model.networks]
        probabilities = fold(ensemble.model, ensemble.preprocess)(pixels).exp()
    torch.testing.assert_close(probabilities, torch.stack(members).mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_files_and_int8(ensemble: Checkpoint, pixels: torch.Tensor, tmp_path: Path) -> None:
    # The network's own predictions as labels, so that int8 has accuracy to lose.
    with torch.inference_mode():
        labels = ensemble.model(ensemble.preprocess(pixels, 24)).argmax(1)
    split = Split(pixels, labels, [str(i) for i in range(30)])
    data = ExportData(pixels[:4], split, "noise", split)
    options = ExportOptions(int8=QuantizationConfig(max_accuracy_drop=0.9, calibration_images=10), threads=1)
    result = export(ensemble, data, tmp_path / "out", ["onnx"], options)
    assert result.max_error < 1e-4
    assert result.top1 == 1.0
    float32 = open_exported(tmp_path / "out", "onnxruntime:float32", 1).predict(pixels)
    assert torch.equal(float32.argmax(1), labels)
    int8 = open_exported(tmp_path / "out", "onnxruntime:int8", 1).predict(pixels)
    assert (int8.exp() - float32.exp()).abs().max() < 0.2


def test_layer_names_are_those_of_the_files(ensemble: Checkpoint) -> None:
    names = dict(fold(ensemble.model, ensemble.preprocess, merge=False).named_parameters())
    assert {layer_of(name) for name in names} == set(quantizable_layers(ensemble.model))


def test_ncnn_holds_one_network(ensemble: Checkpoint, pixels: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(FailedError, match="export a member"):
        export(ensemble, ExportData(pixels[:1]), tmp_path / "out", ["ncnn"])
    assert not list(tmp_path.iterdir())
