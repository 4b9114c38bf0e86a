"""``googlenet export``: the folder, its files in their engines, and its examples without this package."""

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import googlenet as package
from googlenet.checkpoint.format import Checkpoint
from googlenet.cli.main import main
from googlenet.config.schema import ModelConfig, Recipe
from googlenet.data.dataset import LoadOptions, Split
from googlenet.data.preprocess import Preprocess
from googlenet.data.sources import load_dataset
from googlenet.evaluation.metrics import classification_metrics
from googlenet.evaluation.predictor import predict_split
from googlenet.export.backends import BACKENDS, engine_names
from googlenet.export.engine import open_exported
from googlenet.export.exporter import ExportData, ExportOptions, export
from servers import command_without_packages

FAST_ENGINES = ("onnxruntime", "openvino", "ncnn")
ENGINES = (pytest.param("torch", marks=pytest.mark.release), *FAST_ENGINES)


def folder_with(request: pytest.FixtureRequest, engine: str) -> Path:
    folder: Path = request.getfixturevalue("exported_to_all" if engine == "torch" else "exported_folder")
    return folder


@pytest.fixture(scope="module")
def test_images() -> Split:
    return load_dataset("fashion-mnist", LoadOptions(validation=0, max_samples=100)).test


def resize_with_pillow(images: torch.Tensor, size: int) -> torch.Tensor:
    """Resize as the examples do."""
    small = [Image.fromarray(image[0].numpy()).resize((size, size), Image.Resampling.BILINEAR) for image in images]
    return torch.from_numpy(np.stack([np.asarray(image)[None] for image in small]))


