"""Read recipes from YAML files and command-line flags, with every key and type checked."""

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
from .schema import Recipe


def recipe_folder() -> Path:
    """Return the folder of the shipped recipes: in the installed package, or next to ``src`` in a checkout."""
    installed = Path(__file__).parents[1] / "recipes"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "recipes"


def list_recipes() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """Return the file of a shipped recipe, or the path `name`; ValueError if there is neither."""
    shipped = recipe_folder() / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    if Path(name).is_file():
        return Path(name)
    if os.sep in name or name.endswith((".yaml", ".yml")):
        raise ValueError(f"{name}: no such recipe file")
    recipes = list_recipes()
    raise ValueError(f"unknown recipe {name!r}{nearest(name, recipes)}; the recipes are {', '.join(recipes)}")


def read_recipe(name: str, flags: list[str] | None = None) -> Recipe:
    """Read the recipe `name` (shipped, or a YAML file) and apply flags such as ``--optimizer.lr 0.1``.

    Raises ValueError, with the nearest names, for an unknown key and for a value of the wrong type or range.
    """
    path = find_recipe(name)
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a recipe must be a mapping of keys to values")
    try:
        return recipe_from_dict(values, flags)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def recipe_from_dict(values: dict[str, Any], flags: list[str] | None = None) -> Recipe:
    """Build a recipe from nested plain values and flags, checking every key and type.

    Raises ValueError that says what is wrong.
    """
    groups, keys = _groups(), _keys()
    normalized = [_normalize_flag(flag) for flag in flags or []]
    flag_keys = [flag.removeprefix("--").partition("=")[0] for flag in normalized if flag.startswith("--")]
    for key in [*_flatten(values), *flag_keys]:
        if key in groups:
            raise ValueError(f"{key} is a group of keys ({key}.{fields(groups[key])[0].name}, ...), not a value")
        if key not in keys:
            raise ValueError(f"unknown recipe key {key!r}{nearest(key, keys)}")
    # The file's values become flags in front of the others: both are checked alike, and the last one wins.
    from_file = [
        f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in _flatten(values).items()
    ]
    parsed = recipe_parser().parse_args([*from_file, *normalized])
    return Recipe(**{
        f.name: groups[f.name](**vars(parsed[f.name])) if f.name in groups else parsed[f.name]
        for f in fields(Recipe)
    })  # fmt: skip


def _normalize_flag(flag: str) -> str:
    """Accept hyphens for underscores in a flag's name: ``--grad-accum-steps=2``."""
    if not flag.startswith("--"):
        return flag
    name, separator, value = flag.partition("=")
    return "--" + name.removeprefix("--").replace("-", "_") + separator + value


# Display names of the parser's types.
_TYPE_NAMES = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "a string",
    "tuple": "a list such as [28,32]",
    "NoneType": "null",
}


class _RaisingParser(ArgumentParser):
    """Raises ValueError instead of printing the usage and exiting."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        key = re.match(r'Parser key "(.*?)":', message)
        expected = re.findall(r"Expected an? (?:typing\.Literal\[(.*?)\]|<class '(\w+)'>)", message)
        value = re.search(r"(?:Got|Given) value: (.*)", message)
        if key is None or not expected:
            raise ValueError(" ".join(message.split()))
        types = [f"one of {literal}" if literal else _TYPE_NAMES.get(name, name) for literal, name in expected]
        got = f", not {value[1]}" if value else ""
        raise ValueError(f"{key[1]} must be {' or '.join(dict.fromkeys(types))}{got}")


@functools.cache  # building it takes 0.1 s, and a command reads several recipes
def recipe_parser() -> ArgumentParser:
    """Return the typed parser with one flag per option of `Recipe`; its help comes from the docstrings."""
    parser = _RaisingParser(prog="googlenet train RECIPE", add_help=False)
    parser.add_class_arguments(Recipe, as_positional=False)
    return parser


def _groups() -> dict[str, Any]:
    """Return the keys whose values are groups of options, with the class of each."""
    return {f.name: f.default_factory for f in fields(Recipe) if is_dataclass(f.default_factory)}


def _keys() -> list[str]:
    groups = _groups()
    single = [f.name for f in fields(Recipe) if f.name not in groups]
    return single + [f"{name}.{f.name}" for name, group in groups.items() for f in fields(group)]


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat.update(_flatten(value, f"{name}.") if isinstance(value, dict) else {name: value})
    return flat
