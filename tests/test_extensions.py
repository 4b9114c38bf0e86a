"""Extension points: a new command, data source, detection head, backend and analysis is one file and one line.

Each test writes the file, adds the line to the registry, and uses the extension through the command line.
"""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from conftest import googlenet
from googlenet.cli.main import COMMANDS, Command
from googlenet.data.sources import SOURCES, Source
from googlenet.detection.heads import HEADS
from googlenet.explain import ANALYSES, Analysis
from googlenet.export.backends import BACKENDS, Backend


def install(name: str, source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a module and make it importable under `name`, as if the file were in the package."""
    file = folder / f"{name.rpartition('.')[2]}.py"
    file.write_text(source)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
from googlenet.cli.common import make_parser, print_result

def run(argv):
    args = make_parser("toy", "Do nothing.", "googlenet toy").parse_args(argv)
    print_result(args.json, {"done": True}, ["done"])
"""
    install("googlenet.cli.toy", source, tmp_path, monkeypatch)
    monkeypatch.setitem(COMMANDS, "toy", Command("googlenet.cli.toy", "Do nothing."))
    assert googlenet("toy", "--json").json == {"done": True}
    assert "toy       Do nothing." in googlenet("--help").out
    assert "example: googlenet toy" in googlenet("toy", "--help").out


@pytest.mark.slow
def test_data_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
import torch
from googlenet.data.dataset import Dataset, Split

def load(location, options):
    def split(count):
        labels = torch.arange(count) % 2
        images = (labels.view(-1, 1, 1, 1) * 200 + torch.arange(count).view(-1, 1, 1, 1)).to(torch.uint8)
        return Split(images.expand(-1, 1, 16, 16).contiguous(), labels, [f"{location}{n}" for n in range(count)])
    return Dataset(f"toy:{location}", ("dark", "bright"), split(40), split(10), split(10), (0.4,), (0.3,))
"""
    install("googlenet.data.sources.toy", source, tmp_path, monkeypatch)
    monkeypatch.setitem(SOURCES, "toy", Source("googlenet.data.sources.toy", "classification", ("toy:NAME",)))
    done = googlenet(
        "train", "fashion-mnist-smoke", "--data", "toy:x", "--epochs", 1, "--batch-size", 8, "--image-size", 16,
        "--out", tmp_path / "run", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.json["metrics"]["test"]["images"] == 10
    assert json.loads(googlenet("evaluate", tmp_path / "run", "--json").out)["images"] == 10
    assert "toy:NAME" in googlenet("train", "fashion-mnist-smoke", "--data", "toyy:x").err


@pytest.mark.slow
def test_detection_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
import torch
from googlenet.detection.data.dataset import Detections
from googlenet.detection.heads import DetectionHead
from googlenet.training.tasks.base import LossOutput

class Head(DetectionHead):
    def __init__(self, channels, num_classes):
        super().__init__()
        self.scores = torch.nn.Linear(channels, num_classes)

    def forward(self, levels):
        return self.scores(levels[-1].features.mean((2, 3)))

    def losses(self, levels, batch):
        return LossOutput(self(levels).square().mean(), torch.zeros(()))

    def detect(self, levels, batch):
        logits = self(levels)
        boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
        return [Detections(boxes, row.max().sigmoid().view(1), row.argmax().view(1)) for row in logits]

def build_head(config, num_classes, strides):
    return Head(config.neck_channels, num_classes)
"""
    install("googlenet.detection.heads.toy", source, tmp_path, monkeypatch)
    monkeypatch.setitem(HEADS, "toy", "googlenet.detection.heads.toy")
    flags = ["--detection.head", "toy", "--epochs", "1", "--out", tmp_path / "run", "--json"]
    done = googlenet("train", "scenes-smoke", *flags)
    assert done.code == 0, done.err
    assert done.json["metrics"]["test"]["images"] == 16
    done = googlenet("train", "scenes-smoke", "--detection.head", "toyy", "--out", tmp_path / "other")
    assert "toy" in done.err and done.err.count("\n") == 1


def test_export_backend(tmp_path: Path, smoke_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
import torch

EXAMPLE = \"\"\"
network = torch.load(FILES[0], weights_only=False)


def run(images: np.ndarray) -> list[np.ndarray]:
    return [network(torch.from_numpy(images))[0].detach().numpy()]
\"\"\"

def write(spec, folder):
    torch.save(spec.module().eval(), folder / "model.pickle")
    return ["model.pickle"]

def open(paths, threads, precision):
    model = torch.load(paths[0], weights_only=False)
    return lambda images: (model(images)[0].detach(),)
"""
    install("googlenet.export.backends.toy", source, tmp_path, monkeypatch)
    install("toy", "", tmp_path / "..", monkeypatch)  # the engine's package
    monkeypatch.setitem(BACKENDS, "pickle", Backend("toy", "Pickle", ".pickle"))
    out = tmp_path / "exported"
    done = googlenet("export", smoke_run, "--format", "pickle", "--out", out, "--max-images", 20, "--json")
    assert done.code == 0, done.err
    assert done.json["max_error"] < 1e-4
    done = googlenet("evaluate", out, "--engine", "toy", "--data", "fashion-mnist", "--max-images", 20, "--json")
    assert done.code == 0, done.err
    assert done.json["images"] == 20
    assert "pickle" in googlenet("export", "--help").out


def test_analysis(tmp_path: Path, smoke_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
from googlenet.explain.context import AnalysisResult

def run(context):
    count = sum(p.numel() for p in context.model.parameters())
    return AnalysisResult("Parameters", {"parameters": count}, [], [f"{count:,} parameters"])
"""
    install("googlenet.explain.toy", source, tmp_path, monkeypatch)
    monkeypatch.setitem(ANALYSES, "toy", Analysis("toy", "the number of parameters"))
    done = googlenet("explain", smoke_run, "--methods", "toy", "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    assert done.json["toy"]["parameters"] > 100_000
    assert "the number of parameters" in googlenet("explain", "--help").out
