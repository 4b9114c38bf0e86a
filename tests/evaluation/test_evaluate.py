"""``googlenet evaluate``: its figures against scikit-learn, scipy and torchmetrics on the run's own answers."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import sklearn.metrics
import torch
import torchmetrics.functional as reference
from PIL import Image
from torch.nn import functional as F

import googlenet as package
from googlenet.cli import main
from googlenet.data.sources import load_dataset
from googlenet.evaluation import progress
from googlenet.evaluation.progress import Progress, counted


def logits_of(run: Path, part: str, limit: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The run's answers and the labels, straight through the network."""
    kept = package.load(run)
    split = getattr(load_dataset("fashion-mnist", validation=5000, limit=limit), part)
    with torch.no_grad():
        return kept.network(kept.preprocess(split.images)).double(), split.labels


def error(probabilities: torch.Tensor, labels: torch.Tensor) -> float:
    return float(reference.calibration_error(probabilities, labels, task="multiclass", num_classes=10, n_bins=15))


def test_every_figure_and_the_calibration(
    smoke_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--limit", "400", "--calibrate", "--out", str(tmp_path)]
    assert main(["evaluate", str(smoke_run), *flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    logits, labels = logits_of(smoke_run, "test", 400)
    answers = logits.argmax(1)
    assert found["top1"] == sklearn.metrics.accuracy_score(labels, answers)
    assert found["confusion"] == sklearn.metrics.confusion_matrix(labels, answers, labels=range(10)).tolist()
    ends = scipy.stats.binom.ppf([0.025, 0.975], 400, found["top1"]) / 400
    assert found["interval"] == pytest.approx(ends, abs=2.1 / 400)
    assert found["ece"] == pytest.approx(error(logits.softmax(1), labels), abs=1e-6)
    assert len(found["per_class"]) == 10

    fitted = found["calibration"]
    held, truth = logits_of(smoke_run, "validation", 400)
    best = scipy.optimize.minimize_scalar(
        lambda t: F.cross_entropy(held / t, truth).item(), bounds=(0.05, 20), method="bounded"
    )
    assert fitted["temperature"] == pytest.approx(best.x, rel=1e-3)
    assert fitted["fitted_to"] == 400
    assert fitted["ece"] == found["ece"] and fitted["loss"] == found["loss"]
    assert fitted["ece_after"] == pytest.approx(error((logits / fitted["temperature"]).softmax(1), labels), abs=1e-6)
    assert fitted["loss_after"] == pytest.approx(F.cross_entropy(logits / fitted["temperature"], labels).item())
    for bins in (fitted["bins"], fitted["bins_after"]):
        assert sum(row["answers"] for row in bins) == 400
    assert Path(fitted["plot"]).parent == tmp_path
    # The diagram is drawn, in its colours.
    pixels = np.asarray(Image.open(fitted["plot"]).convert("RGB"))
    assert pixels.shape[1] > 900 and (pixels == (0x00, 0x72, 0xB2)).all(-1).sum() > 5000

    assert main(["evaluate", str(smoke_run), *flags]) == 0
    said = capsys.readouterr()
    assert f"temperature {fitted['temperature']:.4f}, fitted to 400 validation pictures" in said.out
    assert "95 % interval of top-1" in said.out
    assert said.err == "", "a short work is quiet where nobody watches"


def test_progress_says_how_long_it_takes_yet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    clock = iter(range(100))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    with Progress(total=40) as shown:
        shown.at("test")
        batches = [("pixels", torch.zeros(5)), ("pixels", torch.zeros(15))]
        assert list(counted(iter(batches), shown.advance, each=2.0)) == batches
    captured = capsys.readouterr()
    # Ten of forty in one tick of the clock, so thirty in three.
    assert captured.err.splitlines()[0] == "test: 25%, 3 s left"
    assert captured.err.splitlines()[-1] == "test: 100%, 0 s left"
    assert captured.out == ""
