"""Networks for any number of labels per image: thresholds, training, and every command that takes the run."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import googlenet as package
from conftest import SEED, BuildOnce, googlenet
from googlenet.evaluation.metrics import Predictions
from googlenet.evaluation.multilabel import choose_thresholds, multilabel_metrics
from googlenet.models.ensemble import average_logits

LABELS = ("dark", "left", "top")
SHORT = ["--batch-size", 16, "--image-size", 16, "--epochs", 6]
# The recipe's flips and shifts would change the labels.
LEARNING = (
    "--augment.flip none --augment.translate 0 --model.dropout 0 --epochs 12 --optimizer.name normalized_sgd"
    " --optimizer.lr 0.01"
).split()


def draw_images(folder: Path, count: int = 96) -> Path:
    """Draw squares whose position and brightness are labels, and list them; returns the table."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        dark, left, top = generator.random(3) < (0.5, 0.5, 0.25)
        pixels = generator.integers(0, 20, (16, 16)).astype(np.uint8) + (0 if dark else 120)
        x, y = (0 if left else 8), (0 if top else 8)
        pixels[y : y + 8, x : x + 8] += 100
        Image.fromarray(pixels).save(folder / f"{number}.png")
        names = [name for name, has in zip(LABELS, (dark, left, top), strict=True) if has]
        split = ("train", "train", "validation", "test")[number % 4]
        rows.append([f"{number}.png", ";".join(names), split, f"camera {number % 2}"])
    table = folder / "labels.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["path", "labels", "split", "camera"], *rows])
    return table


@pytest.fixture(scope="session")
def table(build_once: BuildOnce) -> Path:
    return build_once("label-table", lambda folder: draw_images(folder)) / "labels.csv"


@pytest.fixture(scope="session")
def label_run(build_once: BuildOnce, table: Path) -> Path:
    def build(folder: Path) -> None:
        done = googlenet(
            "train", "fashion-mnist-smoke", "--task", "multilabel", "--data", f"table:{table}", *SHORT, *LEARNING,
            "--seed", SEED, "--out", folder,
        )  # fmt: skip
        assert done.code == 0, done.err

    return build_once("label-run", build)


