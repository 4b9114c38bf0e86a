"""``googlenet explain`` on the command line: results of every method, images, and error messages."""

import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

import googlenet as package
from conftest import googlenet
from googlenet.checkpoint.format import Checkpoint, build_network, write_checkpoint
from googlenet.cli.main import main
from googlenet.data.sources import LoadOptions, load_dataset
from googlenet.explain import ANALYSES

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
CLASSES = load_dataset("fashion-mnist", LoadOptions(validation=0)).classes
SAMPLE = Path(__file__).parents[2] / "docs" / "samples" / "dress.png"


def write_network(path: Path, channels: int = 1, size: int = 28, **model: object) -> Path:
    """Write an untrained network to a file."""
    flags = [f"--model.{key}={value}" for key, value in model.items()]
    recipe = package.read_recipe("fashion-mnist-fast", flags)
    network = build_network(recipe, len(CLASSES), channels).eval()
    preprocess = package.Preprocess(size, channels, (0.3,) * channels, (0.35,) * channels)
    write_checkpoint(path, Checkpoint(network, preprocess, CLASSES, recipe, {}))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("networks") / "small.safetensors"
    return write_network(path, width_mult=0.1, stem_stride=2, aux="true")


@pytest.fixture(scope="module")
def explained(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Run all methods once; return the output folder and the JSON document."""
    out = tmp_path_factory.mktemp("explained") / "nested" / "folder"
    result = googlenet("explain", run, SAMPLE, SAMPLE, "--out", out, "--methods", "all", "--max-images", 40, "--json")
    assert result.code == 0, result.err
    return out, result.json


def test_every_method_has_results_and_images(explained: tuple[Path, dict[str, Any]]) -> None:
    out, document = explained
    assert list(document) == ["files", *ANALYSES]
    files = [Path(file) for file in document["files"]]
    assert sorted(file.name for file in files) == sorted(path.name for path in out.iterdir())
    names = [
        f"{prefix}{method}.png"
        for method, analysis in ANALYSES.items()
        for prefix in (("dress-", "dress-2-") if analysis.needs_image else ("",))
    ]
    assert [file.name for file in files] == [*names, "explain.html"]
    for file in files[:-1]:
        with Image.open(file) as image:
            assert image.width == 800
            assert len(np.unique(np.asarray(image.convert("L")))) > 20, "the image is not empty"


def test_the_results_are_consistent(explained: tuple[Path, dict[str, Any]], run: Path) -> None:
    document = explained[1]
    checkpoint = package.load(run)
    cam = document["cam"][0]
    assert cam["map"] == [2, 2]
    for row in cam["classes"]:
        bias = checkpoint.model.classifier.bias[checkpoint.classes.index(row["label"])].item()
        assert row["map_mean"] + bias == pytest.approx(row["logit"], abs=1e-4)
    best = cam["classes"][0]
    assert document["gradcam"][0]["label"] == best["label"]
    assert [stage["stage"] for stage in document["gradcam"][0]["stages"]][-1] == "inception_5b"
    sweep = document["sizes"][0]
    curve = next(row for row in sweep["classes"] if row["label"] == best["label"])
    assert curve["probability"][sweep["sizes"].index(28)] == pytest.approx(best["probability"], abs=1e-5)
    assert len(document["filters"]["filters"]) == 16
    assert len(document["branches"]["rows"]) == 36
    assert [row["head"] for row in document["probes"]["heads"]] == ["inception_4a", "inception_4d", "classifier"]
    assert document["probes"]["heads"][-1]["top1"] == pytest.approx(document["branches"]["top1"])
    assert {row["steps"] for row in document["gradients"]} == {0, 1}
    assert sum(document["units"]["blocks"]) == document["units"]["units"]


def test_the_page_has_no_external_resources(explained: tuple[Path, dict[str, Any]]) -> None:
    page = (explained[0] / "explain.html").read_text()
    assert re.findall(r"""(?:src|href)=["'](?!data:|#)([^"']*)""", page) == []
    assert page.count("<img ") == 11


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; make test installs it if apt-get is allowed")
def test_the_page_in_chromium(explained: tuple[Path, dict[str, Any]]) -> None:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 800, "height": 900})
        page.goto((explained[0] / "explain.html").as_uri())
        images = page.locator("section img")
        assert images.count() == 11
        assert all(images.nth(i).evaluate("img => img.naturalWidth") == 800 for i in range(11))
        assert page.evaluate("document.documentElement.scrollWidth") <= 800, "no horizontal scrolling"
        browser.close()


