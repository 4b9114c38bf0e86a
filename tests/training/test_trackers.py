"""Experiment trackers: what reaches the real libraries offline, resumed runs, failures."""

import importlib.util
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import googlenet
from googlenet.checkpoint.format import read_run_recipe
from googlenet.config.parse import read_recipe
from googlenet.training.fit import fit
from googlenet.training.metrics_logger import read_metrics
from interruption import CHECKPOINT_EVERY_STEP, Crash, raise_at

FLAGS = ["--epochs=5", "--data.max_samples=64", "--batch_size=8", "--model.width_mult=0.25", "--data.val_split=16"]
# 64 images in batches of 8: 40 steps in 5 epochs. Step 20 is logged and its state is not saved, so the resumed run
# repeats it.
CRASH = "20:before"


class RecordingTracker:
    """Records what accelerate would send; `sent` is shared by the sessions of a run."""

    sent: ClassVar[list[tuple[str, float, int]]]
    configs: ClassVar[list[dict[str, Any]]]
    fails_after: ClassVar[int] = 10**9

    def __init__(self, run_name: str, **kwargs: Any):
        assert run_name == "googlenet"
        self.name = kwargs["name"]

    def start(self) -> None:
        if self.name == "refused":
            raise OSError("no API key:\nlog in first")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.configs.append(values)

    def log(self, values: dict[str, float], step: int) -> None:
        if step > self.fails_after:
            raise ConnectionError("the server is\ndown")
        self.sent.extend((name, value, step) for name, value in values.items())

    def finish(self) -> None:
        self.configs.append({"finished": True})


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> type[RecordingTracker]:
    """Replace Weights & Biases by a recording, installed or not."""
    fresh = type("Fresh", (RecordingTracker,), {"sent": [], "configs": []})
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", fresh)
    monkeypatch.setattr("googlenet.training.trackers.find_spec", lambda name: name)
    return fresh


