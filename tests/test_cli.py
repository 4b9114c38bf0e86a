"""The command line: results, exit codes, and one clear line for every error."""

import argparse
import io
import json
import os
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import Called, googlenet
from googlenet.cli import models as models_command
from googlenet.cli.main import COMMANDS
from googlenet.data.decode import ImageError
from googlenet.data.sources import LoadOptions, load_dataset
from googlenet.errors import PACKAGE, FailedError, is_user_error
from googlenet.models.registry import MODELS
from googlenet.training.metrics_logger import read_metrics
from servers import fuzz_server


def one_line(done: Called, *codes: int) -> str:
    """Assert a failure with one line on standard error and nothing on standard output."""
    assert done.code in (codes or (1, 2)), done
    lines = done.err.strip().splitlines()
    assert len(lines) == 1, done.err
    assert "Traceback" not in done.err
    assert not done.out.strip()
    return lines[0]


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory, fashion_mnist_folder: Path) -> Path:
    """Ten real test images as PNG files, one per class."""
    folder = tmp_path_factory.mktemp("images")
    test = load_dataset("fashion-mnist", LoadOptions(root=str(fashion_mnist_folder), validation=0)).test
    for label in range(10):
        row = int((test.labels == label).nonzero()[0])
        Image.fromarray(test.images[row, 0].numpy()).save(folder / f"{label}.png")
    return folder


def test_summary_has_the_papers_counts() -> None:
    plain = googlenet("summary", "googlenet", "--size", 224, "--json").json
    assert plain["parameters"] == 6_998_552
    assert plain["macs"] == 1_582_671_872
    assert plain["alexnet_ratio"] == pytest.approx(61_100_840 / 6_998_552, abs=1e-3)
    assert googlenet("summary", "googlenet", "--size", 224, "--aux", "--json").json["parameters"] == 13_378_280
    chapter = "--size 96 --channels 1 --classes 10 --json".split()
    stages = googlenet("summary", "googlenet_d2l", *chapter).json["stages"]
    shapes = [[1, 64, 24, 24], [1, 192, 12, 12], [1, 480, 6, 6], [1, 832, 3, 3], [1, 1024], [1, 10]]
    assert [stage["output"] for stage in stages] == shapes


def test_summary_of_a_run(smoke_run: Path) -> None:
    done = googlenet("summary", smoke_run, "--json")
    assert done.code == 0, done.err
    assert done.json["size"] == 16
    assert done.json["layers"][-1]["output"] == [1, 10]
    assert "omit" in googlenet("summary", smoke_run, "--aux").err


def test_model_names_have_priority_over_folders(tmp_path: Path) -> None:
    (tmp_path / "googlenet").mkdir()
    assert googlenet("summary", "googlenet", "--json", cwd=tmp_path).json["parameters"] == 6_998_552
    refused = googlenet("summary", tmp_path, cwd=tmp_path)
    assert (refused.code, refused.err.count("\n")) == (1, 1)


def test_summary_as_a_table() -> None:
    out = googlenet("summary", "googlenet").out
    for word in ("inception_4e", "1 x 832 x 14 x 14", "868,352", "169,996,288", "427", "AlexNet", "8.73"):
        assert word in out


def test_models() -> None:
    rows = googlenet("models", "--json").json
    assert [row["name"] for row in rows] == list(MODELS)
    assert {"name", "parameters", "macs", "input_size", "min_size", "paper"} <= rows[0].keys()
    assert "Going Deeper" in googlenet("models").out


def test_download(fashion_mnist_folder: Path) -> None:
    document = googlenet("download", "fashion-mnist", "--data-root", fashion_mnist_folder, "--json").json
    assert document["root"] == str(fashion_mnist_folder)
    assert len(document["files"]) == 4
    assert all(Path(file).is_file() for file in document["files"])


