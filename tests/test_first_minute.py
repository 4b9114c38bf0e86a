"""What a new user meets first: googlenet without arguments, demo, doctor, progress."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from conftest import googlenet
from googlenet.cli import demo, doctor
from googlenet.cli.main import COMMANDS
from googlenet.cli.start import start_text
from googlenet.config.parse import list_recipes
from googlenet.evaluation import progress
from googlenet.export.backends import engine_names


def test_without_arguments_the_next_commands_are_shown(tmp_path: Path) -> None:
    done = googlenet(cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    commands = [line.split()[1] for line in done.out.splitlines() if line.startswith("  googlenet")]
    assert commands[0] == "demo"
    assert set(commands) <= {*COMMANDS, "--help"}
    recipes = [line.split()[2] for line in done.out.splitlines() if line.startswith("  googlenet train")]
    assert set(recipes) <= set(list_recipes())


def test_with_a_run_its_commands_are_shown_first(tmp_path: Path) -> None:
    for age, name in ((0, "older"), (10, "newer"), (20, "unfinished")):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        if name != "unfinished":
            (folder / "model.safetensors").touch()
            os.utime(folder / "model.safetensors", (age, age))
    lines = start_text(tmp_path / "runs").splitlines()
    assert lines[2] == f"  googlenet predict {tmp_path}/runs/newer IMAGE"
    assert "  googlenet demo" in lines


def test_doctor_reports_kernels_engines_and_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    document = googlenet("doctor", "--json").json
    assert [engine["name"] for engine in document["engines"]] == engine_names()
    assert all("float32" in engine["precisions"] for engine in document["engines"] if engine["version"])
    assert document["kernels"]["library"] or document["kernels"]["advice"]
    monkeypatch.setattr(doctor, "package_version", lambda _: None)
    monkeypatch.setattr(
        doctor.metadata, "requires", lambda _: ["torch>=2.9", "h5py>=3.10; extra == 'keras'", "ruff; extra == 'dev'"]
    )
    output = googlenet("doctor").out
    assert "extra keras: missing h5py: pip install 'googlenet[keras]'" in output
    assert "engine onnxruntime: not installed" in output
    assert "ruff" not in output


@pytest.mark.parametrize(
    ("level", "library", "expected"),
    [
        (None, None, "turned off by GOOGLENET_NATIVE=0"),
        ("native", None, "install a C compiler"),
        ("avx2", "{prebuilt}/avx2.so", "avx2, prebuilt"),
        ("native", "/cache/kernels-0.so", "native, compiled"),
    ],
)
def test_doctor_describes_the_kernels(
    level: str | None, library: str | None, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("googlenet.kernels.levels.PREBUILT_FOLDER", tmp_path)
    loaded = library and SimpleNamespace(_name=library.format(prebuilt=tmp_path))
    monkeypatch.setattr("googlenet.kernels.build.get_kernel_level", lambda: level)
    monkeypatch.setattr("googlenet.kernels.build.load_kernels", lambda: loaded)
    assert f"fast kernels: {expected}" in googlenet("doctor").out


@pytest.mark.slow
def test_demo(tmp_path: Path, fashion_mnist_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It trains, classifies the samples and names the next commands; a second call uses the finished run."""
    arguments = ("demo", "--recipe", "fashion-mnist-smoke", "--out", tmp_path / "run")
    document = googlenet(*arguments, "--json").json
    names = sorted(path.name for path in demo.sample_folder().iterdir())
    assert [Path(item["path"]).name for item in document["predictions"]] == names
    weights = load_file(tmp_path / "run" / "model.safetensors")
    output = googlenet(*arguments).out
    assert f"  googlenet serve {tmp_path / 'run'}" in output
    assert all(f"{name}: " in output for name in names)
    again = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())


def test_demo_refuses_a_run_of_another_recipe(smoke_run: Path) -> None:
    done = googlenet("demo", "--out", smoke_run)
    assert done.code == 1
    assert "another recipe" in done.err


def test_track_shows_the_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "LOG_INTERVAL_S", 0.0)
    clock = iter(range(100))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    assert list(progress.track("abcd", 4, "letters")) == list("abcd")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("letters: 25%, ")
    assert lines[-1] == "letters: 100%, 0 s left"
