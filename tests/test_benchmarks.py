"""The scripts of benchmarks/: each starts, the profile knows our kernels, the tables are the results'."""

import importlib
import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from googlenet.models import native
from googlenet.models.native import passes, tiles

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
# Parts of others, not run by themselves; textbook.py and write_up.py take no arguments.
PARTS = {"asking", "textbook", "write_up"}


@pytest.fixture(autouse=True)
def beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """They import each other as scripts of one folder do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem not in PARTS))
def test_starts_and_says_what_it_measures(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its imports exist and `make bench-NAME` reads its answer as JSON."""
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "--json" in said
    assert f"make bench-{name}" in " ".join(said.split())


@pytest.mark.skipif(native.kernels() is None, reason="GOOGLENET_NATIVE=0, or no C compiler with OpenMP")
def test_profile_finds_the_native_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """It names kernels by standing in for the calls to them: each kind of them is seen, little is "other"."""
    for module in (passes, tiles):
        monkeypatch.setattr(module, "call", module.call)
    step_profile = importlib.import_module("step_profile")
    spent = step_profile.milliseconds(step_profile.our_step(28), steps=1)
    seen = {row for row, value in spent.items() if value > 0}
    assert {
        "matrix products (ours: forward and backward)", "maps into tiles and back", "max pooling", "optimiser"
    } <= seen  # fmt: skip
    assert spent["other"] < sum(spent.values()) / 3


def results() -> list[Path]:
    return sorted((BENCHMARKS / "results").glob("*.json"))


@pytest.mark.parametrize("result", results(), ids=lambda path: path.stem)
def test_tables_are_those_of_the_results(result: Path) -> None:
    """No figure of a benchmark was typed by hand: its table in docs/ is what the result says."""
    write_up: Any = importlib.import_module("write_up")
    page = (ROOT / "docs" / write_up.PAGES.get(result.stem, "performance.md")).read_text()
    found = json.loads(result.read_text())
    assert write_up.fill(page, result.stem, write_up.SECTIONS[result.stem](found)) == page
