"""``googlenet explain`` as a user calls it: every answer, pictures that can be read, one line for every mistake."""

import io
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

import googlenet as package
from conftest import googlenet
from googlenet.cli import main
from googlenet.data.sources import load_dataset
from googlenet.training.checkpoint import Checkpoint, build_model, save_weights

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
CLASSES = load_dataset("fashion-mnist", validation=0).classes
SAMPLE = Path(__file__).parents[2] / "docs" / "samples" / "dress.png"
QUESTIONS = ["cam", "gradcam", "scales", "filters", "paths", "depth", "gradients", "units"]


def network(path: Path, channels: int = 1, size: int = 28, **model: object) -> Path:
    """An untrained network in a file of its own."""
    flags = [f"--model.{key}={value}" for key, value in model.items()]
    recipe = package.read_recipe("fashion-mnist-fast", flags)
    built = build_model(recipe, len(CLASSES), channels).eval()
    preprocess = package.Preprocess(size, channels, (0.3,) * channels, (0.35,) * channels)
    save_weights(path, Checkpoint(built, preprocess, CLASSES, recipe, {}))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return network(tmp_path_factory.mktemp("networks") / "small.safetensors", width=0.1, stem_stride=2, aux="true")


@pytest.fixture(scope="module")
def explained(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """Everything that can be asked, answered once."""
    out = tmp_path_factory.mktemp("explained") / "deep" / "inside"
    done = googlenet("explain", run, SAMPLE, SAMPLE, "--out", out, "--what", "all", "--limit", 40, "--json")
    assert done.code == 0, done.err
    return out, done.json


def test_every_question_has_figures_and_pictures(explained: tuple[Path, dict]) -> None:
    out, answer = explained
    assert list(answer) == ["files", *QUESTIONS]
    files = [Path(file) for file in answer["files"]]
    assert sorted(file.name for file in files) == sorted(path.name for path in out.iterdir())
    names = [f"dress{again}-{what}.png" for what in QUESTIONS[:3] for again in ("", "-2")]
    assert [file.name for file in files] == [*names, *(f"{what}.png" for what in QUESTIONS[3:]), "explain.html"]
    for file in files[:-1]:
        with Image.open(file) as picture:
            assert picture.width == 800
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20, "something is drawn"


def test_the_figures_belong_together(explained: tuple[Path, dict], run: Path) -> None:
    answer = explained[1]
    checkpoint = package.load(run)
    seen = checkpoint.classes
    first = answer["cam"][0]
    assert first["map"] == [2, 2]
    for row in first["classes"]:
        bias = checkpoint.model.classifier.bias[seen.index(row["label"])].item()
        assert row["map_mean"] + bias == pytest.approx(row["logit"], abs=1e-4)
    assert answer["gradcam"][0]["label"] == first["classes"][0]["label"]
    assert [stage["stage"] for stage in answer["gradcam"][0]["stages"]][-1] == "inception_5b"
    at_size = answer["scales"][0]
    place = at_size["sizes"].index(28)
    best = next(row for row in at_size["classes"] if row["label"] == first["classes"][0]["label"])
    assert best["probability"][place] == pytest.approx(first["classes"][0]["probability"], abs=1e-5)
    assert len(answer["filters"]["filters"]) == 16
    assert len(answer["paths"]["rows"]) == 36
    assert [row["head"] for row in answer["depth"]["heads"]] == ["inception_4a", "inception_4d", "classifier"]
    assert answer["depth"]["heads"][-1]["top1"] == pytest.approx(answer["paths"]["top1"])
    assert {row["steps"] for row in answer["gradients"]} == {0, 1}
    assert sum(answer["units"]["blocks"]) == answer["units"]["units"]


def test_the_page_asks_nobody_for_anything(explained: tuple[Path, dict]) -> None:
    page = (explained[0] / "explain.html").read_text()
    assert re.findall(r"""(?:src|href)=["'](?!data:|#)([^"']*)""", page) == []
    assert page.count("<img ") == 11


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; make test installs it where apt-get may be used")
def test_the_page_in_chromium(explained: tuple[Path, dict]) -> None:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 800, "height": 900})
        page.goto((explained[0] / "explain.html").as_uri())
        pictures = page.locator("section img")
        assert pictures.count() == 11
        assert all(pictures.nth(i).evaluate("img => img.naturalWidth") == 800 for i in range(11))
        assert page.evaluate("document.documentElement.scrollWidth") <= 800, "nothing sticks out sideways"
        browser.close()