def test_train_prints_one_json_document(tmp_path: Path) -> None:
    done = googlenet("train", "fashion-mnist-smoke", "--epochs", 1, "--data.max_samples=200", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    document = done.json
    assert {"run", "top1", "seconds", "images_per_second"} <= document.keys()
    (test,) = (e for e in read_metrics(tmp_path / document["run"]) if e["split"] == "test")
    assert document["top1"] == test["top1"]
    assert (tmp_path / document["run"]).parent == tmp_path / "runs"
    assert document["run"].startswith("runs/fashion-mnist-smoke-")
    again = googlenet("train", "--resume", document["run"], "--json", cwd=tmp_path).json
    assert again["top1"] == document["top1"], "resuming a finished run changes nothing"


def test_evaluate(smoke_run: Path) -> None:
    document = googlenet("evaluate", smoke_run, "--json").json
    assert {"top1", "top5", "loss", "images"} <= document.keys()
    assert document["images"] == 1000
    recorded = [json.loads(line) for line in (smoke_run / "metrics.jsonl").read_text().splitlines()]
    test = next(entry for entry in recorded if entry["split"] == "test")
    assert document["top1"] == test["top1"]
    assert googlenet("evaluate", smoke_run, "--max-images", 50, "--split", "validation", "--json").json["images"] == 50
    text = googlenet("evaluate", smoke_run, "--max-images", 50).out
    assert "top-1" in text
    assert "Ankle boot" in text


def test_predict_files_folders_and_standard_input(smoke_run: Path, images: Path) -> None:
    document = googlenet("predict", smoke_run, images, images / "3.png", "--top-k", 3, "--json").json
    assert [Path(a["path"]).name for a in document] == [f"{n}.png" for n in range(10)] + ["3.png"]
    assert document[3]["top"] == document[10]["top"]
    for entry in document:
        probabilities = [t["probability"] for t in entry["top"]]
        assert len(probabilities) == 3
        assert probabilities == sorted(probabilities, reverse=True)
        # The three highest of ten: more than three tenths, and no more than all (each is rounded to 6 digits).
        assert 0.3 < sum(probabilities) <= 1 + 3e-6
    piped = googlenet("predict", smoke_run, "-", "--json", stdin=(images / "3.png").read_bytes()).json
    assert piped[0]["path"] == "-"
    assert piped[0]["top"][0]["probability"] == pytest.approx(document[3]["top"][0]["probability"], abs=1e-5)


@pytest.mark.parametrize("kind", ["jpg", "gif", "webp", "bmp", "rgba.png", "16.png", "palette.png", "tiff", "1x1.png"])
def test_predict_any_format(smoke_run: Path, tmp_path: Path, kind: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8))
    if kind.startswith("rgba"):
        image = image.convert("RGBA")
    elif kind.startswith("16"):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 65535, (60, 80), np.uint16))
    elif kind.startswith("palette"):
        image = image.convert("P")
    elif kind.startswith("1x1"):
        image = image.resize((1, 1))
    path = tmp_path / f"p.{kind}"
    image.save(path)
    done = googlenet("predict", smoke_run, path)
    assert done.code == 0, done.err
    assert "resized to 16x16" in done.out
    assert ("gray" in done.out) and (kind.startswith("16") or "colors to gray" in done.out)


def test_predict_continues_after_an_unreadable_image(smoke_run: Path, images: Path, tmp_path: Path) -> None:
    shutil.copy(images / "1.png", tmp_path)
    (tmp_path / "0.png").write_text("text")
    done = googlenet("predict", smoke_run, tmp_path, "--json")
    assert done.code == 1
    assert [Path(a["path"]).name for a in done.json] == ["1.png"]
    assert "0.png: not an image" in done.err
    assert "1 of 2 images" in done.err


# Errors: one clear line and exit code 1 or 2.


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("predcit x y", 2, "did you mean predict"),
        ("predict", 2, "required"),
        ("models --jsn", 2, "--jsn"),
        ("summary", 2, "model"),
        ("summary googlnet", 1, "did you mean googlenet"),
        ("summary googlenet --size 16", 1, "at least 31x31"),
        ("summary googlenet --size 0", 1, "at least 31x31"),
        ("summary googlenet --size big", 2, "--size"),
        ("summary googlenet --classes 0", 1, "num_classes"),
        ("download imagenet", 2, "fashion-mnist"),
        ("train", 2, "name a recipe"),
        ("train fashion-mnist-fats", 1, "did you mean fashion-mnist-fast"),
        ("train fashion-mnist-smoke --optimiser.lr 1", 2, "did you mean optimizer.lr"),
        ("train fashion-mnist-smoke --model.name googlnet", 1, "did you mean googlenet"),
        ("train fashion-mnist-smoke --model.pool_mode ceil", 1, "at least 31"),
        ("train fashion-mnist-smoke --size.eval 0", 2, "size.eval"),
        ("train fashion-mnist-smoke --data.source fashion", 1, "unknown data source"),
        ("train fashion-mnist-smoke --data.source folder:nowhere", 1, "no such folder"),
        ("train fashion-mnist-smoke --data.val_split 60000", 1, "validation"),
        ("train fashion-mnist-smoke --device cuda:99", 1, "device"),
        ("train fashion-mnist-smoke --epochs two", 2, "epochs"),
        ("train fashion-mnist-smoke stray", 2, "stray"),
        ("train fashion-mnist-smoke --seed 100000000000", 2, "seed"),
        ("train --seed 1 fashion-mnist-smoke", 2, "recipe first"),
        ("train fashion-mnist-smoke --batch_size 1", 1, "2 images"),
        ("train --resume nowhere", 1, "not a run"),
        ("train fashion-mnist-smoke --resume x", 2, "no other arguments"),
        ("evaluate nowhere", 1, "no such file"),
        ("predict nowhere x.png", 1, "no such file"),
    ],
)
def test_wrong_usage(command: str, code: int, message: str, tmp_path: Path) -> None:
    assert message in one_line(googlenet(*shlex.split(command), cwd=tmp_path), code)
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_wrong_kernel_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLENET_NATIVE", "AVX2")
    done = googlenet("train", "fashion-mnist-smoke", "--out", tmp_path / "run")
    assert "GOOGLENET_NATIVE=AVX2: unknown level; use 0, native" in one_line(done, 1)
    assert not (tmp_path / "run").exists()


