"""The commands and the code of the documentation, run as they are written (trainings and evaluations cut short)."""

import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from urllib.request import urlopen

import pytest
import torch
import torchvision

from conftest import BuildOnce, googlenet
from servers import served

ROOT = Path(__file__).parents[1]
# A translation has the same commands and pictures as the page it is of, which is the one that is run.
TRANSLATIONS = {ROOT / "docs" / "tour.zh-CN.md": ROOT / "docs" / "tour.md"}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SHORT = ["--data.limit=200", "--epochs=1", "--min_steps=4"]
FEW_SCENES = ["--data.source=scenes:train=12,test=4", "--data.validation=0"]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("googlenet ")]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a reader who followed along would have in the folder."""
    samples = ROOT / "docs" / "samples"
    shutil.copytree(samples, tmp_path / "docs" / "samples")
    for name in ("shoes", "tops"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number, picture in enumerate(sorted(samples.iterdir())):
            shutil.copy(picture, tmp_path / "photos" / name / f"{number}.png")
    shutil.copy(samples / "bag.png", tmp_path / "new-photo.jpg")
    theirs = torchvision.models.googlenet(weights=None, aux_logits=True, init_weights=False)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    monkeypatch.chdir(tmp_path)
    (packing,) = blocks(ROOT / "docs" / "data.md", "python")
    exec(packing, {})
    return tmp_path


def serve(arguments: list[str], page: Path, desk: Path) -> None:
    """Start a server, ask it what the page asks with curl, and stop it."""
    with served(*arguments[1:], cwd=desk) as server:
        assert urlopen(f"{server.url}/healthz").status == 200
        for line in "\n".join(blocks(page, "sh")).splitlines():
            if line.startswith("curl ") and shutil.which("curl"):
                asked = line.replace("http://127.0.0.1:8000", server.url).replace("curl ", "curl --fail --silent ", 1)
                subprocess.run(asked, shell=True, check=True, cwd=desk, stdout=subprocess.DEVNULL)
        server.process.terminate()
        assert server.process.wait(30) == 0


RUN = [page for page in PAGES if commands(page) and page not in TRANSLATIONS]


def words(line: str) -> list[str]:
    """A command without its name and its comment."""
    return shlex.split(line, comments=True)[1:]


def train(arguments: list[str], desk: Path, runs: dict[str, str], build_once: BuildOnce) -> None:
    """Put the run of a training command into the desk, trained once for all pages that show this command.

    `runs` maps the run folders on this desk to a digest of the commands that made them: a command that starts from
    ``runs/first`` is the same on two pages only if ``runs/first`` is.
    """
    at = arguments.index("--out")
    out, command = arguments[at + 1], arguments[:at] + arguments[at + 2 :]
    digest = hashlib.sha256("\0".join(runs.get(word, word) for word in command).encode()).hexdigest()[:16]

    def build(folder: Path) -> None:
        done = googlenet(*command, "--out", folder, cwd=desk)
        assert done.code == 0, f"{shlex.join(command)}\n{done.err}"

    shutil.copytree(build_once(f"docs-{digest}", build), desk / out)
    runs[out] = digest


# Pages whose commands are tried with every change; those of the others are of the same kinds, and take longer.
QUICK = {"README.md", "family.md", "weights.md"}


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=page.name, marks=[pytest.mark.slow] * (page.name not in QUICK)) for page in RUN],
)
def test_commands(page: Path, desk: Path, build_once: BuildOnce) -> None:
    runs: dict[str, str] = {}
    # What the README shows of another page's subject, word for word, is run with that page.
    others = [other for other in RUN if other != page and page.name == "README.md"]
    elsewhere = [words(line) for other in others for line in commands(other)]
    for line in commands(page):
        arguments = words(line)
        if arguments in elsewhere and arguments[0] != "train":
            continue
        if "train" in arguments[:2] and "--resume" not in arguments:
            arguments += SHORT
            if arguments[0] == "ensemble":
                arguments += ["--members=2", "--model.width=0.25"]
            elif arguments[1].startswith("scenes-"):
                arguments += FEW_SCENES
            elif not {"--model.weights", "--model.width"} & set(arguments):
                arguments += ["--model.width=0.25"]
            if "--out" in arguments and not (desk / arguments[arguments.index("--out") + 1]).exists():
                train(arguments, desk, runs, build_once)
                continue
        if arguments[0] == "evaluate" and ("--limit" not in arguments or "--crops" in arguments):
            arguments += ["--limit", "20"]
        if arguments[0] == "explain" and "--limit" not in arguments:
            arguments += ["--limit", "20"]
        if "--ray" in arguments and importlib.util.find_spec("ray") is None:
            continue
        if arguments[0] == "serve":
            serve(arguments, page, desk)
            continue
        done = googlenet(*arguments, cwd=desk)
        assert done.code == 0, f"{line}\n{done.err}"


@pytest.mark.parametrize("page", TRANSLATIONS, ids=lambda page: page.name)
def test_translations_have_the_same_commands_figures_and_pictures(page: Path) -> None:
    original = TRANSLATIONS[page]
    assert commands(page) == commands(original)
    texts = [each.read_text() for each in (page, original)]
    pictures, headings, figures = (
        [re.findall(pattern, text, re.MULTILINE) for text in texts]
        for pattern in (r"!\[[^]]*\]\(([^)]*)\)", r"^(#+ \d*)", r"\d+(?:,\d{3})+|\d\.\d{2,}")
    )
    assert pictures[0] == pictures[1]
    assert len(headings[0]) == len(headings[1])
    assert sorted(figures[0]) == sorted(figures[1])


def test_readme_python(smoke_run: Path) -> None:
    (code,) = blocks(ROOT / "README.md", "python")
    names: dict[str, object] = {
        "pixels": torch.randn(2, 3, 64, 64),
        "images": torch.zeros(3, 1, 28, 28, dtype=torch.uint8),
    }
    exec(code.replace("runs/first", str(smoke_run)), names)
    assert names["logits"].shape == (2, 10)
    assert len(names["names"]) == 3


@pytest.mark.parametrize("name", ["family.md", "weights.md", "insight.md"])
def test_python_of_the_pages(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for code in blocks(ROOT / "docs" / name, "python"):
        exec(code, {})


def test_diagrams_are_drawn_from_the_tables() -> None:
    spec = importlib.util.spec_from_file_location("diagrams", ROOT / "docs" / "diagrams.py")
    assert spec and spec.loader
    diagrams = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(diagrams)
    kept = {file.stem: file.read_text() for file in (ROOT / "docs" / "images" / "blocks").glob("*.svg")}
    assert kept == {name: diagrams.draw(drawing) for name, drawing in diagrams.drawings().items()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_exist(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} points to {target}"


def test_wheel_brings_the_recipes(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    assert (tmp_path / "site" / "googlenet" / "deployment" / "serving" / "page.html").is_file()
    code = "import googlenet.training.recipe_file as r; print(r.recipe_folder(), *r.list_recipes())"
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    said = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert said.startswith(str(tmp_path / "site"))
    assert "fashion-mnist-fast" in said
