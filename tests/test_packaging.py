"""The package as users install it: metadata, and the wheel in a new environment without checkout and compiler."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from json import loads
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import yaml

import googlenet
from conftest import BuildOnce
from googlenet.data.sources.fashion_mnist import find_fashion_mnist
from googlenet.kernels import build

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "googlenet"
# The modules of the packages whose modules have other names, and what is imported for a package that torch imports.
MODULES = {
    "pillow": "PIL", "PyYAML": "yaml", "huggingface-hub": "huggingface_hub", "protobuf": "google.protobuf",
}  # fmt: skip


def test_dependencies_have_reasons_and_are_used() -> None:
    """Each has a comment in pyproject.toml, the same line in docs/install.md, and an import in the source."""
    (block,) = re.findall(r"^dependencies = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    page = (ROOT / "docs" / "install.md").read_text()
    source = "\n".join(path.read_text() for path in SOURCE.rglob("*.py"))
    for line in block.splitlines():
        match = re.fullmatch(r'  "([\w-]+)[^"]*",  # (.+)', line)
        assert match, f"no reason: {line}"
        name, reason = match.groups()
        assert f"| {name} | {reason} |" in page
        used = rf"\b(import|from) {re.escape(MODULES.get(name, name))}\b|TrackerSpec\(\"{name}\""
        assert re.search(used, source), name


def test_extras_are_described() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    table = (ROOT / "docs" / "install.md").read_text().partition("| extra |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines()[2:]))) == (
        extras.keys() - {"dev"}
    )


def test_citation_has_the_version_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == googlenet.__version__
    assert f"## {googlenet.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def build_wheel(folder: Path) -> None:
    environment = {**os.environ, "GOOGLENET_PREBUILT": "1"}
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(build_once: BuildOnce) -> Path:
    if not sys.platform.startswith("linux") or not build.find_compiler():
        pytest.skip("the wheel with kernels is built on Linux, with a C compiler")
    (path,) = build_once("wheel", build_wheel).glob("*.whl")
    return path


@pytest.mark.release
def test_wheel_contains_all_files(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for file in (path.relative_to(SOURCE) for path in SOURCE.rglob("*") if path.is_file()):
        if not any(part.startswith((".", "__pycache__")) for part in file.parts):
            assert f"googlenet/{file.as_posix()}" in names, f"not in the wheel: {file}"
    for folder, target in ((ROOT / "recipes", "recipes"), (ROOT / "docs" / "samples", "samples")):
        assert all(f"googlenet/{target}/{file.name}" in names for file in folder.iterdir())
    for level in build.PREBUILT_LEVELS:
        assert f"googlenet/kernels/prebuilt/{level}.so" in names


@contextmanager
def new_environment(folder: Path, wheel: Path) -> Iterator[dict[str, str]]:
    """Yield the variables of a virtual environment that has the wheel, this one's other packages and no compiler."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(install, check=True)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    # After the environment's own packages. Folders named in .pth files are searched, but their .pth files not followed.
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    hidden = {"CC", "PYTHONPATH", build.ENV_VARIABLE}
    yield {name: value for name, value in os.environ.items() if name not in hidden} | {
        "PATH": str(folder / "bin"), "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1",
        "GOOGLENET_DATA": str(find_fashion_mnist()),
    }  # fmt: skip


@pytest.mark.release
def test_wheel_in_a_new_environment(wheel: Path, tmp_path: Path) -> None:
    """Download, train, predict, export and serve outside the checkout; the kernels are those of the wheel."""
    with new_environment(tmp_path / "env", wheel) as environment:

        def run(*arguments: str) -> Any:
            command = [str(tmp_path / "env" / "bin" / "googlenet"), *arguments, "--json"]
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return loads(done.stdout)

        doctor = run("doctor")["kernels"]
        assert doctor["prebuilt"] or build.missing_features("avx2"), doctor
        assert len(run("download", "fashion-mnist")["files"]) == 4
        run("train", "fashion-mnist-smoke", "--epochs", "1", "--out", "run")
        assert loads((tmp_path / "run" / "environment.json").read_text())["native_kernels"] is True
        assert not list((tmp_path / "env" / "cache").rglob("*.so")), "the kernels were compiled"
        bag = ROOT / "docs" / "samples" / "bag.png"
        (prediction,) = run("predict", "run", str(bag))
        run("export", "run", "--format", "onnx", "--out", "exported")
        (exported,) = run("predict", "exported", str(bag), "--engine", "onnxruntime")
        assert exported["top"][0]["label"] == prediction["top"][0]["label"]
        assert predict_over_http(tmp_path, environment, bag) == prediction["top"][0]["label"]


def predict_over_http(folder: Path, environment: dict[str, str], image: Path) -> str:
    """Serve the run, and return the label of the most probable class of an image."""
    command = [str(folder / "env" / "bin" / "googlenet"), "serve", "run", "--engine", "torch", "--port", "0", "--json"]
    server = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert server.stdout is not None
        url = loads(server.stdout.readline())["url"]
        request = Request(f"{url}/v1/predict", image.read_bytes(), {"Content-Type": "image/png"})
        answer = loads(urlopen(request).read())
    finally:
        server.terminate()
        server.communicate(timeout=30)
    assert server.returncode == 0
    return str(answer["images"][0]["top"][0]["label"])