def expected_logits(run: Checkpoint, pixels: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return run.network(run.preprocess.normalize(pixels.float()))


@pytest.mark.parametrize("name", ENGINES)
def test_engines_predict_like_the_network(
    name: str, request: pytest.FixtureRequest, smoke_run: Path, test_images: Split
) -> None:
    """At other sizes and batches than the file was traced with, and from several threads at once."""
    run = package.load(smoke_run)
    predictor = open_exported(folder_with(request, name), f"{name}:float32", threads=1)
    assert (predictor.name, predictor.classes, predictor.preprocess) == (name, run.classes, run.preprocess)
    for height, width, count in ((16, 16, 7), (28, 28, 1), (23, 31, 3)):
        pixels = test_images.images.repeat(1, 1, 2, 2)[:count, :, :height, :width]
        expected = expected_logits(run, pixels)
        torch.testing.assert_close(predictor.predict(pixels), expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(predictor.predict(pixels.float() + 0.3), predictor.predict(pixels)), "floats are rounded"
    for _ in range(20):  # Often enough for an engine that compiles frequent shapes.
        logits = predictor.predict(pixels)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-4)
    parts = torch.split(test_images.images[:40], 5)
    results: dict[int, torch.Tensor] = {}
    threads = [
        threading.Thread(target=lambda i=i, part=part: results.update({i: predictor.predict(part)}))
        for i, part in enumerate(parts)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    logits = torch.cat([results[i] for i in range(len(parts))])
    torch.testing.assert_close(logits, expected_logits(run, test_images.images[:40]), rtol=1e-5, atol=1e-4)


def test_the_parity_report_has_every_engine_size_and_batch(exported_folder: Path) -> None:
    rows = json.loads((exported_folder / "parity.json").read_text())["rows"]
    cases = {(row["engine"], row["height"], row["width"], row["batch"]) for row in rows}
    shapes = [(16, 16), (2, 2), (17, 27)]
    assert cases == {(name, *shape, batch) for name in FAST_ENGINES for shape in shapes for batch in (1, 7)}
    assert max(row["max_error"] for row in rows) < 1e-4


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_int8(name: str, exported_folder: Path, test_images: Split) -> None:
    """The int8 file is used unless float32 is requested; it is smaller, and its accuracy is in the manifest."""
    manifest = json.loads((exported_folder / "model.json").read_text())
    pixels = resize_with_pillow(test_images.images, 16)
    default, int8, float32 = (open_exported(exported_folder, name + p, 1) for p in ("", ":int8", ":float32"))
    assert torch.equal(default.predict(pixels), int8.predict(pixels))
    assert (int8.predict(pixels) - float32.predict(pixels)).abs().max() > 1e-3
    # The network of the smoke run is hardly trained and not robust; a trained one loses nothing (docs/export.md).
    split = load_dataset("fashion-mnist", LoadOptions(validation=0, max_samples=200)).test
    metrics = classification_metrics(predict_split(default, split))
    assert metrics["top1"] == manifest["accuracy"][f"{name}:int8"]["top1"] > 0.2
    num_bytes = [
        sum((exported_folder / file).stat().st_size for file in manifest["engines"][entry]["files"])
        for entry in (name, f"{name}:int8")
    ]
    assert num_bytes[1] < 0.5 * num_bytes[0]
    drop = manifest["int8"]["engines"][name]["accuracy_drop"]
    assert drop == manifest["accuracy"]["float32"]["top1"] - manifest["accuracy"][f"{name}:int8"]["top1"]


@pytest.mark.parametrize("name", ENGINES)
def test_examples_do_not_need_this_package(
    name: str, request: pytest.FixtureRequest, test_images: Split, tmp_path: Path
) -> None:
    """A copy of the folder predicts the same classes of 100 images as the engine (PyTorch, which is slow, of 25)."""
    folder = folder_with(request, name)
    shutil.copytree(folder, tmp_path / "copy")
    files = []
    images = test_images.images[: 25 if name == "torch" else 100]
    for i, pixels in enumerate(images):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(pixels[0].numpy()).save(files[-1])
    hidden = {"googlenet", *(() if name == "torch" else ("torch",))}
    command = command_without_packages(hidden, tmp_path / "copy" / f"predict_{name}.py")
    done = subprocess.run([*command, *files], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    labels = [line.split(": ")[1].rsplit(" ", 1)[0] for line in done.stdout.splitlines()]
    predictor = open_exported(folder, f"{name}:float32", 1)
    small = resize_with_pillow(images, predictor.preprocess.size)
    assert labels == [predictor.classes[i] for i in predictor.predict(small).argmax(1).tolist()]


@pytest.mark.slow
def test_colors_softmax_and_normalization_across_channels(test_images: Split, tmp_path: Path) -> None:
    """The network of the paper, in color, with softmax in the file."""
    gray = test_images.images[:7].repeat(1, 1, 2, 2)
    images = torch.cat([gray, 255 - gray, gray.flip(-1)], dim=1)
    preprocess = Preprocess(40, 3, (123 / 255, 117 / 255, 104 / 255), (1 / 255,) * 3)
    model = package.create("googlenet", 5, width_mult=0.25).eval()
    checkpoint = Checkpoint(model, preprocess, tuple("abcde"), Recipe(model=ModelConfig(name="googlenet")), {})
    options = ExportOptions(softmax=True, threads=1)
    result = export(checkpoint, ExportData(images), tmp_path / "out", ["onnx", "openvino", "ncnn"], options)
    assert result.max_error < 1e-4 and result.top1 is None
    with torch.inference_mode():
        expected = model(preprocess.normalize(images.float())).softmax(1)
    for name in FAST_ENGINES:
        logits = open_exported(result.folder, name, 1).predict(images)
        torch.testing.assert_close(logits.exp().sum(1), torch.ones(7))
        torch.testing.assert_close(logits.exp(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    ["openvino", *(pytest.param(name, marks=pytest.mark.release) for name in ("onnxruntime", "ncnn"))],
)
@pytest.mark.slow
def test_closing_in_the_order_of_opening_leaves_signals_working(name: str, exported_folder: Path) -> None:
    """The main thread has an alternative signal stack, which an engine may replace; a signal must still be handled."""
    program = f"""
import faulthandler, gc, signal, subprocess, sys
faulthandler.enable()
import torch
from googlenet.export.engine import open_exported
signal.signal(signal.SIGCHLD, lambda *_: None)
opened = [open_exported(sys.argv[1], "{name}:float32", 1) for _ in range(3)]
for predictor in opened:
    predictor.predict(torch.zeros(1, 1, 16, 16))
del predictor
while opened:
    opened.pop(0)
    gc.collect()
subprocess.run([sys.executable, "-c", ""], check=True)
"""
    done = subprocess.run([sys.executable, "-c", program, exported_folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_errors(exported_folder: Path, smoke_run: Path, tmp_path: Path) -> None:
    """One line, and no partial output."""
    with pytest.raises(ValueError, match="expected images"):
        open_exported(exported_folder, "onnxruntime", 1).predict(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="at least 2x2"):
        open_exported(exported_folder, "onnxruntime", 1).predict(torch.zeros(1, 1, 16, 1))
    with pytest.raises(ValueError, match="did you mean openvino"):
        open_exported(exported_folder, "openvin")
    with pytest.raises(ValueError, match="not an exported folder"):
        open_exported(smoke_run, "onnxruntime")
    shutil.copytree(exported_folder, tmp_path / "copy")
    (tmp_path / "copy" / "model.xml").write_text("<net/>")
    with pytest.raises(ValueError, match="differs from the file that was exported"):
        open_exported(tmp_path / "copy", "openvino:float32")
    manifest = json.loads((tmp_path / "copy" / "model.json").read_text())
    del manifest["engines"]["ncnn"]
    (tmp_path / "copy" / "model.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="export with --format ncnn"):
        open_exported(tmp_path / "copy", "ncnn")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    assert main(["export", str(smoke_run), "--format", "onnx", "--out", str(tmp_path / "other")]) == 1
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["letter.txt"]
    with pytest.raises(SystemExit) as exit_info:
        main(["export", str(smoke_run), "--format", "coreml", "--out", str(tmp_path / "new")])
    assert exit_info.value.code == 2 and not (tmp_path / "new").exists()


def test_every_backend_has_a_module_with_its_capabilities() -> None:
    for backend in BACKENDS.values():
        module = backend.module
        assert callable(module.write) and callable(module.open) and "def run(" in module.EXAMPLE
        assert hasattr(module, "quantize") == backend.int8
        assert hasattr(module, "write_detector") == backend.detection
    assert len(set(engine_names())) == len(BACKENDS)
