"""The import graph of the package: no cycles, and heavy libraries are imported only when they are used."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import googlenet

ROOT = Path(googlenet.__file__).parent


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(file: Path, modules: set[str]) -> set[str]:
    """Return the package's modules that a file imports anywhere except under TYPE_CHECKING."""
    tree = ast.parse(file.read_text())
    type_checking = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
        for node in ast.walk(branch)
    }
    package = module_name(file) if file.name == "__init__.py" else module_name(file).rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in type_checking:
            continue
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            found |= {name if (name := f"{base}.{alias.name}") in modules else base for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return (found & modules) - {module_name(file)}


def test_imports_have_no_cycle() -> None:
    """Also inside functions: a cycle that works because one import is late still ties the modules together."""
    files = {module_name(file): file for file in ROOT.rglob("*.py")}
    graph = {name: imported_modules(file, set(files)) for name, file in files.items()}
    assert sum(map(len, graph.values())) > 300, "the graph was read"
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("code", "forbidden"),
    [
        ("import googlenet", ("torch", "timm", "numpy")),
        ("import googlenet; googlenet.list_models()", ("torch", "timm")),
        ("from googlenet.cli.main import main; main(['--help'])", ("torch", "timm", "yaml")),
        ("from googlenet.cli.main import main; main(['models'])", ("torch", "timm")),
    ],
)
def test_imports_are_lazy(code: str, forbidden: tuple[str, ...]) -> None:
    check = f"import sys; {code}; print(sorted(set({forbidden!r}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