@settings(max_examples=5)
@given(st.integers(2, 25), st.integers(0, 999), st.booleans())
def test_thresholds_give_the_best_f1(count: int, seed: int, ties: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    logits = logits.round() if ties else logits
    targets = torch.rand(count, 2, generator=generator) < 0.4
    thresholds = choose_thresholds(Predictions(logits, targets), 2)
    for scores, target, threshold in zip(logits.sigmoid().T, targets.T, thresholds, strict=True):
        if target.all() or not target.any():
            assert threshold == 0.5
            continue

        def f1(limit: float, scores: torch.Tensor = scores, target: torch.Tensor = target) -> float:
            return sklearn.metrics.f1_score(target, scores >= limit, zero_division=0)

        assert f1(threshold) == pytest.approx(max(f1(score) for score in scores.tolist()))
        assert 0 <= threshold < 1
    assert choose_thresholds(None, 3) == (0.5, 0.5, 0.5)


def test_metrics_equal_those_of_scikit_learn() -> None:
    logits, targets = torch.randn(50, 4, dtype=torch.float64), torch.rand(50, 4) < 0.5
    metrics = multilabel_metrics(Predictions(logits, targets), (0.3, 0.5, 0.6, 0.9))
    scores = logits.sigmoid()
    predicted = scores >= torch.tensor([0.3, 0.5, 0.6, 0.9])
    assert metrics["map"] == pytest.approx(sklearn.metrics.average_precision_score(targets, scores), abs=1e-6)
    assert metrics["auroc"] == pytest.approx(sklearn.metrics.roc_auc_score(targets, scores), abs=1e-6)
    assert metrics["f1"] == pytest.approx(sklearn.metrics.f1_score(targets, predicted, average="macro"), abs=1e-6)
    micro = sklearn.metrics.f1_score(targets, predicted, average="micro")
    assert metrics["micro_f1"] == pytest.approx(micro, abs=1e-6)


def test_probabilities_of_labels_are_averaged() -> None:
    views = [torch.randn(5, 3, dtype=torch.float64) * 30 for _ in range(4)]
    mean = torch.stack([view.sigmoid() for view in views]).mean(0)
    # The log-odds of probabilities near 1 are rounded; the probabilities are not.
    assert torch.allclose(average_logits(views, multilabel=True).sigmoid(), mean, rtol=1e-12, atol=0)


def test_a_run_stores_thresholds_and_metrics(label_run: Path, table: Path) -> None:
    checkpoint = package.load(label_run)
    assert checkpoint.classes == LABELS
    assert len(checkpoint.thresholds) == 3
    done = googlenet("evaluate", label_run, "--json", "--group", "camera")
    assert done.code == 0, done.err
    document = done.json
    assert document["split"] == "test" and document["images"] == 24
    assert [row["threshold"] for row in document["per_class"].values()] == list(checkpoint.thresholds)
    assert document["map"] == pytest.approx(checkpoint.metrics["test"]["map"], abs=1e-6)
    assert document["f1"] == pytest.approx(checkpoint.metrics["test"]["f1"], abs=1e-6)
    assert {name: group["images"] for name, group in document["groups"].items()} == {"camera 1": 24}
    text = googlenet("evaluate", label_run, "--split", "train", "--group", "camera").out
    assert "camera camera 0: 24 images, mAP" in text and "thresholds: dark 0." in text and "micro" in text
    assert "Thresholds, chosen on the validation images: dark 0." in (label_run / "report.html").read_text()


@pytest.mark.accuracy
@pytest.mark.cpu
def test_the_network_has_learned(label_run: Path) -> None:
    """With five seeds the mean average precision is 0.947 to 1, on AVX-512 with bfloat16 and on AVX2."""
    metrics = package.load(label_run).metrics["test"]
    # A constant prediction has the mean of the labels' frequencies, about 0.4.
    assert metrics["map"] > 0.8


def test_predict_names_the_labels_above_their_thresholds(label_run: Path, table: Path) -> None:
    images = [table.parent / "0.png", table.parent / "1.png"]
    done = googlenet("predict", label_run, *images, "--json", "--tta-flip")
    assert done.code == 0, done.err
    checkpoint = package.load(label_run)
    thresholds = dict(zip(checkpoint.classes, checkpoint.thresholds, strict=True))
    for row in done.json:
        probabilities = {item["label"]: item["probability"] for item in row["top"]}
        assert set(row["labels"]) == {name for name, value in probabilities.items() if value >= thresholds[name]}
    line = googlenet("predict", label_run, images[0]).out.splitlines()[0]
    labels = googlenet("predict", label_run, images[0], "--json").json[0]["labels"]
    assert line.startswith(f"{images[0]}: {', '.join(labels) or 'no label'} (")


@pytest.mark.slow
def test_export_contains_the_thresholds(label_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "exported"
    done = googlenet("export", label_run, "--format", "onnx", "--out", out, "--json")
    assert done.code == 0, done.err
    checkpoint = package.load(label_run)
    manifest = json.loads((out / "model.json").read_text())
    assert tuple(manifest["output"]["thresholds"]) == checkpoint.thresholds
    assert manifest["accuracy"]["float32"]["map"] == pytest.approx(checkpoint.metrics["test"]["map"], abs=0.02)
    source = package.load(label_run).recipe.data.source
    exported = googlenet("evaluate", out, "--engine", "onnxruntime", "--data", source, "--json")
    assert exported.code == 0, exported.err
    run = googlenet("evaluate", label_run, "--json").json
    # Exported files take rounded pixels and sum in another order.
    assert exported.json["loss"] == pytest.approx(run["loss"], abs=1e-3)
    assert (
        "--softmax is for one label"
        in googlenet("export", label_run, "--format", "onnx", "--softmax", "--out", out).err
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("evaluate", "--sizes", "16,24"), "--sizes is for one label per image, and this network has several"),
        (("evaluate", "--crops", "1"), "--crops is for one label per image"),
        (("evaluate", "--calibrate"), "--calibrate is for one label per image"),
        (("evaluate", "--group", "camra"), "no column 'camra' (did you mean camera?)"),
        (
            ("evaluate", "--data", "fashion-mnist"),
            "a data source for task: classification; for multilabel use table:FILE",
        ),
        (("explain", "--methods", "branches", "--out", "explained"), "--methods branches needs one label"),
    ],
)
def test_what_needs_one_label_is_refused(label_run: Path, flags: tuple[str, ...], message: str, tmp_path: Path) -> None:
    command, *rest = flags
    done = googlenet(command, label_run, *rest, cwd=tmp_path)
    assert done.code in (1, 2)
    assert message in done.err.splitlines()[-1]
    assert len(done.err.replace("12 of 96 images have no label\n", "").splitlines()) == 1


