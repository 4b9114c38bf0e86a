"""``googlenet ensemble train --folds``: every image is predicted once, by the network that was not trained on it."""

import statistics
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import sklearn.metrics
import torch

import googlenet as package
from conftest import BuildOnce, googlenet
from googlenet.checkpoint.format import read_run
from googlenet.config.parse import read_recipe
from googlenet.data.dataset import LoadOptions
from googlenet.data.sources import load_dataset
from googlenet.inference.datasets import load_eval_dataset
from googlenet.inference.loading import load_predictor
from googlenet.training.cross_validation import fold_recipes, mean_and_deviation

FLAGS = ["--data.max_samples", "60", "--batch-size", "20", "--epochs", "1"]


@pytest.fixture(scope="session")
def folds(build_once: BuildOnce) -> Path:
    def build(folder: Path) -> None:
        done = googlenet("ensemble", "train", "fashion-mnist-smoke", "--folds", 3, *FLAGS, "--out", folder, "--json")
        assert done.code == 0, done.err

    return build_once("folds", build)


@pytest.mark.slow
def test_every_image_is_predicted_by_the_network_that_has_not_seen_it(folds: Path) -> None:
    table = pq.read_table(folds / "out-of-fold.parquet").to_pydict()
    options = LoadOptions(validation=5000, max_samples=60, num_folds=3)
    pool = load_dataset("fashion-mnist", options)
    assert table["image"] == list(pool.train.names) and table["repeat"] == [0] * 60
    for fold in range(3):
        member = read_run(folds / f"member-{fold + 1}")
        assert member.recipe.data.fold == fold
        rows = [row for row, number in enumerate(table["fold"]) if number == fold]
        assert len(rows) == 20
        images = pool.train.select(torch.tensor(rows))
        with torch.no_grad():
            probabilities = member.network(member.preprocess(images.images)).double().softmax(1)
        assert [table["label"][row] for row in rows] == [pool.classes[label] for label in images.labels.tolist()]
        for name, column in zip(pool.classes, probabilities.T, strict=True):
            # Batches of another size are summed in another order.
            assert [table[f"p_{name}"][row] for row in rows] == pytest.approx(column.tolist(), abs=1e-5)
        # The network's own run measured the same images.
        accuracy = sum(table["label"][row] == table["predicted"][row] for row in rows) / len(rows)
        assert member.metrics["validation"]["top1"] == pytest.approx(accuracy)


@pytest.mark.slow
def test_the_summary(folds: Path) -> None:
    done = googlenet("ensemble", "train", "--resume", folds, "--json")  # finished: nothing is trained again
    assert done.code == 0, done.err
    document, table = done.json, pq.read_table(folds / "out-of-fold.parquet").to_pydict()
    values = [row["top1"] for row in document["folds"]]
    assert document["mean"]["top1"] == pytest.approx(statistics.fmean(values))
    assert document["sd"]["top1"] == pytest.approx(statistics.stdev(values))
    pooled = document["metrics"]["out_of_fold"]
    assert pooled["images"] == 60
    assert pooled["top1"] == sklearn.metrics.accuracy_score(table["label"], table["predicted"])
    assert pooled["balanced_accuracy"] == pytest.approx(
        sklearn.metrics.balanced_accuracy_score(table["label"], table["predicted"]), abs=1e-6
    )
    assert document["metrics"]["test"]["images"] == 60
    lines = googlenet("ensemble", "train", "--resume", folds).out.splitlines()
    assert lines[0].split()[:2] == ["images", "top-1"]
    assert [line.split()[0] for line in lines[1:6]] == ["member-1", "member-2", "member-3", "mean", "sd"]


@pytest.mark.slow
def test_the_folds_are_an_ensemble(folds: Path) -> None:
    checkpoint = package.load(folds)
    assert len(checkpoint.model.networks) == 3
    assert checkpoint.recipe.data.fold is None, "no image is held out of all networks"
    done = googlenet("evaluate", folds, "--json")
    assert done.code == 0, done.err
    assert (done.json["split"], done.json["images"]) == ("test", 60)
    assert done.json["top1"] == checkpoint.metrics["test"]["top1"]
    assert googlenet("evaluate", folds, "--split", "validation").code == 1
    member = googlenet("evaluate", folds / "member-2", "--split", "validation", "--json")
    assert member.json["images"] == 20
    table = pq.read_table(folds / "out-of-fold.parquet").to_pydict()
    own = {name for name, fold in zip(table["image"], table["fold"], strict=True) if fold == 1}
    few = load_eval_dataset(load_predictor(str(folds / "member-2"), task="classification"), 28, max_images=5)
    assert len(few.validation) == 5 and set(few.validation.names) <= own, "a limit does not change the folds"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--folds", 1], "cross-validation needs 2 or more folds, not 1"),
        (["--folds", 61], "60 images cannot be divided into 61 folds; use at most 60"),
        (["--folds", 3, "--num-models", 3], "--folds trains one network per fold"),
        (["--group", "patient"], "--group and --repeats require --folds"),
        (["--folds", 3, "--group", "patient"], "no column 'patient'; this data source has no columns"),
    ],
)
def test_bad_input_is_one_line(flags: list[object], message: str, tmp_path: Path) -> None:
    done = googlenet("ensemble", "train", "fashion-mnist-smoke", *FLAGS, *flags, "--out", tmp_path / "run")
    assert done.code in (1, 2)
    assert message in done.err and done.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_repeats_have_other_folds() -> None:
    recipes = fold_recipes(read_recipe("fashion-mnist-smoke"), 3, 2)
    assert [(r.seed, r.split_seed, r.data.fold) for r in recipes] == [(s, s, f) for s in (0, 1) for f in range(3)]


def test_mean_and_deviation() -> None:
    rows = [{"images": 5, "top1": 0.5, "auroc": 0.9}, {"images": 6, "top1": 0.7}]
    assert mean_and_deviation(rows) == {"top1": (pytest.approx(0.6), pytest.approx(0.02**0.5))}


@pytest.mark.slow
def test_an_interrupted_cross_validation_resumes_to_the_same_result(
    folds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from googlenet.training import ensemble

    fit, calls = ensemble.fit, []

    def interrupted(*args: object, **options: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fit(*args, **options)

    monkeypatch.setattr(ensemble, "fit", interrupted)
    out = tmp_path / "again"
    assert googlenet("ensemble", "train", "fashion-mnist-smoke", "--folds", 3, *FLAGS, "--out", out).code == 130
    monkeypatch.undo()
    assert googlenet("ensemble", "train", "--resume", out).code == 0
    first, second = (pq.read_table(folder / "out-of-fold.parquet") for folder in (folds, out))
    assert first.equals(second)
