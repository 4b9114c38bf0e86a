"""A small network, pictures, and servers to ask: in a process of their own, or in a thread."""

import functools
import importlib.util
import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    import httpx

ROOT = Path(__file__).parents[1]


class Running(NamedTuple):
    """A server's address, and its process where it has one."""

    url: str
    process: subprocess.Popen[bytes]


@functools.cache
def hostile() -> Any:
    """benchmarks/hostile.py."""
    spec = importlib.util.spec_from_file_location("hostile", ROOT / "benchmarks" / "hostile.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["hostile"] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def served(*arguments: Any, cwd: Path | None = None) -> Iterator[Running]:
    """``googlenet serve`` in a process of its own, on a free port."""
    command = [sys.executable, "-m", "googlenet.cli", "serve", *map(str, arguments), "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=cwd)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said, process.stderr.read().decode() if process.stderr else ""
        yield Running(json.loads(said)["url"], process)
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=30)


@contextmanager
def in_thread(run: Path, key: str | None = None, engine: str | None = None, **limits: Any) -> Iterator[str]:
    """The same server in a thread, within other limits; its address."""
    from googlenet.deployment.serving.app import build_app
    from googlenet.deployment.serving.limits import Limits
    from googlenet.deployment.serving.metrics import Metrics
    from googlenet.deployment.serving.models import Models
    from googlenet.deployment.serving.server import Server, address_of, listen
    from googlenet.deployment.serving.service import Service
    from googlenet.verbs.serve import open_run

    metrics = Metrics()
    service = Service(
        Models({"small": str(run)}, lambda place: open_run(place, engine), metrics), Limits(**limits), metrics, 1
    )
    bound, started = listen("127.0.0.1", 0), threading.Event()
    server = Server(build_app(service, version="1.2.3", key=key, watch=0), started.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        assert started.wait(30)
        yield address_of(bound)
    finally:
        server.handle_exit(15, None)
        thread.join(30)


@pytest.fixture(scope="session")
def small_run(build_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A narrow network with batch normalisation for 64 pixels and five classes, its weights random."""
    return build_once("small", hostile().write_run)


@pytest.fixture(scope="session")
def server(small_run: Path) -> Iterator[Running]:
    """A server of that network."""
    with served(f"small={small_run}", f"again={small_run}") as running:
        yield running


@pytest.fixture(scope="session")
def client(server: Running) -> "Iterator[httpx.Client]":
    import httpx

    with httpx.Client(base_url=server.url, timeout=30) as made:
        yield made


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pictures of several shapes, modes and formats."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    made = []
    shapes = (
        ("a.jpg", (90, 120, 3)),
        ("b.png", (40, 40, 3)),
        ("c.png", (64, 50)),
        ("d.webp", (33, 90, 4)),
        ("e.gif", (56, 56)),
    )
    for name, shape in shapes:
        rows = np.kron(rng.integers(0, 256, shape), np.ones((3, 3, 1)[: len(shape)])).astype(np.uint8)
        Image.fromarray(rows).save(folder / name)
        made.append(folder / name)
    return made


def offline(run: Path, paths: list[Path], **options: Any) -> list[dict[str, float]]:
    """What `googlenet predict` says: for each picture, class to probability."""
    from googlenet.evaluation.predict import predict_pictures
    from googlenet.training.checkpoint import load

    checkpoint = load(run)
    answers = predict_pictures(
        checkpoint.model,
        checkpoint.preprocess,
        checkpoint.classes,
        map(str, paths),
        top=len(checkpoint.classes),
        **options,
    )
    return [{guess.label: guess.probability for guess in answer.top} for answer in answers]


def said(top: list[dict[str, Any]]) -> dict[str, float]:
    """A server's list of classes, in the form of `offline`."""
    return {one["label"]: one["probability"] for one in top}


def png(side: int = 64, seed: int = 0) -> bytes:
    """A picture's file."""
    rows = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(rows).save(buffer, "PNG")
    return buffer.getvalue()


# Runs a program where some packages cannot be imported.
_WITHOUT = """
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {refused}:
            raise ImportError(name + " is not here")
sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def without(packages: set[str], program: Path) -> list[str | Path]:
    """The command that runs a Python program where `packages` cannot be imported."""
    return [sys.executable, "-I", "-c", _WITHOUT.format(refused=packages), program]
