"""The notebooks: made from their sources, with outputs, executable, and with checks that can fail."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "notebooks" / "sources").glob("*.md"))


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notebooks", ROOT / "tools" / "notebooks.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


notebooks = load_tool()


@pytest.mark.parametrize("language", notebooks.LANGUAGES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_notebooks_are_made_from_their_sources(source: Path, language: str) -> None:
    """If this fails after a change of a source, run make notebooks."""
    stored = json.loads((ROOT / "notebooks" / language / f"{source.stem}.ipynb").read_text())
    code = [cell for cell in stored["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code)
    assert not [output for cell in code for output in cell["outputs"] if output["output_type"] == "error"]
    assert any(cell["outputs"] for cell in code)
    for cell in code:
        cell |= {"outputs": [], "execution_count": None}
    assert stored == notebooks.build(source, language)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_each_notebook_has_text_exercises_and_a_hidden_check(source: Path) -> None:
    parts = notebooks.read_source(source)
    assert [part.kind for part in parts[-3:]] == ["exercise", "solution", "check"]
    english = [part.text for part in parts if part.kind == "en"]
    chinese = [part.text for part in parts if part.kind == "zh"]
    for text, translation in zip(english, chinese, strict=True):
        # The same headings, numbered exercises and quoted code.
        patterns = (r"^#+ ", r"^\d\. ")
        counts = [[len(re.findall(p, t, re.MULTILINE)) for p in patterns] for t in (text, translation)]
        assert counts[0] == counts[1], translation
        quoted = [sorted(re.findall(r"`([^`]+)`", t)) for t in (text, translation)]
        assert quoted[0] == quoted[1]
    assert "## Exercises" in english[-1]
    *_, check = notebooks.build(source, "en")["cells"]
    assert check["metadata"]["jupyter"]["source_hidden"]
    assert not any("solution" in cell["metadata"].get("tags", []) for cell in notebooks.build(source, "en")["cells"])


def test_errors_of_a_source(tmp_path: Path) -> None:
    for text, message in (
        ("<!-- en -->\nText\n<!-- code -->\n1\n", "no translation after: Text"),
        ("<!-- fr -->\nTexte\n", "unknown kind fr"),
    ):
        (tmp_path / "source.md").write_text(text)
        with pytest.raises(ValueError, match=message):
            notebooks.read_source(tmp_path / "source.md")


def test_badges_need_the_address_of_the_repository() -> None:
    assert notebooks.badges("notebooks/en/a.ipynb", None) == ""
    links = notebooks.badges("notebooks/en/a.ipynb", "owner/name")
    assert links.count("owner/name/blob/main/notebooks/en/a.ipynb") == len(notebooks.RUNTIMES)


@pytest.mark.release
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_notebooks_run_and_accept_the_solutions(source: Path, tmp_path: Path) -> None:
    """The stored outputs are of unsolved notebooks; this runs them with the answers."""
    pytest.importorskip("nbclient", reason="the extra notebooks is not installed")
    pytest.importorskip("ipykernel", reason="the extra notebooks is not installed")
    notebook = notebooks.build(source, "en", solved=True)
    done = notebooks.execute(notebook, tmp_path)
    # What `write` compares, so that outputs are stored with their own code only.
    assert [cell["source"] for cell in done["cells"]] == [cell["source"] for cell in notebook["cells"]]
    output = "".join(text for item in done["cells"][-1]["outputs"] for text in item["text"])
    assert "correct" in output
    assert "no answer" not in output
    stored = json.loads((ROOT / "notebooks" / "en" / f"{source.stem}.ipynb").read_text())
    assert "no answer yet" in str(stored["cells"][-1]["outputs"])
