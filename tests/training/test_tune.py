"""The search for recipe values: trials, limits, interruption, the table, invalid input."""

import csv
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from conftest import googlenet
from googlenet.config.parse import read_recipe
from googlenet.training import tune
from googlenet.training.fit import TrainResult
from googlenet.training.metrics_logger import read_metrics
from googlenet.training.tune import Limits, create_search, open_study, run_search, trial_rows
from googlenet.training.tune_space import default_search, parse_search
from interruption import Crash, signal_at

pytest.importorskip("optuna", reason="Optuna is not installed: pip install 'googlenet[tune]'")

FLAGS = ["--epochs=2", "--data.max_samples=32", "--batch_size=16", "--model.width_mult=0.25", "--data.val_split=16"]
SEARCH = ["optimizer.lr=0.001..0.1", "augment.flip=none,random"]
BASE = read_recipe("fashion-mnist-smoke", FLAGS)


def fake_fit(values: list[float], calls: list[Any], crash_in: int | None = None) -> Any:
    """Return a `fit` that reports a value at a half of the run, and at its end: no training."""

    def fit(recipe: Any, run: Path, *, resume: Any, progress: bool, trial: Any) -> TrainResult:
        number = int(run.name.rpartition("-")[2])
        calls.append((number, recipe.optimizer.lr, recipe.augment.flip))
        value = values[number % len(values)]
        trial(0.5, value / 2)
        if number == crash_in:
            raise Crash
        trial(1.0, value)
        return TrainResult(run, {}, 1.0, 1.0)

    return fit


@pytest.mark.slow
def test_interrupted_search_draws_the_same_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values, calls, again = [0.5, 0.6, 0.4, 0.7, 0.3, 0.65, 0.2], list[Any](), list[Any]()
    search = parse_search(SEARCH, BASE)
    for name in ("whole", "crashed"):
        create_search(BASE, search, tmp_path / name, Limits(None, 9))
    monkeypatch.setattr(tune, "fit", fake_fit(values, calls))
    rows = run_search(tmp_path / "whole", Limits(None, 9))
    monkeypatch.setattr(tune, "fit", fake_fit(values, again, crash_in=5))
    with pytest.raises(Crash):
        run_search(tmp_path / "crashed", Limits(None, 9))
    monkeypatch.setattr(tune, "fit", fake_fit(values, again))
    resumed = run_search(tmp_path / "crashed", Limits(None, 9))
    assert calls[0] == (0, BASE.optimizer.lr, BASE.augment.flip), "the first trial is the recipe"
    assert again == calls[:6] + calls[5:], "the interrupted trial is repeated with its values"
    assert [row._replace(seconds=0) for row in rows] == [row._replace(seconds=0) for row in resumed]
    assert len({lr for _, lr, _ in calls}) > 5
    assert all(0.001 <= lr <= 0.1 for _, lr, _ in calls)
    complete = [row.value for row in rows if row.state == "complete"]
    assert complete == sorted(complete, reverse=True) and complete[0] == 0.7
    stopped = [row for row in rows if row.state == "stopped"]
    assert stopped and all(row.note == "below the median of the other trials" for row in stopped)
    best = yaml.safe_load((tmp_path / "whole" / "best.yaml").read_text())
    assert best["optimizer"]["lr"] == {number: lr for number, lr, _ in calls}[rows[0].number]


@pytest.mark.slow
def test_no_trial_starts_that_would_end_too_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every trial takes 10 s by a clock of the test."""
    calls, clock = list[Any](), [0.0]
    fit = fake_fit([0.5], calls)

    def slow_fit(*arguments: Any, **options: Any) -> TrainResult:
        clock[0] += 10
        result: TrainResult = fit(*arguments, **options)
        return result

    monkeypatch.setattr(tune, "fit", slow_fit)
    monkeypatch.setattr(tune.time, "monotonic", lambda: clock[0])
    create_search(BASE, parse_search(SEARCH, BASE), tmp_path / "search", Limits(35.0, None))
    assert len(run_search(tmp_path / "search", Limits(35.0, None))) == 3
    assert len(run_search(tmp_path / "search", Limits(60.0, None))) == 6, "a longer limit continues the search"
    assert [row.seconds for row in trial_rows(open_study(tmp_path / "search"))] == [10.0] * 6


@pytest.mark.slow
def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real trials: interrupted by a signal, continued to the table, the plot and a recipe that trains."""
    folder = tmp_path / "search"
    options = [flag for item in SEARCH for flag in ("--search", item)]
    with monkeypatch.context() as patched:
        signal_at(3, signal.SIGINT, patched)
        done = googlenet("tune", "fashion-mnist-smoke", *FLAGS, *options, "--trials", 3, "--out", folder)
    assert done.code == 130
    assert done.err.strip().splitlines()[-1].endswith(f"continue with googlenet tune --resume {folder}")
    done = googlenet("tune", "--resume", folder, "--json")
    assert done.code == 0, done.err
    assert len(done.json["trials"]) == 3
    best = done.json["trials"][0]
    assert best["value"] == max(row["value"] for row in done.json["trials"] if row["state"] == "complete")
    with (folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["trial"]) for row in rows] == [row["number"] for row in done.json["trials"]]
    assert float(rows[0]["optimizer.lr"]) == best["values"]["optimizer.lr"]
    with Image.open(folder / "tune.png") as image:
        assert image.width > 3 * 300
    splits = {entry["split"] for run in folder.glob("trial-*") for entry in read_metrics(run)}
    assert splits == {"train", "validation"}, "the test images are not used"
    done = googlenet("train", folder / "best.yaml", "--out", tmp_path / "run", "--json")
    assert done.code == 0, done.err
    assert done.json["metrics"]["validation"]["top1"] == best["value"], "the same recipe gives the same result"