def explain(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run the command in this process, which is faster; return exit code, standard output and standard error."""
    code = 2
    try:
        code = main(["explain", *map(str, arguments)])
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    output = capsys.readouterr()
    return code, output.out, output.err


def test_help_lists_the_methods(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = explain(capsys, "--help")
    assert all(f"  {name:<11}{analysis.help}" in out for name, analysis in ANALYSES.items())


@pytest.mark.slow
def test_color_and_another_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_network(
        tmp_path / "net.safetensors", channels=3, size=32, name="bn_inception", pool_mode="null", spp_levels="[1,2]"
    )
    photo = tmp_path / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)).save(photo)
    flags = ["--methods", "cam,gradcam,sizes,branches", "--sizes", "32,41", "--stage", "conv3", "--class", "Bag"]
    code, out, err = explain(capsys, file, photo, "--out", tmp_path, *flags, "--max-images", 8, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert [row["label"] for row in document["cam"][0]["classes"]] == ["Bag"]
    assert document["sizes"][0]["sizes"] == [32, 41]
    assert [stage["stage"] for stage in document["gradcam"][0]["stages"]] == ["conv3"]
    assert {row["branch"] for row in document["branches"]["rows"]} == {"conv1x1", "conv3x3", "double3x3", "pool"}
    assert all(Path(file).is_file() for file in document["files"])


def test_a_map_of_one_position_is_reported(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = explain(capsys, run, SAMPLE, "--out", tmp_path / "out", "--size", 14, "--methods", "cam")
    assert code == 0
    assert "at 14 px the map has one position and shows no location" in out
    assert "written: " in out


def test_sections_in_the_report_are_replaced(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(run, folder / "model.safetensors")
    command = [folder, SAMPLE, "--out", tmp_path / "out", "--report", "--methods"]
    assert "no such file; --report requires" in explain(capsys, *command, "cam")[2]
    (folder / "report.html").write_text("<html><body><main><h1>Run</h1>\n</main></body></html>")
    for method in ("cam", "sizes"):
        code, _, err = explain(capsys, *command, method)
        assert code == 0, err
    page = (folder / "report.html").read_text()
    assert page.count("<section>") == 1
    assert "Class probabilities by image size" in page
    assert "<h1>Run</h1>" in page


ERRORS = {
    "no image": (["--methods", "cam"], 2, "cam require an image"),
    "unknown method": ([SAMPLE, "--methods", "cams"], 2, "or all, not 'cams'"),
    "no data images": (
        [SAMPLE, "--methods", "filters", "--max-images", 0],
        2,
        "must be an integer of 1 or more",
    ),
    "unknown class": ([SAMPLE, "--class", "Sandals"], 1, "unknown class 'Sandals' (did you mean Sandal"),
    "unknown stage": ([SAMPLE, "--stage", "inception_4f"], 1, "unknown layer 'inception_4f' (did you mean"),
    "missing image": ([SAMPLE, "missing.png"], 1, "missing.png: no such file"),
    "too small": ([SAMPLE, "--size", 0], 1, "size 0 is too small"),
    "sizes": ([SAMPLE, "--sizes", "24,x"], 2, "expected integers separated by commas"),
    "no data": (["--methods", "branches", "--data", "folder:/missing"], 1, "/missing"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_one_line_and_nothing_is_written(
    case: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, code, message = ERRORS[case]
    result, out, err = explain(capsys, run, *arguments, "--out", tmp_path / "out")
    assert (result, out) == (code, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_is_a_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("content")
    code, _, err = explain(capsys, run, SAMPLE, "--out", tmp_path / "out")
    assert (code, (tmp_path / "out").read_text()) == (1, "content")
    assert "name a folder with --out" in err


@pytest.mark.parametrize(("missing", "method"), [("captum", "gradcam"), ("scipy", "filters"), ("scipy", "units")])
def test_missing_packages_are_reported(
    missing: str, method: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name in [name for name in sys.modules if name.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    flags = ["--out", tmp_path / "out", "--methods", method, "--max-images", 5]
    code, _, err = explain(capsys, run, SAMPLE, *flags)
    assert code == 1
    assert "pip install 'googlenet[explain]'" in err


def test_an_image_on_standard_input(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(SAMPLE.read_bytes())))
    code, out, err = explain(capsys, run, "-", "--out", tmp_path, "--json", "--methods", "cam")
    assert code == 0, err
    assert (tmp_path / "standard-input-cam.png").is_file()
    assert json.loads(out)["cam"][0]["path"] == "-"
