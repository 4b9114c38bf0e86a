"""What several tests share: the real data, trained runs, seeds, and the command line as a user calls it."""

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
from googlenet import cli
from googlenet.cache import cache_folder
from googlenet.data import fashion_mnist
from googlenet.data.fashion_mnist import find_fashion_mnist
from googlenet.data.preprocess import Preprocess
from googlenet.models import native

pytest_plugins = ["servers"]

# Changes the seeds of the tests that hold a training to an accuracy (marker "accuracy"), to measure their margins.
SEED = int(os.environ.get("TEST_SEED", "0"))

# Times vary with whatever else the machine does; what is checked does not.
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
    """Run the command line: here, or in a process of its own, which takes seconds to start."""
    if stdin is None and not env and not own_process:
        return called_here([str(argument) for argument in args], cwd)
    done = subprocess.run(
        [sys.executable, "-m", "googlenet.cli", *map(str, args)],
        input=stdin,
        capture_output=True,
        cwd=cwd,
        env={**os.environ, **env},
        timeout=300,
    )
    return Called(done.returncode, done.stdout.decode(), done.stderr.decode())


def called_here(arguments: list[str], cwd: Path | None) -> Called:
    """The exit code, and what was written to standard output and standard error."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err), chdir(cwd or Path.cwd()):
        try:
            code = cli.main(arguments)
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
    """Verify and unpack the data's files once in each process; a third of a second for each of 200 loads otherwise.

    Only those of the machine: folders that tests make are read each time.
    """
    read, kept = fashion_mnist._read_verified, dict[Path, dict[str, bytes]]()

    def read_once(folder: Path) -> dict[str, bytes]:
        if (
            folder not in (cache_folder() / "fashion-mnist", fashion_mnist.DEBIAN_FOLDER)
            or "XDG_CACHE_HOME" in os.environ
        ):
            return read(folder)
        if folder not in kept:
            kept[folder] = read(folder)
        return kept[folder]

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
    """A run of fashion-mnist-smoke, trained once for all tests that only read it."""
    return trained("fashion-mnist-smoke", name="smoke")


@pytest.fixture(scope="session")
def scenes_run(trained: Trained) -> Path:
    """A run of scenes-smoke, trained once for all tests that only read it."""
    return trained("scenes-smoke", name="scenes")


@pytest.fixture
def double_precision(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Train in float64: rounding then neither makes a difference between two runs nor hides one."""
    normalise = Preprocess.normalise
    monkeypatch.setattr(Preprocess, "normalise", lambda self, pixels: normalise(self, pixels.double()))
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def pytest_report_header() -> str:
    """Say which processor and which numbers the results are of."""
    variables = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "GOOGLENET_NATIVE")
    limits = [f"{name}={os.environ[name]}" for name in variables if name in os.environ]
    kernels = "compiled" if native.kernels() else "none"
    return (
        f"cpu: {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, kernels: {kernels}; "
        f"limits: {' '.join(limits) or 'none'}; TEST_SEED={SEED}"
    )


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> Iterator[None]:
    """Print the line coverage of each package, where it is measured (--cov)."""
    plugin = config.pluginmanager.getplugin("_cov")
    result = yield
    if plugin is not None and plugin.cov_controller is not None:
        for line in coverage_by_package(plugin.cov_controller.cov):
            terminalreporter.write_line(line)
    return result


def coverage_by_package(coverage: Any) -> list[str]:
    """A line for each package of src/: its statements, and the share of them that ran."""
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
        f"{row:<32}{statements[row]:>12,}{1 - missing[row] / statements[row]:>12.1%}"
        for row in rows
        if statements[row]
    ]


def seed_everything(name: str) -> int:
    """Seed Python, NumPy and PyTorch from a name; return the number."""
    number = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)
    return number


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> Iterator[None]:
    """Seed each fixture from its own name: its numbers depend neither on the order nor on the worker."""
    seed_everything(f"{fixturedef.baseid}::{fixturedef.argname}")
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Seed each test from its own name, and print the number, which a failure then shows."""
    print(f"seed {seed_everything(item.nodeid)}")
    return (yield)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"
