"""The scripts of benchmarks/: each starts, the profile recognizes the native kernels, the tables show the results."""

import ast
import importlib
import importlib.util
import json
import re
import runpy
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from googlenet import kernels
from googlenet.kernels import conv_bn_relu, winograd

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
# Modules of other scripts, and a script without arguments.
NOT_BENCHMARKS = {"_cli", "d2l_baseline", "own_images_data", "plain_training", "update_docs"}
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem not in NOT_BENCHMARKS)
# It writes results for each kind of processor.
OWN_TARGET = "race"


@pytest.fixture(autouse=True)
def import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts import each other as modules of one folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_starts(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its imports exist, and `make bench-NAME` can read its JSON document."""
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as exited:
        runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
    assert exited.value.code == 0
    output = capsys.readouterr().out
    assert "--json" in output
    assert (f"make {name}" if name == OWN_TARGET else f"make bench-{name}") in " ".join(output.split())


@pytest.mark.parametrize("name", [*SCRIPTS, *sorted(NOT_BENCHMARKS)])
def test_names_imported_inside_functions_exist(name: str) -> None:
    """Many scripts import inside functions, which `--help` does not execute."""
    for node in ast.walk(ast.parse((BENCHMARKS / f"{name}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "googlenet":
            module = importlib.import_module(node.module)
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                assert hasattr(module, alias.name) or importlib.util.find_spec(submodule), submodule


# Results of a benchmark with other arguments.
OWN_COMMANDS = {
    "deployment_avx2": "benchmarks/deployment.py --limit-isa avx2",
    "serving_bfloat16": "benchmarks/serving.py --engine openvino:bfloat16",
    "ablation_slim": "benchmarks/ablation.py --recipe fashion-mnist-slim",
}


def test_make_lists_every_benchmark() -> None:
    (names,) = re.findall(r"^BENCHMARKS := ((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert names.replace("\\\n", " ").split() == [name for name in SCRIPTS if name != OWN_TARGET]


@pytest.mark.skipif(kernels.load_kernels() is None, reason="GOOGLENET_NATIVE=0, or no C compiler with OpenMP")
def test_profile_recognizes_the_native_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """It replaces the calls of kernels to record their names: every kind has time, and little is "other"."""
    for module in (conv_bn_relu, winograd):
        monkeypatch.setattr(module, "call", module.call)
    step_profile = importlib.import_module("step_profile")
    milliseconds = step_profile.profile_step(step_profile.googlenet_step(28), steps=1)
    recognized = {row for row, value in milliseconds.items() if value > 0}
    assert {"matrix products of the native kernels", "Winograd transforms", "max pooling", "optimizer"} <= recognized
    assert milliseconds["other"] < sum(milliseconds.values()) / 3


def results() -> list[Path]:
    return sorted((BENCHMARKS / "results").glob("*.json"))


@pytest.mark.parametrize("result", results(), ids=lambda path: path.stem)
def test_tables_show_the_results(result: Path) -> None:
    """No result in the documentation is typed by hand: a page's table is generated from the result."""
    update_docs: Any = importlib.import_module("update_docs")
    page = (ROOT / "docs" / update_docs.PAGES.get(result.stem, "performance.md")).read_text()
    document = json.loads(result.read_text())
    assert update_docs.fill(page, result.stem, update_docs.TABLES[result.stem](document)) == page


def test_the_race_shows_its_results() -> None:
    """One table for each kind of processor, whose log is next to the result."""
    update_docs: Any = importlib.import_module("update_docs")
    page = (ROOT / "docs" / "race.md").read_text()
    files = sorted((BENCHMARKS / "results" / "race").glob("*.json"))
    documents = {file.stem: json.loads(file.read_text()) for file in files}
    assert update_docs.REFERENCE in documents
    assert update_docs.fill(page, "race", update_docs.training.races(documents)) == page
    for file in files:
        log = file.with_suffix(".log").read_text()
        assert log.startswith("commit ") and "recipe fashion-mnist-fast" in log
        for row in documents[file.stem]["rows"]:
            assert f"{row['ratio']} times as fast as the textbook" in log


def test_every_table_has_a_result_or_says_that_it_has_none() -> None:
    update_docs: Any = importlib.import_module("update_docs")
    measured = {path.stem for path in results()}
    assert measured <= set(update_docs.TABLES)
    for name in set(update_docs.TABLES) - measured:
        page = (ROOT / "docs" / update_docs.PAGES.get(name, "performance.md")).read_text()
        command = OWN_COMMANDS.get(name, f"make bench-{name}")
        (text,) = re.findall(rf"<!-- {name} -->\n(.*?)<!-- end -->", page, re.DOTALL)
        assert text.startswith("Not measured yet on this version") and command in text


@pytest.mark.slow
def test_plots_show_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plots of the documentation are drawn for existing results and linked by a page."""
    update_docs: Any = importlib.import_module("update_docs")
    monkeypatch.setattr(update_docs, "IMAGES", tmp_path)
    for name, plot in update_docs.PLOTS.items():
        plot(json.loads((BENCHMARKS / "results" / f"{name}.json").read_text()))
    update_docs.plot_race(json.loads((BENCHMARKS / "results" / "race" / f"{update_docs.REFERENCE}.json").read_text()))
    pages = "".join((ROOT / "docs" / page).read_text() for page in ("performance.md", "race.md"))
    for path in tmp_path.iterdir():
        assert f"images/{path.name}" in pages


def test_tables_of_unmeasured_benchmarks() -> None:
    """The tables whose results are not published yet, with invented numbers."""
    update_docs: Any = importlib.import_module("update_docs")
    row = {"name": "ours", "precision": "torch float32", "settings": "default", "batch": 1, "size": 224, "threads": 0,
           "latency": 0.0123, "p95": 0.02, "images_per_second": 81.3, "memory": 5e6, "top1": 0.8861}  # fmt: skip
    speedup = {"name": "ours", "peer": "theirs (bfloat16)", "batch": 8, "ratio": 1.234, "low": 1.1, "high": 1.5}
    document = {
        "rows": [row, {**row, "name": "theirs", "settings": "float32", "threads": 2, "top1": None}],
        "speedups": [speedup], "cpu": {"model": "Some CPU", "cores": 2, "features": ["AVX2"]}, "limit_isa": "avx2",
        "rounds": 4, "seconds": 2.0, "images": 10_000, "torch": "1", "versions": {"timm": "2"},
    }  # fmt: skip
    text = update_docs.TABLES["deployment"](document)
    for part in ("| ours | torch float32 | 1 | 12.3 |", "0.8861 |", "**1.23** times", "1.10 to 1.50",
                 "Some CPU, 2 cores", "limited to AVX2", "2 threads"):  # fmt: skip
        assert part in text
    speeds = {"plain": 300.5, "augmented": 290.1, "ratio": 0.965, "seconds_per_step": 0.2206}
    run = {"seconds": 31.5, "memory_mb": 700, "memory_after_50_steps_mb": 701}
    document = {
        "throughput": [{"format": "png", "in_memory": True, "workers": 2, "loading": speeds, "training": speeds}],
        "start": {"links": 200_000, "classes": 1000, "first": run, "second": {**run, "seconds": 9.0}},
        "size": 96, "batch": 64, "cores": 2, "torch": "1",
    }  # fmt: skip
    text = update_docs.TABLES["augmentation"](document)
    for part in ("| png | in memory | 2 | 300.5, 290.1, 0.965 |", "| second run | 9.0 | 700 | 701 |", "200,000 links"):
        assert part in text
    hostile: Any = importlib.import_module("hostile_server")
    statuses = {"photos": Counter({"200": 3, "503": 1}), "tensors": Counter({"422": 5})}
    health = {"latencies": [0.001] * 99 + [0.1], "failures": []}
    fine = hostile.summarize(statuses, health, 500_000_000, 1_500_000_000, 1_024_000_000)
    assert fine["failures"] == fine["warnings"] == [] and fine["health_max_ms"] == 100.0
    assert "3 x 200, 1 x 503" in update_docs.TABLES["hostile_server"]({**fine, "seconds": 60})


@pytest.mark.parametrize(
    ("status", "latency", "peak", "failures", "warnings"),
    [("500", 0.01, 1000, 1, 0), ("504", 0.3, 1000, 1, 1), ("503", 0.3, 1000, 0, 1), ("200", 0.01, 1900, 1, 0),
     ("200", 0.01, 1800, 0, 0)],
)  # fmt: skip
def test_hostile_run_fails(status: str, latency: float, peak: int, failures: int, warnings: int) -> None:
    """For a server error except 503, and for memory; a slow health check is a warning."""
    hostile: Any = importlib.import_module("hostile_server")
    health = {"latencies": [latency], "failures": []}
    document = hostile.summarize({"a": Counter({status: 2})}, health, 500_000_000, peak * 1_000_000, 1_024_000_000)
    assert (len(document["failures"]), len(document["warnings"])) == (failures, warnings)


def test_folders_of_a_package(tmp_path: Path) -> None:
    """Classes are the folders of one level; copies, catch-all folders and small classes are left out."""
    data: Any = importlib.import_module("own_images_data")
    generator = np.random.default_rng(0)
    for label, count in (("animals/birds", 40), ("food", 32), ("unsorted", 40), ("tools", 5)):
        (tmp_path / "package" / label).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (8, 8, 4), dtype=np.uint8).repeat(50, 0).repeat(60, 1)
            Image.fromarray(pixels).save(tmp_path / "package" / label / f"{number}.png")
    shutil.copy(tmp_path / "package" / "food" / "0.png", tmp_path / "package" / "animals" / "copy.png")
    (tmp_path / "package" / "food" / "broken.png").write_bytes(b"not an image")
    data.write_package(tmp_path / "package", tmp_path / "out")
    counts = {str(path.relative_to(tmp_path / "out")): len(list(path.iterdir())) for path in tmp_path.glob("out/*/*")}
    assert counts == {"train/animals": 30, "test/animals": 11, "train/food": 23, "test/food": 8}
    with Image.open(next(tmp_path.glob("out/test/animals/*.png"))) as image:
        assert (image.mode, max(image.size)) == ("RGB", data.MAX_SIDE)
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    flattened = data.flatten(tmp_path / "clear.png")
    assert flattened is not None and flattened.getpixel((0, 0)) == (255, 255, 255)


def test_squares_of_training_and_test_are_apart() -> None:
    data: Any = importlib.import_module("own_images_data")
    rows = np.arange(200, dtype=np.uint8)[:, None].repeat(150, 1)
    photograph = Image.fromarray(rows)
    values = {test: [np.asarray(s) for s in data.texture_squares(photograph, test, 50, 7)] for test in (False, True)}
    assert max(square.max() for square in values[False]) < 150 <= min(square.min() for square in values[True])
    assert all(square.shape[0] == square.shape[1] for squares in values.values() for square in squares)


def test_table_of_own_images() -> None:
    """Until there are results: what the benchmark writes, from one run of each side."""
    own_images: Any = importlib.import_module("own_images")
    update_docs: Any = importlib.import_module("update_docs")
    runs = [
        {"data": "stamps", "side": side, "minutes": 2.0, "seed": seed, "top1": top1 + 0.1 * seed, "seconds": 119.0,
         "num_test": 100, **({"plan": list("abcde")} if side == "googlenet" else {})}
        for side, top1 in (("googlenet", 0.6), ("timm:resnet18", 0.3)) for seed in range(2)
    ]  # fmt: skip
    document = {"rows": own_images.summarize(runs), "device": "CPU", "threads": 2, "torch": "2.14"}
    text = update_docs.TABLES["own_images"](json.loads(json.dumps(document)))
    # 1.96 * sqrt(0.65 * 0.35 / 100) = 0.0935
    assert "| stamps | 2 | googlenet | 0.6500 | ± 0.0935 | 0.0707 | 2 | 119 |" in text
    assert "| stamps | 2 | c; d; e |" in text
    page = (ROOT / "docs" / update_docs.PAGES["own_images"]).read_text()
    assert text in update_docs.fill(page, "own_images", text)
