"""``googlenet evaluate`` against scikit-learn, SciPy and torchmetrics, and the display of its progress."""

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
from googlenet.cli.main import main
from googlenet.data.sources import LoadOptions, load_dataset
from googlenet.evaluation import progress
from googlenet.evaluation.progress import ProgressDisplay


def predict(run: Path, split: str, max_images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits and labels of a split, computed by the network alone."""
    checkpoint = package.load(run)
    options = LoadOptions(validation=5000, max_samples=max_images)
    data = getattr(load_dataset("fashion-mnist", options), split)
    with torch.no_grad():
        return checkpoint.network(checkpoint.preprocess(data.images)).double(), data.labels


def calibration_error(probabilities: torch.Tensor, labels: torch.Tensor) -> float:
    return float(reference.calibration_error(probabilities, labels, task="multiclass", num_classes=10, n_bins=15))


def test_metrics_and_calibration(smoke_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--max-images", "400", "--calibrate", "--out", str(tmp_path)]
    assert main(["evaluate", str(smoke_run), *flags, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    logits, labels = predict(smoke_run, "test", 400)
    predicted = logits.argmax(1)
    assert document["top1"] == sklearn.metrics.accuracy_score(labels, predicted)
    assert document["confusion"] == sklearn.metrics.confusion_matrix(labels, predicted, labels=range(10)).tolist()
    test = scipy.stats.binomtest(int((predicted == labels).sum()), 400)
    assert document["interval"] == pytest.approx(list(test.proportion_ci(method="wilson")))
    assert document["ece"] == pytest.approx(calibration_error(logits.softmax(1), labels), abs=1e-6)
    assert len(document["per_class"]) == 10
    matthews = sklearn.metrics.matthews_corrcoef(labels, predicted)
    assert document["matthews_correlation"] == pytest.approx(matthews, abs=1e-6)
    recalls = sklearn.metrics.recall_score(labels, predicted, average=None)
    rows = list(document["per_class"].values())
    assert [row["recall"] for row in rows] == pytest.approx(recalls, abs=1e-6)
    assert sum(row["images"] for row in rows) == sum(row["predicted"] for row in rows) == 400
    auroc = sklearn.metrics.roc_auc_score(labels, logits.softmax(1), multi_class="ovr")
    assert document["averages"]["macro"]["auroc"] == pytest.approx(auroc, abs=1e-6)
    low, high = document["averages"]["macro"]["intervals"]["auroc"]
    assert low < auroc < high

    calibration = document["calibration"]
    val_logits, val_labels = predict(smoke_run, "validation", 400)
    best = scipy.optimize.minimize_scalar(
        lambda t: F.cross_entropy(val_logits / t, val_labels).item(), bounds=(0.05, 20), method="bounded"
    )
    temperature = calibration["temperature"]
    assert temperature == pytest.approx(best.x, rel=1e-3)
    assert calibration["validation_images"] == 400
    assert calibration["ece"] == document["ece"]
    assert calibration["loss"] == document["loss"]
    expected = calibration_error((logits / temperature).softmax(1), labels)
    assert calibration["ece_after"] == pytest.approx(expected, abs=1e-6)
    assert calibration["loss_after"] == pytest.approx(F.cross_entropy(logits / temperature, labels).item())
    for bins in (calibration["bins"], calibration["bins_after"]):
        assert sum(row["num_images"] for row in bins) == 400
    assert Path(calibration["plot"]).parent == tmp_path
    # The diagram has bars in the color of the palette.
    pixels = np.asarray(Image.open(calibration["plot"]).convert("RGB"))
    assert pixels.shape[1] > 900
    assert (pixels == (0x00, 0x72, 0xB2)).all(-1).sum() > 5000

    assert main(["evaluate", str(smoke_run), *flags]) == 0
    output = capsys.readouterr()
    assert f"temperature {temperature:.4f}, fitted on 400 validation images" in output.out
    assert "95 % interval of top-1" in output.out
    assert "balanced accuracy 0." in output.out and "specificity" in output.out
    assert output.err == "", "short computations print no progress without a terminal"


def test_progress_without_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "LOG_INTERVAL_S", 0.0)
    clock = iter(range(100))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    with ProgressDisplay(total=40) as display:
        display.describe("test")
        display.advance(10)
        display.advance(30)
    output = capsys.readouterr()
    # A quarter took one tick of the clock, so the rest takes three.
    assert output.err.splitlines() == ["test: 25%, 3 s left", "test: 100%, 0 s left"]
    assert output.out == ""