def test_wrong_images(smoke_run: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty").mkdir()
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90), np.uint8)).save(buffer, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(buffer.getvalue()[:2000])
    (tmp_path / "bomb.png").write_bytes(fuzz_server().png_bomb(20_000, 20_000))
    for name, message in (
        ("missing.png", "no such file"),
        ("empty", "without images"),
        ("text.png", "not an image"),
        ("cut.jpg", "damaged"),
        ("bomb.png", "pixels"),
    ):
        line = one_line(googlenet("predict", smoke_run, tmp_path / name), 1)
        assert name in line
        assert message in line
    assert "standard input" in one_line(googlenet("predict", smoke_run, "-", stdin=b""), 1)
    assert "too small" in one_line(googlenet("predict", smoke_run, "x.png", "--size", 0), 1)
    assert "too small" in one_line(googlenet("evaluate", smoke_run, "--size", 0), 1)
    assert "--top-k" in one_line(googlenet("predict", smoke_run, "x.png", "--top-k", 0), 2)
    assert "--max-images" in one_line(googlenet("evaluate", smoke_run, "--max-images", 0), 2)
    assert "classes" in one_line(googlenet("evaluate", smoke_run, "--data", f"folder:{_two_classes(tmp_path)}"), 1)


def _two_classes(root: Path) -> Path:
    for name in ("a", "b"):
        (root / "tree" / name).mkdir(parents=True)
        Image.new("L", (9, 9)).save(root / "tree" / name / "1.png")
    return root / "tree"


def test_wrong_checkpoints(smoke_run: Path, tmp_path: Path) -> None:
    content = (smoke_run / "model.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(content[: len(content) // 2])
    mark = tmp_path / "executed"
    (tmp_path / "evil.safetensors").write_bytes(pickle.dumps(_Malicious(mark)))
    for name in ("half.safetensors", "evil.safetensors"):
        assert "damaged" in one_line(googlenet("predict", tmp_path / name, "x.png"), 1)
    run = tmp_path / "run"
    shutil.copytree(smoke_run, run)
    (run / "state.pt").write_bytes(pickle.dumps(_Malicious(mark)))
    assert "state.pt" in one_line(googlenet("train", "--resume", run), 1)
    (run / "state.pt").write_bytes((smoke_run / "state.pt").read_bytes()[:10_000])
    assert "state.pt" in one_line(googlenet("train", "--resume", run), 1)
    (run / "recipe.yaml").write_text("epochs: [")
    assert "recipe.yaml" in one_line(googlenet("train", "--resume", run), 1)
    assert not mark.exists()


class _Malicious:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.mark),))


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Mount a file system with the options of the parameter."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", request.param, "tmpfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", str(path)], check=True)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")


@needs_root
@pytest.mark.parametrize("small_disk", ["size=3m"], indirect=True)
def test_full_disk_leaves_no_partial_files(small_disk: Path, tmp_path: Path) -> None:
    run = small_disk / "run"
    done = googlenet("train", "fashion-mnist-smoke", "--data.max_samples=200", "--out", run)
    line = one_line_at_the_end(done)
    assert "No space left" in line
    assert "--resume" in line
    assert not list(run.glob(".*")), "no partial file is left"
    # With free space the run resumes.
    subprocess.run(["mount", "-o", "remount,size=500m", str(small_disk)], check=True)
    assert googlenet("train", "--resume", run, "--json").json["run"] == str(run)


