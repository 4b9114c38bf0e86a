"""Whole runs of R-CNN: trained by the one loop, resumed exactly, loaded and used."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import googlenet
from googlenet.cli import main
from googlenet.detection.predict import detect
from googlenet.detection.rcnn import RegionDetector, RegionNetwork
from googlenet.detection.region_task import RegionFinding
from googlenet.detection.sources import load_detection
from googlenet.training.loop import fit
from googlenet.training.recipe import Data, Detection, Loss, Model, Optimiser, Recipe, Regions, Size

SAMPLES = Path(__file__).parents[2] / "docs" / "samples"
RECIPE = Recipe(
    task="detection",
    model=Model(name="googlenet_bn", width=0.125, pools="padded", aux=True),
    data=Data(source="scenes:train=12,test=4", validation=0),
    size=Size(train=28),
    optimiser=Optimiser(name="adamw", lr=0.003),
    loss=Loss(aux_weight=0.3),
    detection=Detection(head="rcnn", overlap=0.3),
    regions=Regions(superpixel=100, multibox=0.125),
    epochs=2,
    batch_size=4,
    checkpoint_minutes=1e-6,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(RECIPE, tmp_path_factory.mktemp("runs") / "rcnn", progress=False).run


def test_figures_and_page(run: Path) -> None:
    checkpoint = googlenet.load(run)
    assert isinstance(checkpoint.model, RegionNetwork) and not checkpoint.model.training
    assert {"ap", "ap50", "recall"} <= checkpoint.metrics["test"].keys()
    assert "AP50" in (run / "report.html").read_text()


def test_a_run_that_broke_off_goes_on_to_the_same_weights(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = RegionFinding.batch

    def breaks(self: RegionFinding, train: Any, preprocess: Any, recipe: Recipe, part: Any) -> Any:
        if part.step == 4:
            raise RuntimeError("power cut")
        return whole(self, train, preprocess, recipe, part)

    with monkeypatch.context() as patched:
        patched.setattr(RegionFinding, "batch", breaks)
        with pytest.raises(RuntimeError, match="power cut"):
            fit(RECIPE, tmp_path / "run", progress=False)
    fit(RECIPE, tmp_path / "run", resume=True, progress=False)
    left, right = (load_file(place / "model.safetensors") for place in (run, tmp_path / "run"))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_a_loaded_run_detects(run: Path) -> None:
    checkpoint = googlenet.load(run)
    pictures = [picture.read(1) for picture in load_detection(RECIPE.data.source).test[:2]]
    found = detect(checkpoint.model, checkpoint.preprocess, pictures)
    again = RegionDetector.of([checkpoint.model] * 2, checkpoint.preprocess)(pictures)
    for one, other in zip(found, again, strict=True):
        assert torch.allclose(one.boxes, other.boxes, atol=1e-3) and torch.equal(one.labels, other.labels)


def test_the_command_line_takes_it_and_averages_several(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = googlenet.load(run).metrics["test"]
    assert main(["evaluate", str(run), "--with", str(run), "--json"]) == 0
    both = json.loads(capsys.readouterr().out)
    assert both["networks"] == 2 and both["ap50"] == pytest.approx(recorded["ap50"], abs=1e-4)
    garment = str(next(SAMPLES.iterdir()))
    assert main(["detect", str(run), garment, "--score", "0", "--out", str(tmp_path / "drawn"), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["boxes"] and list((tmp_path / "drawn").iterdir())
    assert main(["detect", str(run), garment, "--sizes", "64"]) == 1
    assert "ask no sizes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"regions": Regions(search=False, multibox=0)}, "needs proposals"),
        ({"reestimate_norm": 0}, "not for R-CNN"),
        ({"size": Size(train=8), "model": Model(name="googlenet_bn", pools="ceil")}, "31 pixels at least"),
    ],
)
def test_what_does_not_fit_is_told_first(change: dict[str, Any], line: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=line):
        fit(replace(RECIPE, **change), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_starts_from_a_classifier_with_a_background(smoke_run: Path, tmp_path: Path) -> None:
    model = Model(weights=str(smoke_run))
    recipe = replace(
        RECIPE, model=model, size=Size(train=None), regions=Regions(superpixel=100, multibox=0), epochs=0.2
    )
    started = googlenet.load(fit(recipe, tmp_path / "run", progress=False).run)
    assert started.model.backbone.num_classes == 11 and started.model.multibox is None
    assert len(started.classes) == 10 and started.preprocess.size == googlenet.load(smoke_run).preprocess.size
