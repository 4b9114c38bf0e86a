"""What cannot be predicted or evaluated is refused in one line."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import googlenet
from googlenet.checkpoint.format import write_checkpoint
from googlenet.cli import main
from googlenet.config.schema import ModelConfig, Recipe
from googlenet.evaluation.metrics import Predictions
from googlenet.evaluation.predictor import NetworkPredictor
from googlenet.evaluation.report_metrics import full_report
from googlenet.inference.loading import LoadedModel
from googlenet.serving.metrics import Metrics
from googlenet.serving.repository import ModelRepository


@pytest.fixture
def checkpoint() -> googlenet.Checkpoint:
    model = googlenet.create("googlenet_d2l", 2, 1, width_mult=0.25).eval()
    recipe = Recipe(model=ModelConfig(name="googlenet_d2l", width_mult=0.25))
    return googlenet.Checkpoint(model, googlenet.Preprocess(32, 1, (0.5,), (0.5,)), ("a", "b"), recipe, {})


@pytest.mark.parametrize("flags", [["--precise-bn", "5"], ["--sizes", "24,32"], ["--crops", "1"]])
def test_exported_folders_have_one_size_and_fixed_statistics(
    flags: list[str],
    checkpoint: googlenet.Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before the images are loaded."""
    predictor = NetworkPredictor(checkpoint.model, checkpoint.preprocess, checkpoint.classes)
    exported = LoadedModel(predictor, "classification")
    monkeypatch.setattr("googlenet.inference.loading.load_predictor", lambda *_, **__: exported)
    assert main.main(["evaluate", "exported", "--data", "folder:missing", *flags]) == 1
    error = capsys.readouterr().err
    assert "--precise-bn name the run" in error
    assert error.count("\n") == 1
    assert main.main(["evaluate", "exported"]) == 1
    assert "choose one with --data" in capsys.readouterr().err


@pytest.mark.parametrize("value", [3e38, -3e38])
def test_outputs_that_are_not_finite(
    value: float, checkpoint: googlenet.Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights are finite, the sums are not."""
    with torch.no_grad():
        checkpoint.model.classifier.weight.fill_(value)
        for parameter in checkpoint.model.trunk.parameters():
            parameter.mul_(50)
    path = tmp_path / "huge.safetensors"
    write_checkpoint(path, checkpoint)
    for name in ("a.png", "b.png"):
        Image.new("L", (40, 40), 200).save(tmp_path / name)
    for flags in ([], ["--json"], ["--json", "--sizes", "32,40"]):
        assert main.main(["predict", str(path), str(tmp_path / "a.png"), str(tmp_path / "b.png"), *flags]) == 1
        out, error = capsys.readouterr()
        assert "a.png: the network's output is not finite" in error
        assert out == ""
    loaded = LoadedModel.of(NetworkPredictor(checkpoint.model, checkpoint.preprocess, checkpoint.classes), checkpoint)
    with pytest.raises(ValueError, match="first: the network's output is not finite"):
        ModelRepository({"first": str(path)}, lambda _: loaded, Metrics())
    with pytest.raises(ValueError, match="output is not finite"):
        full_report(Predictions(torch.tensor([[value, float("inf")]]), torch.tensor([0])), ("a", "b"))
    finite = full_report(Predictions(torch.tensor([[1.0, 2.0], [3.0, 1.0]]), torch.tensor([1, 0])), ("a", "b"))
    assert json.loads(json.dumps(finite, allow_nan=False))["top1"] == 1.0
