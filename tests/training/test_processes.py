"""Several processes are one run: real ones, started by torchrun, against one process and against each other."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import interruption
from conftest import googlenet
from googlenet.data.loader import steps_per_epoch
from googlenet.training.checkpoint import build_model, load, load_recipe
from googlenet.training.loop import fit
from googlenet.training.recipe_file import read_recipe
from googlenet.training.record import read_metrics
from interruption import EVERY_STEP

DOUBLE = [str(Path(__file__).with_name("double_precision.py"))]
PLAIN = ["-m", "googlenet"]

# Twenty steps.
TWENTY = (
    "fashion-mnist-smoke --epochs=5 --batch_size=32 --validate_every=9 --device=cpu --ema=0.9"
    " --model.dropout=0 --augment.erase=3"
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


def finished(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out, err


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[key].double() - other[key].double()).abs().max().item() for key in one)


@pytest.mark.parametrize(
    ("processes", "model"),
    [
        # The last batch of each epoch has 2 pictures, of which the third process gets none.
        pytest.param(
            3,
            [
                "--model.name=googlenet_d2l",
                "--model.width=0.25",
                "--data.limit=98",
                "--accumulate=2",
                "--optimiser.clip=1",
                "--optimiser.lr=0.1",
            ],
            marks=pytest.mark.slow,
            id="no normalisation, three",
        ),
        pytest.param(
            2,
            ["--model.width=0.25", "--data.limit=111", "--optimiser.layerwise=true", "--optimiser.lr=0.001"],
            marks=pytest.mark.slow,
            id="synchronised normalisation, two",
        ),
    ],
)
def test_several_processes_end_with_the_weights_of_one(processes: int, model: list[str], tmp_path: Path) -> None:
    """Twenty steps in float64 (`double_precision.py`): they amplify its rounding, 1e-16, to less than 1e-9."""
    several = torchrun(processes, *DOUBLE, "train", *TWENTY, *model, "--out", str(tmp_path / "several"))
    alone = subprocess.run(
        [sys.executable, *DOUBLE, "train", *TWENTY, *model, "--out", str(tmp_path / "alone")],
        capture_output=True,
        text=True,
    )
    assert alone.returncode == 0, alone.stderr
    out, _ = finished(several)
    assert out.count("top-1 accuracy") == 1, "the main process alone speaks"
    one, other = (load(tmp_path / name) for name in ("alone", "several"))
    before = build_model(one.recipe, 10, 1).state_dict()
    assert largest_difference(before, one.model.state_dict()) > 1e-3, "the weights have moved"
    assert largest_difference(one.model.state_dict(), other.model.state_dict()) <= 1e-9
    for split in ("validation", "test"):
        assert other.metrics[split] == pytest.approx(one.metrics[split], abs=1e-9)
    entries = [[e for e in read_metrics(tmp_path / name) if e["split"] == "train"] for name in ("alone", "several")]
    assert [e["step"] for e in entries[0]] == [e["step"] for e in entries[1]] == [20]
    for figure in ("loss", "accuracy"):
        assert entries[1][0][figure] == pytest.approx(entries[0][0][figure], abs=1e-9)


def test_synchronised_normalisation_is_that_of_the_whole_batch() -> None:
    """Parts of several sizes, empty ones among them: outputs, gradients and running statistics."""
    finished(torchrun(3, str(Path(__file__).with_name("norm_in_parts.py"))))


@pytest.mark.slow
def test_a_run_whose_worker_is_killed_ends_with_the_same_weights(tmp_path: Path) -> None:
    """SIGKILL of the second of two processes in the middle of step 9; torchrun starts both again."""
    recipe = (
        "fashion-mnist-smoke --epochs=2 --data.limit=120 --batch_size=8 --validate_every=9 --device=cpu"
        " --model.name=googlenet_d2l --model.width=0.25 --model.dropout=0.3 --ema=0.9"
    ).split()
    whole, run, point = tmp_path / "whole", tmp_path / "run", "9:step"
    launcher = torchrun(
        2, interruption.__file__, point, "1", "train", *recipe, EVERY_STEP, "--out", str(run), restarts=1
    )
    finished(torchrun(2, *PLAIN, "train", *recipe, "--out", str(whole)))
    _, err = finished(launcher)
    assert err.count(f"dies at {point}") == 1, "once, and not after the restart"
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, run))
    assert all(torch.equal(one[key], other[key]) for key in one)
    steps = [e["step"] for e in read_metrics(run) if e["split"] == "train"]
    assert steps == sorted(set(steps)) and steps[-1] == 2 * steps_per_epoch(120, 8)
    # The same command after the end, by hand: the figures are measured again and nothing else changes.
    fitted = fit(load_recipe(run), run, restartable=True, progress=False)
    assert fitted.metrics == load(whole).metrics


@pytest.mark.slow
def test_mistakes_are_told_once(tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    process = torchrun(2, *PLAIN, "train", "fashion-mnist-smoke", "--out", str(tmp_path / "used"))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.count("exists already") == 1
    assert next(line for line in err.splitlines() if line.startswith("googlenet train: ")).count("used") == 2


def test_a_launched_run_needs_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    done = googlenet("train", "fashion-mnist-smoke", cwd=tmp_path)
    assert done.code == 2
    assert "--out" in done.err
    assert not list(tmp_path.iterdir())


def test_restartable_starts_where_nothing_is_and_refuses_another_recipe(tmp_path: Path) -> None:
    recipe = read_recipe("fashion-mnist-smoke", ["--data.limit=64", "--epochs=1", "--device=cpu"])
    fit(recipe, tmp_path / "run", restartable=True, progress=False)
    other = read_recipe("fashion-mnist-smoke", ["--data.limit=64", "--epochs=2", "--device=cpu"])
    with pytest.raises(ValueError, match="another recipe"):
        fit(other, tmp_path / "run", restartable=True, progress=False)
