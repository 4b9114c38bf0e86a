"""Distributed training: real processes started by torchrun, compared with one process and with each other."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import interruption
from conftest import googlenet
from googlenet.checkpoint.format import build_network, read_run_recipe
from googlenet.checkpoint.load import load
from googlenet.config.parse import read_recipe
from googlenet.data.loader import steps_per_epoch
from googlenet.training.fit import fit
from googlenet.training.metrics_logger import read_metrics
from interruption import CHECKPOINT_EVERY_STEP

DOUBLE = [str(Path(__file__).with_name("double_precision.py"))]
PLAIN = ["-m", "googlenet"]

# Twenty steps.
TWENTY_STEPS = (
    "fashion-mnist-smoke --epochs=5 --batch_size=32 --eval_every_epochs=9 --device=cpu --ema_decay=0.9"
    " --model.dropout=0 --augment.cutout=3"
).split()


def torchrun(processes: int, *arguments: str, restarts: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.Popen(
        [*command, f"--max-restarts={restarts}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out, err


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[key].double() - other[key].double()).abs().max().item() for key in one)


@pytest.mark.parametrize(
    ("processes", "model"),
    [
        # The last batch of each epoch has 2 images, of which the third process gets none.
        pytest.param(
            3,
            [
                "--model.name=googlenet_d2l",
                "--model.width_mult=0.25",
                "--data.max_samples=98",
                "--grad_accum_steps=2",
                "--optimizer.clip_grad_norm=1",
                "--optimizer.lr=0.1",
            ],
            marks=pytest.mark.release,
            id="no normalization, three",
        ),
        pytest.param(
            2,
            [
                "--model.width_mult=0.25",
                "--data.max_samples=111",
                "--optimizer.name=normalized_sgd",
                "--optimizer.lr=0.001",
            ],
            marks=pytest.mark.release,
            id="synchronized normalization, two",
        ),
    ],
)
def test_several_processes_train_the_weights_of_one(processes: int, model: list[str], tmp_path: Path) -> None:
    """Twenty steps in float64 (`double_precision.py`): they amplify its rounding, 1e-16, to less than 1e-9."""
    several = torchrun(processes, *DOUBLE, "train", *TWENTY_STEPS, *model, "--out", str(tmp_path / "several"))
    alone = subprocess.run(
        [sys.executable, *DOUBLE, "train", *TWENTY_STEPS, *model, "--out", str(tmp_path / "alone")],
        capture_output=True,
        text=True,
    )
    assert alone.returncode == 0, alone.stderr
    out, _ = wait_for(several)
    assert out.count("top-1 accuracy") == 1, "only the main process prints"
    one, other = (load(tmp_path / name) for name in ("alone", "several"))
    before = build_network(one.recipe, 10, 1).state_dict()
    assert largest_difference(before, one.model.state_dict()) > 1e-3, "training changes the weights"
    assert largest_difference(one.model.state_dict(), other.model.state_dict()) <= 1e-9
    for split in ("validation", "test"):
        assert other.metrics[split] == pytest.approx(one.metrics[split], abs=1e-9)
    entries = [[e for e in read_metrics(tmp_path / name) if e["split"] == "train"] for name in ("alone", "several")]
    assert [e["step"] for e in entries[0]] == [e["step"] for e in entries[1]] == [20]
    for name in ("loss", "accuracy"):
        assert entries[1][0][name] == pytest.approx(entries[0][0][name], abs=1e-9)


@pytest.mark.slow
def test_synchronized_batchnorm_equals_the_full_batch() -> None:
    """Outputs, gradients and running statistics, for slices of several sizes, including empty ones."""
    wait_for(torchrun(3, str(Path(__file__).with_name("sync_batchnorm_worker.py"))))


@pytest.mark.slow
def test_shared_work_equals_one_process(tmp_path: Path) -> None:
    """Downloads and checks in order, evaluation in slices, and errors in each process of the run."""
    wait_for(torchrun(2, str(Path(__file__).with_name("distributed_worker.py")), str(tmp_path)))


@pytest.mark.release
def test_run_with_a_killed_worker_ends_with_the_same_weights(tmp_path: Path) -> None:
    """SIGKILL of the second of two processes in the middle of step 9; torchrun starts both again."""
    recipe = (
        "fashion-mnist-smoke --epochs=1 --data.max_samples=120 --batch_size=8 --eval_every_epochs=9 --device=cpu"
        " --model.name=googlenet_bn --model.width_mult=0.25 --model.dropout=0.3 --ema_decay=0.9"
        " --optimizer.name=muon --optimizer.lr=0.01 --augment.mixup=0.3 --augment.random_erasing=0.3"
        " --grad_accum_steps=2 --early_stopping_patience=5"
    ).split()
    uninterrupted, run, point = tmp_path / "uninterrupted", tmp_path / "run", "9:step"
    launcher = torchrun(
        2, interruption.__file__, point, "1", "train", *recipe, CHECKPOINT_EVERY_STEP, "--out", str(run), restarts=1
    )
    wait_for(torchrun(2, *PLAIN, "train", *recipe, "--out", str(uninterrupted)))
    _, err = wait_for(launcher)
    assert err.count(f"crashes at {point}") == 1, "once, and not after the restart"
    one, other = (load_file(folder / "model.safetensors") for folder in (uninterrupted, run))
    assert all(torch.equal(one[key], other[key]) for key in one)
    steps = [e["step"] for e in read_metrics(run) if e["split"] == "train"]
    assert steps == sorted(set(steps)) and steps[-1] == steps_per_epoch(120, 8)
    # Running the command again after the end measures again and changes nothing else.
    fitted = fit(read_run_recipe(run), run, resume="auto", progress=False)
    # One process has the native kernels' memory format instead of synchronized batch normalization: rounding differs.
    for split, metrics in load(uninterrupted).metrics.items():
        assert fitted.metrics[split] == pytest.approx(metrics, rel=1e-6, abs=0)


@pytest.mark.slow
def test_errors_are_printed_once(tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    process = torchrun(2, *PLAIN, "train", "fashion-mnist-smoke", "--out", str(tmp_path / "used"))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.count("exists already") == 1
    assert next(line for line in err.splitlines() if line.startswith("googlenet train: ")).count("used") == 2


def test_launched_run_needs_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    done = googlenet("train", "fashion-mnist-smoke", cwd=tmp_path)
    assert done.code == 2
    assert "--out" in done.err
    assert not list(tmp_path.iterdir())


def test_resume_auto_starts_a_new_run_and_rejects_another_recipe(tmp_path: Path) -> None:
    recipe = read_recipe("fashion-mnist-smoke", ["--data.max_samples=64", "--epochs=1", "--device=cpu"])
    fit(recipe, tmp_path / "run", resume="auto", progress=False)
    other = read_recipe("fashion-mnist-smoke", ["--data.max_samples=64", "--epochs=2", "--device=cpu"])
    with pytest.raises(ValueError, match="another recipe"):
        fit(other, tmp_path / "run", resume="auto", progress=False)
