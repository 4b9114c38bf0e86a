"""YAML and flags -> a `Recipe`, every key and type checked."""

import functools
import json
import os
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser

from ..errors import nearest
from .recipe import Recipe


def recipe_folder() -> Path:
    """Where the shipped recipes lie: in the installed package, or beside ``src`` in a checkout."""
    installed = Path(__file__).parents[1] / "recipes"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "recipes"


def list_recipes() -> list[str]:
    """The names of the shipped recipes."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """The file of a shipped recipe, or `name` itself where it is a path; ValueError for neither."""
    shipped = recipe_folder() / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    if Path(name).is_file():
        return Path(name)
    if os.sep in name or name.endswith((".yaml", ".yml")):
        raise ValueError(f"{name}: no such recipe file")
    raise ValueError(
        f"no recipe is called {name!r}{nearest(name, list_recipes())}; there are {', '.join(list_recipes())}"
    )


def read_recipe(name: str, flags: list[str] | None = None) -> Recipe:
    """The recipe `name` (shipped, or a YAML file) with ``--key.sub value`` flags applied.

    Raises ValueError, with the nearest names, for a key that no recipe has, and for a value of the wrong
    type or range.
    """
    path = find_recipe(name)
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a recipe is a mapping of keys to values")
    try:
        return recipe_from_dict(values, flags)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def recipe_from_dict(values: dict[str, Any], flags: list[str] | None = None) -> Recipe:
    """A recipe of nested plain values, checked key by key and type by type; ValueError says what is wrong."""
    flags = flags or []
    for key in [
        *_flat(values),
        *(f.removeprefix("--").partition("=")[0] for f in flags if f.startswith("--")),
    ]:
        if key in _groups():
            raise ValueError(f"{key} is a group of keys ({key}.{fields(_groups()[key])[0].name}, ...), not a value")
        if key not in _keys():
            raise ValueError(f"no recipe has the key {key!r}{nearest(key, _keys())}")
    # The file's values go first, as flags too, so that both are checked alike and the flags prevail.
    given = [
        f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in _flat(values).items()
    ]
    chosen = recipe_parser().parse_args([*given, *flags])
    groups = _groups()
    return Recipe(**{
        f.name: groups[f.name](**vars(chosen[f.name])) if f.name in groups else chosen[f.name]
        for f in fields(Recipe)
    })  # fmt: skip


# The parser's words for types, in a reader's.
KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "tuple": "a list such as [28,32]",
    "NoneType": "null",
}


class _OneLineParser(ArgumentParser):
    """Raises what it finds instead of printing usage and leaving the process."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        key = re.match(r'Parser key "(.*?)":', message)
        wanted = re.findall(r"Expected an? (?:typing\.Literal\[(.*?)\]|<class '(\w+)'>)", message)
        given = re.search(r"(?:Got|Given) value: (.*)", message)
        if key is None or not wanted:
            raise ValueError(" ".join(message.split()))
        kinds = [f"one of {literal}" if literal else KINDS.get(kind, kind) for literal, kind in wanted]
        got = f", not {given[1]}" if given else ""
        raise ValueError(f"{key[1]} takes {' or '.join(dict.fromkeys(kinds))}{got}")


@functools.cache  # building it takes a tenth of a second, and a command reads several recipes
def recipe_parser() -> ArgumentParser:
    """The typed parser: one flag per value of `Recipe`, its help taken from the docstrings."""
    parser = _OneLineParser(prog="googlenet train RECIPE", add_help=False)
    parser.add_class_arguments(Recipe, as_positional=False)
    return parser


def _groups() -> dict[str, Any]:
    """The keys whose values are groups of keys, with the class of each."""
    return {f.name: f.default_factory for f in fields(Recipe) if is_dataclass(f.default_factory)}


def _keys() -> list[str]:
    groups = _groups()
    single = [f.name for f in fields(Recipe) if f.name not in groups]
    return single + [f"{name}.{f.name}" for name, group in groups.items() for f in fields(group)]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat.update(_flat(value, f"{name}.") if isinstance(value, dict) else {name: value})
    return flat