def ask(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """In this process: quicker where a test does not need one of its own."""
    code = 2
    try:
        code = main(["explain", *map(str, arguments)])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_colour_and_another_member(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = network(
        tmp_path / "net.safetensors", channels=3, size=32, name="bn_inception", pools="null", pyramid="[1,2]"
    )
    photo = tmp_path / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)).save(photo)
    what = ["--what", "cam,gradcam,scales,paths", "--sizes", "32,41", "--stage", "conv3"]
    code, out, err = ask(capsys, file, photo, "--out", tmp_path, *what, "--class", "Bag", "--limit", 8, "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert [row["label"] for row in answer["cam"][0]["classes"]] == ["Bag"]
    assert answer["scales"][0]["sizes"] == [32, 41]
    assert [stage["stage"] for stage in answer["gradcam"][0]["stages"]] == ["conv3"]
    assert {row["path"] for row in answer["paths"]["rows"]} == {"conv1x1", "conv3x3", "double3x3", "pool"}
    assert all(Path(picture).is_file() for picture in answer["files"])


def test_a_map_of_one_position_says_so(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ask(capsys, run, SAMPLE, "--out", tmp_path / "out", "--size", 14, "--what", "cam")
    assert code == 0
    assert "one position at 14 px: it cannot say where" in out
    assert "written: " in out


def test_sections_go_into_the_runs_report_once(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(run, folder / "model.safetensors")
    order = [folder, SAMPLE, "--out", tmp_path / "out", "--report", "--what"]
    assert "no such file; --report is for" in ask(capsys, *order, "cam")[2]
    (folder / "report.html").write_text("<html><body><main><h1>Run</h1>\n</main></body></html>")
    for what in ("cam", "scales"):
        code, _, err = ask(capsys, *order, what)
        assert code == 0, err
    page = (folder / "report.html").read_text()
    assert page.count("<section>") == 1
    assert "several sizes" in page and "<h1>Run</h1>" in page


WRONG = {
    "no picture": (["--what", "cam"], 2, "cam look at a picture"),
    "unknown question": ([SAMPLE, "--what", "cams"], 2, "or all, not 'cams'"),
    "no pictures to look at": ([SAMPLE, "--what", "filters", "--limit", 0], 2, "--limit must be 1 or more"),
    "unknown class": ([SAMPLE, "--class", "Sandals"], 1, "knows no class 'Sandals' (did you mean Sandal"),
    "unknown stage": ([SAMPLE, "--stage", "inception_4f"], 1, "no layer is called 'inception_4f' (did you mean"),
    "missing picture": ([SAMPLE, "nowhere.png"], 1, "nowhere.png: no such file"),
    "too small": ([SAMPLE, "--size", 0], 1, "size 0 is too small"),
    "sizes": ([SAMPLE, "--sizes", "24,x"], 2, "whole numbers and commas"),
    "no data": (["--what", "paths", "--data", "folder:/nowhere"], 1, "/nowhere"),
}


@pytest.mark.parametrize("case", WRONG)
def test_one_line_and_nothing_written(
    case: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, code, says = WRONG[case]
    found, out, err = ask(capsys, run, *arguments, "--out", tmp_path / "out")
    assert (found, out) == (code, "")
    assert says in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_out_that_is_a_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("mine")
    code, _, err = ask(capsys, run, SAMPLE, "--out", tmp_path / "out")
    assert (code, (tmp_path / "out").read_text()) == (1, "mine")
    assert "name a folder with --out" in err


@pytest.mark.parametrize(("missing", "what"), [("captum", "gradcam"), ("scipy", "filters"), ("scipy", "units")])
def test_what_is_not_installed_is_named(
    missing: str, what: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name in [name for name in sys.modules if name.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    code, _, err = ask(capsys, run, SAMPLE, "--out", tmp_path / "out", "--what", what, "--limit", 5)
    assert code == 1
    assert "pip install 'googlenet[insight]'" in err


def test_a_picture_on_standard_input(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(SAMPLE.read_bytes())))
    code, out, err = ask(capsys, run, "-", "--out", tmp_path, "--json", "--what", "cam")
    assert code == 0, err
    assert (tmp_path / "standard-input-cam.png").is_file()
    assert json.loads(out)["cam"][0]["path"] == "-"
