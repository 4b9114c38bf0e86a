"""Make the notebooks in English and Chinese from notebooks/sources/*.md, and execute them.

A source has parts, each after a line ``<!-- KIND -->``: ``en`` and ``zh`` are the text in the two languages; ``code``
is the same in both, and ``timing`` is code whose output, because it depends on the machine, is not stored; ``exercise``
is code to be completed by the reader; ``check`` is a folded cell that checks it, and
``solution``, which no notebook contains, is inserted before it by the test. So both languages have the same code.

Run: make notebooks
"""

import argparse
import json
import re
import tempfile
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
SOURCES = NOTEBOOKS / "sources"
# The folder of each language, with the kind of its text in the sources.
LANGUAGES = {"en": "en", "zh-CN": "zh"}
KINDS = ("en", "zh", "code", "timing", "exercise", "solution", "check")
PART = re.compile(r"^<!-- (\w+) -->\n", re.MULTILINE)
# Hosted runtimes: the badge and the address that opens a notebook of a repository on GitHub.
RUNTIMES = {
    "Colab": "https://colab.research.google.com/github/{repository}/blob/main/{path}",
    "Kaggle": "https://kaggle.com/kernels/welcome?src=https://github.com/{repository}/blob/main/{path}",
    "SageMaker Studio Lab": "https://studiolab.sagemaker.aws/import/github/{repository}/blob/main/{path}",
}
# A cell that takes longer than this many seconds is an error.
SECONDS = 1800


class Part(NamedTuple):
    """A part of a source: its kind and its text."""

    kind: str
    text: str


def read_source(path: Path) -> list[Part]:
    """Return the parts of a source; ValueError for an unknown kind, or text without its translation."""
    _, *pieces = PART.split(path.read_text())
    parts = [Part(kind, text.strip()) for kind, text in zip(pieces[::2], pieces[1::2], strict=True)]
    for index, part in enumerate(parts):
        if part.kind not in KINDS:
            raise ValueError(f"{path}: unknown kind {part.kind}; use {', '.join(KINDS)}")
        if part.kind == "en" and (index + 1 == len(parts) or parts[index + 1].kind != "zh"):
            raise ValueError(f"{path}: no translation after: {part.text[:60]}")
    return parts


def repository() -> str | None:
    """Return OWNER/NAME of the project's address on GitHub in pyproject.toml; None if it has none."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    match = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+)", urls.get("Repository", ""))
    return match and match[1]


def badges(path: str, name: str | None) -> str:
    """Return links that open the notebook `path` of the repository `name` in hosted runtimes; empty without a name."""
    if not name:
        return ""
    links = (f"[Open in {title}]({url.format(repository=name, path=path)})" for title, url in RUNTIMES.items())
    return " · ".join(links)


def cells(parts: list[Part], language: str, solved: bool = False) -> list[dict[str, Any]]:
    """Return the cells of a notebook; `solved` inserts the solutions."""
    result: list[dict[str, Any]] = []
    for part in parts:
        if part.kind == LANGUAGES[language]:
            result.append({"cell_type": "markdown", "metadata": {}, "source": part.text})
        elif part.kind in ("code", "timing", "exercise", "check") or (part.kind == "solution" and solved):
            hidden = {"jupyter": {"source_hidden": True}, "tags": ["hide-input"], "cellView": "form"}
            metadata: dict[str, Any] = hidden if part.kind == "check" else {"tags": [part.kind]}
            result.append(
                {
                    "cell_type": "code", "metadata": metadata, "source": part.text, "outputs": [],
                    "execution_count": None,
                }
            )  # fmt: skip
    return [{"id": f"cell-{index}", **cell} for index, cell in enumerate(result)]


def build(path: Path, language: str, solved: bool = False) -> dict[str, Any]:
    """Return a notebook (format 4.5) of a source, without outputs."""
    content = cells(read_source(path), language, solved)
    if links := badges(f"notebooks/{language}/{path.stem}.ipynb", repository()):
        content[0]["source"] += f"\n\n{links}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": content, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def execute(notebook: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run all cells in `folder` and return the notebook with its outputs; an error in a cell is raised."""
    import nbformat
    from nbclient import NotebookClient

    node = nbformat.from_dict(notebook)
    client = NotebookClient(node, timeout=SECONDS, resources={"metadata": {"path": str(folder)}})
    client.execute()
    for cell in node.cells:
        cell.metadata.pop("execution", None)
    executed: dict[str, Any] = json.loads(nbformat.writes(node))
    for cell in executed["cells"]:
        cell["source"] = "".join(cell["source"])  # nbformat splits it into lines
    return executed


def write(path: Path, language: str, executed: dict[str, Any]) -> None:
    """Write the notebook of a language with the outputs of the executed one; ValueError unless the code is the same."""
    notebook = build(path, language)
    outputs = iter([cell for cell in executed["cells"] if cell["cell_type"] == "code"])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            done = next(outputs)
            if done["source"] != cell["source"]:
                raise ValueError(f"{path.stem}: its code has changed; execute it")
            # Standard error has warnings with the paths of this machine.
            hidden = "timing" in cell["metadata"]["tags"]
            shown = [output for output in done["outputs"] if not hidden and output.get("name") != "stderr"]
            cell |= {"outputs": shown, "execution_count": done["execution_count"]}
    target = NOTEBOOKS / language / f"{path.stem}.ipynb"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    """Execute the notebooks that are named, or all, and write both languages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="such as 01-googlenet-chapter (default: all)")
    parser.add_argument("--text-only", action="store_true", help="only the text has changed: keep the outputs")
    args = parser.parse_args()
    for path in sorted(SOURCES.glob("*.md")):
        if args.names and path.stem not in args.names:
            continue
        if args.text_only:
            executed = json.loads((NOTEBOOKS / "en" / f"{path.stem}.ipynb").read_text())
        else:
            with tempfile.TemporaryDirectory() as folder:
                executed = execute(build(path, "en"), Path(folder))
        for language in LANGUAGES:
            write(path, language, executed)
        print(path.stem)


if __name__ == "__main__":
    main()
