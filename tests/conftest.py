"""What several tests share: the real data, a trained smoke run, and the command line as a user calls it."""

import io
import json
import os
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import settings

from googlenet import cli
from googlenet.data.fashion_mnist import find_fashion_mnist

pytest_plugins = ["servers"]

# Times vary with whatever else the machine does; what is checked does not.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


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


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory, fashion_mnist_folder: Path) -> Path:
    """A run of fashion-mnist-smoke, trained once for all tests that only read it."""
    run = tmp_path_factory.mktemp("runs") / "smoke"
    done = googlenet("train", "fashion-mnist-smoke", "--out", run, "--json")
    assert done.code == 0, done.err
    return run


@pytest.fixture(scope="session")
def scenes_run(tmp_path_factory: pytest.TempPathFactory, fashion_mnist_folder: Path) -> Path:
    """A run of scenes-smoke, trained once for all tests that only read it."""
    run = tmp_path_factory.mktemp("runs") / "scenes"
    done = googlenet("train", "scenes-smoke", "--out", run, "--json")
    assert done.code == 0, done.err
    return run


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"
