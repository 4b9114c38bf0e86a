"""Fixtures and helpers of tests that need a server: a small network, images, servers in a process or a thread."""

import functools
import importlib.util
import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    import httpx

ROOT = Path(__file__).parents[1]


class RunningServer(NamedTuple):
    """URL and process of a server."""

    url: str
    process: subprocess.Popen[bytes]


@functools.cache
def fuzz_server() -> Any:
    """Import benchmarks/fuzz_server.py."""
    spec = importlib.util.spec_from_file_location("fuzz_server", ROOT / "benchmarks" / "fuzz_server.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_server"] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def run_server(*arguments: Any, cwd: Path | None = None) -> Iterator[RunningServer]:
    """Run ``googlenet serve`` in its own process, on a free port."""
    command = [sys.executable, "-m", "googlenet", "serve", *map(str, arguments), "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=cwd)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.stderr.read().decode() if process.stderr else ""
        yield RunningServer(json.loads(line)["url"], process)
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=30)


@contextmanager
def serve_in_thread(
    run: Path | Mapping[str, Path],
    api_key: str | None = None,
    engine: str | None = None,
    reload_interval: float = 0,
    **limits: Any,
) -> Iterator[str]:
    """Run a server of the model "small", or of several models, in a thread, with other limits; yields its URL."""
    from googlenet.serving.app import build_asgi_app
    from googlenet.serving.config import Limits, ServeConfig
    from googlenet.serving.server import Server, listen, url_of

    models = {"small": run} if isinstance(run, Path) else run
    config = ServeConfig(
        {name: str(path) for name, path in models.items()},
        engine,
        threads=1,
        limits=Limits(**limits),
        api_key=api_key,
        reload_interval=reload_interval,
    )
    listener, started = listen("127.0.0.1", 0), threading.Event()
    server = Server(build_asgi_app(config), started.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert started.wait(30)
        yield url_of(listener)
    finally:
        server.handle_exit(15, None)
        thread.join(30)


@pytest.fixture(scope="session")
def small_run(build_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A narrow network with batch normalization and random weights, for 64 pixels and five classes."""
    return build_once("small", fuzz_server().write_run)


@pytest.fixture(scope="session")
def detector_run(build_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A narrow detector with random weights, for color images, 64 pixels and three classes."""
    return build_once("detector", lambda folder: write_detector_run(folder, seed=3))


def write_detector_run(folder: Path, seed: int) -> None:
    """Write a run of a detector with random weights, whose scores differ and are up to about 0.9."""
    import torch

    from googlenet.checkpoint.format import Checkpoint, write_checkpoint
    from googlenet.config.parse import recipe_from_dict
    from googlenet.data.preprocess import Preprocess
    from googlenet.detection.task import build_model

    folder.mkdir(parents=True, exist_ok=True)
    recipe = recipe_from_dict(
        {
            "task": "detection", "seed": seed, "size": {"train": 64}, "data": {"source": "scenes:train=2,test=2"},
            "model": {"name": "googlenet_bn", "width_mult": 0.25, "pool_mode": "same"},
            "detection": {"neck_channels": 32, "head_convs": 1},
        }
    )  # fmt: skip
    model = build_model(recipe, 3, 3).eval()
    with torch.no_grad():
        for name, layer in model.head.named_modules():  # type: ignore[union-attr]
            if name in ("cls_logits", "bbox_reg", "bbox_ctrness"):
                layer.weight.mul_(30.0)
    preprocess = Preprocess(size=64, channels=3, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    checkpoint = Checkpoint(model, preprocess, ("cat", "dog", "bird"), recipe, {})
    write_checkpoint(folder / "model.safetensors", checkpoint)


@pytest.fixture(scope="session")
def server(small_run: Path) -> Iterator[RunningServer]:
    """A server of that network under two names."""
    with run_server(f"small={small_run}", f"again={small_run}", "--engine", "torch") as running:
        yield running


@pytest.fixture(scope="session")
def client(server: RunningServer) -> "Iterator[httpx.Client]":
    import httpx

    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Images of several sizes, modes and formats."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    shapes = {
        "a.jpg": (90, 120, 3),
        "b.png": (40, 40, 3),
        "c.png": (64, 50),
        "d.webp": (33, 90, 4),
        "e.gif": (56, 56),
    }
    for name, shape in shapes.items():
        pixels = np.kron(rng.integers(0, 256, shape), np.ones((3, 3, 1)[: len(shape)])).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return [folder / name for name in shapes]


def predict_offline(
    run: Path, paths: list[Path], sizes: tuple[int, ...] = (), engine: str | None = "torch"
) -> list[dict[str, float]]:
    """Predict without a server: for each image, the classes and their probabilities, best first."""
    from googlenet.inference.loading import load_predictor
    from googlenet.inference.predict import PredictOptions, predict_images

    predictor = load_predictor(str(run), engine, task="classification").predictor
    options = PredictOptions(len(predictor.classes), sizes)
    predictions = predict_images(predictor, map(str, paths), options)
    return [{item.label: item.probability for item in prediction.top} for prediction in predictions]


def probabilities(top: list[dict[str, Any]]) -> dict[str, float]:
    """Convert the list of classes in a response to the format of `predict_offline`."""
    return {item["label"]: item["probability"] for item in top}


def png(size: int = 64, seed: int = 0) -> bytes:
    """Return the file of a random image."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


# Runs a program with some packages hidden from the import system.
_HIDE_PACKAGES = """
import runpy, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {packages}:
            raise ImportError(name + " is hidden")
sys.meta_path.insert(0, Finder())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def command_without_packages(packages: set[str], program: Path) -> list[str | Path]:
    """Return a command that runs a Python program in which `packages` cannot be imported."""
    return [sys.executable, "-I", "-c", _HIDE_PACKAGES.format(packages=packages), program]
