"""Hook of MkDocs: pages that are generated from the code and from files outside docs/.

The home page is README.md; the reference has the public API, the help texts of all commands and the recipes. A link to
a source file leads to a page with that file. Run: make docs
"""

import importlib
import json
import os
import posixpath
import re
import sys
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

# Pages from files outside docs/.
ROOT_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
# The pages that show folders.
FOLDERS = {"recipes": "reference/recipes.md", "notebooks": "notebooks.md"}
LINK = re.compile(r"(!?\[[^]]*\]\()(?!https?://|#|mailto:)([^)#\s]+)(#[^)]*)?\)")
CHINESE = "zh-CN"
# The folders of pages whose links are the site's already.
GENERATED = ("reference/", "source/", "notebooks/")


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    pages = {target: (ROOT / source).read_text() for source, target in ROOT_PAGES.items()}
    pages |= {"reference/cli.md": cli_page(), "reference/recipes.md": recipes_page(), "reference/api.md": api_page()}
    texts = {path: path.read_text() for path in (ROOT / "docs").glob("*.md")}
    texts |= {ROOT / source: pages[target] for source, target in ROOT_PAGES.items()}
    for path, text in texts.items():
        for source in linked_files(path, text):
            language = {".py": "python", ".yaml": "yaml", ".c": "c"}.get(source.suffix, "text")
            name = source.relative_to(ROOT).as_posix()
            pages[f"source/{name}.md"] = f"# {name}\n\n~~~{language}\n{source.read_text()}\n~~~\n"
    for path in (ROOT / "notebooks").glob("*/*.ipynb"):
        pages[f"notebooks/{path.parent.name}/{path.stem}.md"] = notebook_page(json.loads(path.read_text()))
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Change links between the repository's files into links between the site's pages."""
    name = page.file.src_uri
    origins = {target: ROOT / source for source, target in ROOT_PAGES.items()}
    origin = origins.get(name, ROOT / "docs" / name)

    def replace(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(origin.parent / match[2]))
        return f"{match[1]}{site_path(target, posixpath.dirname(name))}{match[3] or ''})"

    return markdown if name.startswith(GENERATED) else LINK.sub(replace, markdown)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Declare the language of Chinese pages, for browsers and screen readers."""
    is_chinese = CHINESE in page.file.src_uri
    return output.replace('<html lang="en"', '<html lang="zh-CN"', 1) if is_chinese else output


def site_path(target: Path, folder: str) -> str:
    """Return the link from a page in `folder` of the site to the page of a file of the repository."""
    name = target.relative_to(ROOT).as_posix()
    if name in ROOT_PAGES:
        page = ROOT_PAGES[name]
    elif name in FOLDERS:
        page = FOLDERS[name]
    elif name.endswith(".ipynb"):
        page = name.replace(".ipynb", ".md")
    elif name.startswith("docs/"):
        page = name.removeprefix("docs/")
    else:
        page = f"source/{name}.md"
    return posixpath.relpath(page, folder or ".")


def linked_files(page: Path, text: str) -> list[Path]:
    """Return the source files that a page links to."""
    targets = (Path(os.path.normpath(page.parent / match[2])) for match in LINK.finditer(text))
    docs = ROOT / "docs"
    others = (target for target in targets if not target.is_relative_to(docs) and target.is_relative_to(ROOT))
    return sorted(
        {path for path in others if path.is_file() and path.name not in ROOT_PAGES and path.suffix != ".ipynb"}
    )


def help_text(command: str) -> str:
    """Return the output of ``googlenet COMMAND --help``."""
    from googlenet.cli.main import COMMANDS

    os.environ["COLUMNS"] = "100"
    output = StringIO()
    with redirect_stdout(output), suppress(SystemExit):
        importlib.import_module(COMMANDS[command].module).run(["--help"])
    return output.getvalue().strip()


def cli_page() -> str:
    """Return the page with the help texts of all commands."""
    from googlenet.cli.main import COMMANDS, usage

    parts = ["# Command line", "Generated from the commands' own help texts.", f"```text\n{usage()}\n```"]
    for name in COMMANDS:
        parts += [f"## googlenet {name}", f"```text\n{help_text(name)}\n```"]
    return "\n\n".join(parts) + "\n"


def recipes_page() -> str:
    """Return the page with the recipes: the comment at the head of each file, then its values."""
    parts = ["# Recipes", "Generated from the files in `recipes/`. Every key is also a flag of `googlenet train`."]
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        lines = path.read_text().splitlines()
        comment = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
        values = [line for line in lines if not line.startswith("#")]
        command, description = comment[0], " ".join(comment[1:])
        values_block = "\n".join(values)
        parts += [f"## {path.stem}", f"`{command}`", description, f"```yaml\n{values_block}\n```"]
    return "\n\n".join(parts) + "\n"


def api_page() -> str:
    """Return the page with the public names of the package, in the order of use."""
    import googlenet

    parts = ["# Python", "The names that `import googlenet` offers. They are imported on first use."]
    for name in googlenet.__all__:
        target = "create_model" if name == "create" else name
        if name == "create":
            parts += ["### googlenet.create", "The same as `googlenet.create_model`, in short."]
            continue
        parts.append(f"::: googlenet.{googlenet._LAZY_ATTRS[target]}.{target}")
    return "\n\n".join(parts) + "\n"


def notebook_page(notebook: dict[str, Any]) -> str:
    """Return a notebook as Markdown: text, code, printed output and plots; the code of checks is folded."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["metadata"].get("jupyter", {}).get("source_hidden"):
            code = "\n".join(f"    {line}" for line in f"```python\n{source}\n```".splitlines())
            parts.append(f'??? note "check"\n{code}')
        else:
            parts.append(f"```python\n{source}\n```")
        parts += [text for output in cell.get("outputs", []) if (text := output_text(output))]
    return "\n\n".join(parts) + "\n"


def output_text(output: dict[str, Any]) -> str:
    """Return an output of a cell as Markdown; empty for one without text and image."""
    data = output.get("data", {})
    if image := data.get("image/png"):
        return f"![plot](data:image/png;base64,{''.join(image).strip()})"
    text = "".join(output.get("text", data.get("text/plain", "")))
    return f"```text\n{text.rstrip()}\n```" if text else ""
