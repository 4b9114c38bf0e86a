"""Complete R-CNN runs: training, exact resume, evaluation and detection."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import googlenet
from googlenet.cli.main import main
from googlenet.config.schema import (
    DataConfig,
    DetectionConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    Recipe,
    RegionsConfig,
    SizeConfig,
)
from googlenet.detection.data.dataset import load_detection_dataset
from googlenet.detection.predict import detect
from googlenet.detection.rcnn.network import RCNN, RCNNDetector
from googlenet.detection.rcnn.task import RCNNTask
from googlenet.training.fit import fit

SAMPLES = Path(__file__).parents[2] / "docs" / "samples"
RECIPE = Recipe(
    task="detection",
    model=ModelConfig(name="googlenet_bn", width_mult=0.125, pool_mode="same", aux=True),
    data=DataConfig(source="scenes:train=12,test=4", val_split=0),
    size=SizeConfig(train=28),
    optimizer=OptimizerConfig(name="adamw", lr=0.003),
    loss=LossConfig(aux_weight=0.3),
    detection=DetectionConfig(head="rcnn", nms_iou=0.3),
    regions=RegionsConfig(ss_scale=100, multibox_width_mult=0.125),
    epochs=2,
    batch_size=4,
    checkpoint_every_minutes=1e-6,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(RECIPE, tmp_path_factory.mktemp("runs") / "rcnn", progress=False).run


@pytest.mark.slow
def test_metrics_and_report(run: Path) -> None:
    checkpoint = googlenet.load(run)
    assert isinstance(checkpoint.model, RCNN) and not checkpoint.model.training
    assert {"ap", "ap50", "recall"} <= checkpoint.metrics["test"].keys()
    assert "AP50" in (run / "report.html").read_text()


@pytest.mark.slow
def test_resumed_run_has_the_same_weights(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = RCNNTask.batch

    def failing_batch(self: RCNNTask, train: Any, preprocess: Any, spec: Any) -> Any:
        if spec.step == 4:
            raise RuntimeError("power cut")
        return batch(self, train, preprocess, spec)

    with monkeypatch.context() as patched:
        patched.setattr(RCNNTask, "batch", failing_batch)
        with pytest.raises(RuntimeError, match="power cut"):
            fit(RECIPE, tmp_path / "run", progress=False)
    fit(RECIPE, tmp_path / "run", resume=True, progress=False)
    expected, resumed = (load_file(folder / "model.safetensors") for folder in (run, tmp_path / "run"))
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(expected[key], resumed[key]) for key in expected)


@pytest.mark.slow
def test_loaded_run_detects(run: Path) -> None:
    checkpoint = googlenet.load(run)
    images = [sample.read(1) for sample in load_detection_dataset(RECIPE.data.source).test[:2]]
    single = detect(checkpoint.model, checkpoint.preprocess, images)
    ensemble = RCNNDetector.from_networks([checkpoint.model] * 2, checkpoint.preprocess).predict(images)
    for expected, actual in zip(single, ensemble, strict=True):
        assert torch.allclose(expected.boxes, actual.boxes, atol=1e-3) and torch.equal(expected.labels, actual.labels)


@pytest.mark.slow
def test_evaluate_averages_networks_and_detect_draws(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = googlenet.load(run).metrics["test"]
    assert main(["evaluate", str(run), "--ensemble", str(run), "--json"]) == 0
    ensemble = json.loads(capsys.readouterr().out)
    assert ensemble["networks"] == 2 and ensemble["ap50"] == pytest.approx(recorded["ap50"], abs=1e-4)
    image = str(next(SAMPLES.iterdir()))
    arguments = ["detect", str(run), image]
    assert main([*arguments, "--score-threshold", "0", "--out", str(tmp_path / "drawn"), "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["boxes"] and list((tmp_path / "drawn").iterdir())
    assert main([*arguments, "--sizes", "64"]) == 1
    assert "R-CNN has no test sizes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"regions": RegionsConfig(selective_search=False, multibox_width_mult=0)}, "needs proposals"),
        ({"precise_bn_batches": 0}, "does not support precise_bn_batches"),
        (
            {"size": SizeConfig(train=8), "model": ModelConfig(name="googlenet_bn", pool_mode="ceil")},
            "at least 31 pixels",
        ),
    ],
)
def test_invalid_recipes_fail_before_the_run_starts(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        fit(replace(RECIPE, **change), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_init_from_a_classifier_adds_a_background_class(smoke_run: Path, tmp_path: Path) -> None:
    model = ModelConfig(init_from=str(smoke_run))
    recipe = replace(
        RECIPE,
        model=model,
        size=SizeConfig(train=None),
        regions=RegionsConfig(ss_scale=100, multibox_width_mult=0),
        epochs=0.2,
    )
    checkpoint = googlenet.load(fit(recipe, tmp_path / "run", progress=False).run)
    assert checkpoint.model.backbone.num_classes == 11 and checkpoint.model.multibox is None
    assert len(checkpoint.classes) == 10 and checkpoint.preprocess.size == googlenet.load(smoke_run).preprocess.size