@needs_root
@pytest.mark.parametrize("small_disk", ["ro"], indirect=True)
def test_read_only_folder(small_disk: Path) -> None:
    line = one_line(googlenet("train", "fashion-mnist-smoke", "--out", small_disk / "run"), 1)
    assert "Read-only" in line
    assert "write permission" in line


@pytest.mark.slow
def test_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    # Root may write everywhere unless it drops its capabilities.
    before = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    command = [*before, sys.executable, "-m", "googlenet", "train", "fashion-mnist-smoke", "--out"]
    done = subprocess.run([*command, str(tmp_path / "run")], capture_output=True, text=True)
    line = one_line(Called(done.returncode, done.stdout, done.stderr), 1)
    assert "Permission denied" in line
    assert "write permission" in line


def one_line_at_the_end(done: Called) -> str:
    """Return the last line of a failure after some progress, without a traceback."""
    assert done.code == 1
    assert "Traceback" not in done.err
    return done.err.strip().splitlines()[-1]


def test_debug_shows_the_traceback() -> None:
    assert "Traceback" in googlenet("summary", "googlnet", "--debug").err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    done = googlenet(command, "--help")
    assert done.code == 0
    assert f"example: googlenet {command}" in done.out


def test_general_help_and_version() -> None:
    assert all(command in googlenet("--help").out for command in COMMANDS)
    assert googlenet("--version").out.strip().count(".") == 2
    assert "--optimizer.lr" in googlenet("train", "--help").out
    assert "peak learning rate" in googlenet("train", "--help").out


@pytest.mark.slow
def test_closed_output_is_no_error() -> None:
    done = subprocess.run(
        "python -m googlenet summary googlenet | head -1",
        shell=True,
        capture_output=True,
        env={**os.environ, "PATH": f"{Path(os.sys.executable).parent}:{os.environ['PATH']}"},
    )
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr


def library_errors() -> dict[str, Callable[[], object]]:
    """Return calls of libraries that raise ValueError, in Python and in C."""
    return {
        "NumPy in C": lambda: np.zeros(3) + np.zeros(4),
        "NumPy in Python": lambda: np.split(np.zeros(3), 2),
        "PIL": lambda: Image.new("L", (-1, 2)),
        "PyTorch": lambda: torch.distributions.Normal(0.0, -1.0),
        "json": lambda: json.loads("{"),
        "built in": lambda: int("seven"),
    }


@pytest.mark.parametrize("library", library_errors())
def test_the_error_of_a_library_is_unexpected(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models_command, "print_result", lambda *_: library_errors()[library]())
    line = one_line(googlenet("models"), 1)
    assert line.startswith("googlenet models: unexpected ") and line.endswith("(--debug shows the traceback)")


@pytest.mark.parametrize("code", ["int('seven')", "[].index(3)", "'é'.encode('ascii')", "raise ValueError('no')"])
def test_a_package_error_is_one_that_the_package_raises(code: str) -> None:
    """The same frame, once with a call of C code that raises and once with a ``raise`` statement."""
    function = f"def function():\n    {code}\n"
    for file, expected in ((PACKAGE / "data" / "any.py", code.startswith("raise")), (Path("/lib/numpy/any.py"), False)):
        scope: dict[str, Any] = {}
        exec(compile(function, str(file), "exec"), scope)
        with pytest.raises(ValueError, match=".") as raised:
            scope["function"]()
        assert is_user_error(raised.value) == expected
    assert is_user_error(ImageError("decoded in another process, without a traceback"))
    assert is_user_error(FailedError("failed")) and not is_user_error(KeyError("key"))


@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_ends_every_command_with_130(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal arrives when the command parses its arguments."""
    # A shell starts background jobs, perhaps this test run, with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", lambda *_: signal.raise_signal(signal.SIGINT))
    arguments = {"ensemble": ["train"]}.get(command, [])
    try:
        done = googlenet(command, *arguments)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (done.code, done.err) == (130, f"googlenet {command}: interrupted\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_at_the_end() -> None:
    """Buffered output is written when the program ends."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "googlenet", "--help"], stdout=full, stderr=subprocess.PIPE, text=True,
            env=environment,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "googlenet: standard output: No space left on device\n")