def crash_and_resume(run: Path, tracker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = read_recipe("fashion-mnist-smoke", [*FLAGS, f"--tracker={tracker}", CHECKPOINT_EVERY_STEP])
    with monkeypatch.context() as patched:
        raise_at(CRASH, patched)
        with pytest.raises(Crash):
            fit(recipe, run, progress=False)
    fit(read_run_recipe(run), run, resume=True, progress=False)


def logged(run: Path) -> dict[tuple[str, int], float]:
    """Return the values of metrics.jsonl by their names in trackers and steps."""
    notes = {"split", "step", "epoch", "seconds"}
    return {
        (f"{name}/{entry['split']}", entry["step"]): value
        for entry in read_metrics(run)
        for name, value in entry.items()
        if name not in notes
    }


def comparable(values: dict[tuple[str, int], float]) -> dict[tuple[str, int], float]:
    """Return the values that do not depend on the speed, rounded to float32 as TensorBoard stores them."""
    return {key: pytest.approx(value, rel=1e-6) for key, value in values.items() if "images_per_second" not in key[0]}


@pytest.mark.slow
def test_every_metric_is_sent_once(
    tracker: type[RecordingTracker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a run that crashed after it had sent steps that the resumed run repeats."""
    crash_and_resume(tmp_path / "run", "wandb", monkeypatch)
    keys = [(name, step) for name, _, step in tracker.sent]
    assert len(keys) == len(set(keys))
    values = {(name, step): value for name, value, step in tracker.sent}
    assert values.keys() == logged(tmp_path / "run").keys()
    assert comparable(logged(tmp_path / "run")).items() <= values.items()
    assert tracker.configs[0]["optimizer.lr"] == read_run_recipe(tmp_path / "run").optimizer.lr
    assert tracker.configs[-1] == {"finished": True}


@pytest.mark.slow
def test_failing_server_does_not_end_the_run(tracker: type[RecordingTracker], tmp_path: Path) -> None:
    tracker.fails_after = 12  # there are validations after steps 8, 16, 24, ...
    done = googlenet("train", "fashion-mnist-smoke", *FLAGS, "--tracker", "wandb", "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert "tracking stops at step 16 (the server is down); metrics.jsonl has all metrics" in done.err
    assert max(step for _, _, step in tracker.sent) == 8
    assert max(step for _, step in logged(tmp_path / "run")) == 40


@pytest.mark.usefixtures("tracker")
def test_tracker_that_does_not_start(tmp_path: Path) -> None:
    done = googlenet("train", "fashion-mnist-smoke", *FLAGS, "--tracker", "wandb", "--out", tmp_path / "refused")
    assert done.code == 1
    assert done.err.splitlines()[-1] == (
        "googlenet train: tracker wandb: no API key: log in first; or train with --tracker tensorboard"
    )


def test_missing_package_and_unknown_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("googlenet.training.trackers.find_spec", lambda name: None)
    done = googlenet("train", "fashion-mnist-smoke", "--tracker", "mlflow", "--out", tmp_path / "run")
    assert done.code == 1
    assert "tracker mlflow: not installed; pip install 'googlenet[mlflow]'" in done.err.splitlines()[-1]
    assert not (tmp_path / "run").exists()
    done = googlenet("train", "fashion-mnist-smoke", "--tracker", "wandbb", "--out", tmp_path / "run")
    assert done.code == 2
    assert "tracker must be one of" in done.err and "'wandb'" in done.err


@pytest.mark.slow
def test_no_tracker(tmp_path: Path) -> None:
    fit(read_recipe("fashion-mnist-smoke", [*FLAGS, "--tracker=none"]), tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert logged(tmp_path / "run")


@pytest.mark.slow
def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash_and_resume(tmp_path / "run", "tensorboard", monkeypatch)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    values = {(tag, item.step): item.value for tag in events.Tags()["scalars"] for item in events.Scalars(tag)}
    expected = logged(tmp_path / "run")
    assert values.keys() == expected.keys()
    assert comparable(expected).items() <= values.items()


def needs(module: str) -> pytest.MarkDecorator:
    installed = importlib.util.find_spec(module) is not None
    return pytest.mark.skipif(not installed, reason=f"{module} is not installed: pip install 'googlenet[{module}]'")


@pytest.mark.slow
@needs("trackio")
def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    crash_and_resume(tmp_path / "run", "trackio", monkeypatch)
    (name,) = SQLiteStorage.get_runs("googlenet")
    assert name == f"run-{json.loads((tmp_path / 'run' / 'tracker.json').read_text())['id']}"
    values = {
        (key, row["step"]): value
        for row in SQLiteStorage.get_logs("googlenet", name)
        for key, value in row.items()
        if "/" in key
    }
    assert values.keys() == logged(tmp_path / "run").keys()
    assert trackio.__version__


@pytest.mark.release
@needs("mlflow")
def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file:{tmp_path / 'mlruns'}")
    crash_and_resume(tmp_path / "run", "mlflow", monkeypatch)
    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'googlenet'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "run" and run.info.status == "FINISHED"
    assert run.data.params["batch_size"] == "8"
    values = {
        (name, item.step): item.value
        for name in run.data.metrics
        for item in client.get_metric_history(run.info.run_id, name)
    }
    assert sum(len(client.get_metric_history(run.info.run_id, name)) for name in run.data.metrics) == len(values)
    assert comparable(logged(tmp_path / "run")).items() <= values.items()


def leveldb_records(content: bytes) -> Iterator[bytes]:
    """Yield the records of a LevelDB log after W&B's header of 7 bytes: blocks of 32 KiB, headers crc, length, kind."""
    position, record = 7, b""
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:  # padding at the end of a block
            position += 32768 - position % 32768
            continue
        length, kind = struct.unpack("<HB", content[position + 4 : position + 7])
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            yield record
            record = b""


@pytest.mark.release
@needs("wandb")
def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, a session's file has the run's identifier; `wandb sync` joins the sessions."""
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    crash_and_resume(tmp_path / "run", "wandb", monkeypatch)
    run_id = json.loads((tmp_path / "run" / "tracker.json").read_text())["id"]
    files = sorted((tmp_path / "run" / "wandb").glob(f"offline-run-*/run-{run_id}.wandb"))
    assert len(files) == 2
    values: dict[tuple[str, int], float] = {}
    for file in files:
        for data in leveldb_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            step = record.history.step.num
            for item in record.history.item:
                key = item.key or "/".join(item.nested_key)
                if "/" in key:
                    assert (key, step) not in values
                    values[key, step] = json.loads(item.value_json)
    assert comparable(logged(tmp_path / "run")).items() <= values.items()