@pytest.mark.slow
def test_trials_that_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = fake_fit([0.5], [])

    def failing_fit(recipe: Any, run: Path, **options: Any) -> TrainResult:
        if recipe.optimizer.lr != BASE.optimizer.lr:
            raise ValueError("the loss became nan at step 7;\ntrain again")
        result: TrainResult = fit(recipe, run, **options)
        return result

    monkeypatch.setattr(tune, "fit", failing_fit)
    create_search(BASE, parse_search(SEARCH, BASE), tmp_path / "search", Limits(None, 3))
    rows = run_search(tmp_path / "search", Limits(None, 3))
    assert [row.state for row in rows] == ["complete", "failed", "failed"]
    assert rows[1].note == "the loss became nan at step 7; train again"
    # The recipe itself fails: nothing can be compared.
    broken = read_recipe("fashion-mnist-smoke", [*FLAGS, "--optimizer.lr=0.3"])
    create_search(broken, parse_search(SEARCH, broken), tmp_path / "broken", Limits(None, 3))
    with pytest.raises(ValueError, match="the loss became nan"):
        run_search(tmp_path / "broken", Limits(None, 3))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("optimizer.lr", "write KEY=LOW..HIGH or KEY=A,B,C"),
        ("optimizer.lr=1..", "a range has two numbers"),
        ("optimizer.lr=a..b", "a range has two numbers"),
        ("optimizer.lr=0.1..0.01", "the first number must be smaller"),
        ("optimizer.lr=0..1", "optimizer.lr must be in (0, inf)"),
        ("optimizer.rl=0.1..1", "unknown recipe key 'optimizer.rl'"),
        ("optimizer.name=sgd,sdg", "optimizer.name must be one of"),
        ("batch_size=8..9.5", "batch_size must be an integer"),
    ],
)
def test_invalid_search(item: str, message: str, tmp_path: Path) -> None:
    done = googlenet("tune", "fashion-mnist-smoke", "--search", item, "--out", tmp_path / "search")
    assert done.code == 2
    assert message in done.err and len(done.err.strip().splitlines()) == 1
    assert not (tmp_path / "search").exists()


def test_invalid_use(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    cases = {
        "val_split": ["fashion-mnist-smoke", "--data.val_split=0", "--out", tmp_path / "search"],
        "exists already": ["fashion-mnist-smoke", "--out", tmp_path / "full"],
        "not the folder of a search": ["--resume", tmp_path / "full"],
        "--minutes must be above 0": ["fashion-mnist-smoke", "--minutes", 0, "--out", tmp_path / "search"],
        "--resume DIR takes --minutes and --trials only": ["fashion-mnist-smoke", "--resume", tmp_path / "full"],
        "name a recipe": [],
    }
    for message, arguments in cases.items():
        done = googlenet("tune", *arguments)
        assert done.code in (1, 2), message
        assert message in done.err and len(done.err.strip().splitlines()) == 1, done.err


def test_search_space() -> None:
    space = parse_search(
        [*SEARCH, "batch_size=8..16", "schedule.warmup-fraction=0..0.5", "model.dropout=null,0.1"], BASE
    )
    assert space == {
        "optimizer.lr": ("log", 0.001, 0.1), "augment.flip": ("choice", "none", "random"), "batch_size": ("int", 8, 16),
        "schedule.warmup_fraction": ("range", 0.0, 0.5), "model.dropout": ("choice", None, 0.1),
    }  # fmt: skip
    with pytest.raises(ValueError, match="named twice"):
        parse_search([SEARCH[0], SEARCH[0]], BASE)
    assert json.loads(json.dumps(default_search(BASE)))["optimizer.lr"] == ["log", 0.005, 0.5]