def test_explanations_show_probabilities_of_labels(label_run: Path, table: Path, tmp_path: Path) -> None:
    done = googlenet(
        "explain", label_run, table.parent / "0.png", "--methods", "cam", "--out", tmp_path / "x", "--json"
    )
    assert done.code == 0, done.err
    shown = {row["label"]: row["probability"] for row in done.json["cam"][0]["classes"]}
    predicted = googlenet("predict", label_run, table.parent / "0.png", "--json").json[0]["top"]
    assert shown == pytest.approx({item["label"]: item["probability"] for item in predicted}, abs=1e-6)


def test_json_lines_and_rows_without_labels(tmp_path: Path) -> None:
    draw_images(tmp_path, 8)
    lines = [{"path": f"{n}.png", "labels": [["a"], ["a", "b"], [], ["b"]][n % 4]} for n in range(8)]
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, lines)))
    from googlenet.data.sources import LoadOptions, load_dataset

    data = load_dataset(f"table:{tmp_path / 'labels.jsonl'}", LoadOptions(validation=0.25, size=16), "multilabel")
    assert data.classes == ("a", "b")
    assert (len(data.train), len(data.validation)) == (6, 2)
    assert torch.cat((data.train.labels, data.validation.labels)).sum(0).tolist() == [4, 4]
    assert "2 of 8 images have no label" in data.accounting.notes


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["0.png,a", "1.png,a"], "needs at least two different labels in column 'labels'; found 1"),
        (["0.png,a|b", "x.png,c"], "needs at least two"),
    ],
)
def test_bad_tables_are_one_line(rows: list[str], message: str, tmp_path: Path) -> None:
    draw_images(tmp_path, 2)
    rows = rows if "c" not in rows[1] else ["x.png,a|b", "y.png,c"]
    (tmp_path / "bad.csv").write_text("\n".join(["path,labels", *rows]) + "\n")
    done = googlenet("train", "fashion-mnist-smoke", "--task", "multilabel", "--data", f"table:{tmp_path}/bad.csv",
                     "--out", tmp_path / "run")  # fmt: skip
    assert done.code == 1 and message in done.err and done.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_folds_of_several_labels(table: Path, tmp_path: Path) -> None:
    """With groups; the thresholds of the ensemble are chosen on all out-of-fold predictions."""
    out = tmp_path / "folds"
    done = googlenet(
        "ensemble", "train", "fashion-mnist-smoke", "--task", "multilabel", "--data", f"table:{table}", *SHORT,
        "--folds", 2, "--group", "camera", "--data.sampling", "balanced", "--loss.name", "asymmetric", "--out", out,
        "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    rows = pq.read_table(out / "out-of-fold.parquet").to_pydict()
    assert len(rows["image"]) == 72, "training and validation images"
    targets = torch.tensor([[name in labels for name in LABELS] for labels in rows["label"]])
    # In double precision, as in the file: in float32, probabilities near 1 would be equal.
    scores = torch.tensor([rows[f"p_{name}"] for name in LABELS], dtype=torch.float64).T
    pooled = done.json["metrics"]["out_of_fold"]
    expected = sklearn.metrics.average_precision_score(targets, scores)
    assert pooled["map"] == pytest.approx(expected, abs=1e-6)
    checkpoint = package.load(out)
    thresholds = choose_thresholds(Predictions(scores.logit(), targets), 3)
    # The logits of probabilities near 1 keep six digits or fewer.
    assert checkpoint.thresholds == pytest.approx(thresholds, abs=1e-6)
    (row,) = googlenet("predict", out, table.parent / "0.png", "--json").json
    assert set(row["labels"]) <= set(LABELS)
    assert done.json["metrics"]["test"]["images"] == 24
