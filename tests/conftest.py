"""Shared fixtures: data, trained runs, seeds, and the command line."""

import hashlib
import io
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import settings

import googlenet as googlenet_package
from googlenet import kernels
from googlenet.cli import main
from googlenet.data.preprocess import Preprocess
from googlenet.data.sources import fashion_mnist
from googlenet.data.sources.fashion_mnist import find_fashion_mnist
from googlenet.files import cache_folder

pytest_plugins = ["exported_folders", "servers"]

# Changes the seeds of the tests that hold a training to an accuracy (marker "accuracy"), to measure their margins.
SEED = int(os.environ.get("TEST_SEED", "0"))
NUM_THREADS = torch.get_num_threads()

# No deadline: execution times depend on the load of the machine.
settings.register_profile("repeatable", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("repeatable")


class Called(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def googlenet(
    *args: Any, stdin: bytes | None = None, cwd: Path | None = None, own_process: bool = False, **env: str
) -> Called:
    """Run the command line in this process, or in a new one, which takes seconds to start."""
    if stdin is None and not env and not own_process:
        return call_in_process([str(argument) for argument in args], cwd)
    done = subprocess.run(
        [sys.executable, "-m", "googlenet", *map(str, args)],
        input=stdin,
        capture_output=True,
        cwd=cwd,
        env={**os.environ, **env},
        timeout=300,
    )
    return Called(done.returncode, done.stdout.decode(), done.stderr.decode())


def call_in_process(arguments: list[str], cwd: Path | None) -> Called:
    """Return the exit code, standard output and standard error."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err), chdir(cwd or Path.cwd()):
        try:
            code = main.main(arguments)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    out.seek(0)
    err.seek(0)
    return Called(code, out.read(), err.read())


@pytest.fixture(scope="session")
def fashion_mnist_folder() -> Path:
    return find_fashion_mnist()


@pytest.fixture(scope="session", autouse=True)
def read_fashion_mnist_once() -> Iterator[None]:
    """Verify and unpack the data files once per process instead of 200 times (0.3 s each).

    Folders made by tests are read every time.
    """
    read, cached = fashion_mnist._read_verified, dict[Path, dict[str, bytes]]()

    def read_once(folder: Path) -> dict[str, bytes]:
        if (
            folder not in (cache_folder() / "fashion-mnist", fashion_mnist.DEBIAN_FOLDER)
            or "XDG_CACHE_HOME" in os.environ
        ):
            return read(folder)
        if folder not in cached:
            cached[folder] = read(folder)
        return cached[folder]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fashion_mnist, "_read_verified", read_once)
        yield


Build = Callable[[Path], object]
BuildOnce = Callable[[str, Build], Path]
Trained = Callable[..., Path]


@pytest.fixture(scope="session")
def build_once(tmp_path_factory: pytest.TempPathFactory) -> BuildOnce:
    """Build a folder once for the whole suite: ``build_once(name, build)`` calls ``build(folder)`` and returns it.

    The workers of pytest-xdist are processes with fixtures of their own. The first one that needs the folder builds
    it while the others wait. The folder is shared, so tests only read it; copy it to change it.
    """
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    root.mkdir(exist_ok=True)

    def once(name: str, build: Build) -> Path:
        folder, done = root / name / name, root / f"{name}.done"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                folder.parent.mkdir(exist_ok=True)
                build(folder)
                done.touch()
        return folder

    return once


@pytest.fixture(scope="session")
def trained(build_once: BuildOnce, fashion_mnist_folder: Path) -> Trained:
    """Train a run once for the whole suite: ``trained(recipe, *flags)`` returns the folder of that training."""

    def run(*arguments: str, name: str | None = None) -> Path:
        def build(folder: Path) -> None:
            done = googlenet("train", *arguments, "--out", folder, "--json")
            assert done.code == 0, done.err

        digest = hashlib.sha256("\0".join(arguments).encode()).hexdigest()[:16]
        return build_once(name or f"run-{digest}", build)

    return run


@pytest.fixture(scope="session")
def smoke_run(trained: Trained) -> Path:
    """Return a run of fashion-mnist-smoke, trained once for all tests that only read it."""
    return trained("fashion-mnist-smoke", name="smoke")


@pytest.fixture(scope="session")
def scenes_run(trained: Trained) -> Path:
    """Return a run of scenes-smoke, trained once for all tests that only read it."""
    return trained("scenes-smoke", name="scenes")


@pytest.fixture
def double_precision(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Train in float64, so that rounding neither causes nor hides a difference between two runs."""
    normalize = Preprocess.normalize
    monkeypatch.setattr(Preprocess, "normalize", lambda self, pixels: normalize(self, pixels.double()))
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def pytest_report_header() -> str:
    """Print the CPU configuration of the results."""
    variables = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "GOOGLENET_NATIVE")
    limits = [f"{name}={os.environ[name]}" for name in variables if name in os.environ]
    compiled = "compiled" if kernels.load_kernels() else "none"
    return (
        f"cpu: {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, kernels: {compiled}; "
        f"limits: {' '.join(limits) or 'none'}; TEST_SEED={SEED}"
    )


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> Iterator[None]:
    """Print the line coverage of each package if it is measured (--cov)."""
    plugin = config.pluginmanager.getplugin("_cov")
    result = yield
    if plugin is not None and plugin.cov_controller is not None:
        for line in coverage_by_package(plugin.cov_controller.cov):
            terminalreporter.write_line(line)
    return result


def coverage_by_package(coverage: Any) -> list[str]:
    """Return a line per package: the number of statements and the fraction that ran."""
    root = Path(googlenet_package.__file__).parent
    statements, missing = Counter[str](), Counter[str]()
    for file in coverage.get_data().measured_files():
        if Path(file).is_relative_to(root):
            package = ".".join(("googlenet", *Path(file).relative_to(root).parts[:-1]))
            _, found, _, missed, _ = coverage.analysis2(file)
            statements[package] += len(found)
            missing[package] += len(missed)
    rows = [*sorted(statements), "total"]
    statements["total"], missing["total"] = statements.total(), missing.total()
    return ["", f"{'coverage by package':<32}{'statements':>12}{'lines run':>12}"] + [
        f"{row:<32}{statements[row]:>12,}{1 - missing[row] / statements[row]:>12.1%}" for row in rows if statements[row]
    ]


def seed_everything(name: str) -> int:
    """Seed Python, NumPy and PyTorch from a name; return the seed."""
    number = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)
    return number


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> Iterator[None]:
    """Seed each fixture from its name, independent of the order and the worker."""
    torch.set_num_threads(NUM_THREADS)
    seed_everything(f"{fixturedef.baseid}::{fixturedef.argname}")
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Seed each test from its name and print the seed, which pytest shows for a failure.

    Engines set the threads of the process, and the sums of a training depend on their number.
    """
    torch.set_num_threads(NUM_THREADS)
    print(f"seed {seed_everything(item.nodeid)}")
    return (yield)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"
