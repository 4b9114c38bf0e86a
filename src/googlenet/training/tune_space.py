"""The search space of `tune`: recipe keys with a range or a list of values."""

import json
from typing import Any

import yaml

from ..config.parse import recipe_from_dict
from ..config.schema import Recipe

# A key's values: ("range", low, high), ("log", low, high), ("int", low, high) or ("choice", value, ...).
Search = dict[str, tuple[Any, ...]]

# Ranges whose ends differ by this factor are searched on a logarithmic scale.
LOG_RATIO = 10


def default_search(recipe: Recipe) -> Search:
    """Return a space around the recipe: the learning rate, and what regularizes the network."""
    search: Search = {
        "optimizer.lr": ("log", recipe.optimizer.lr / 10, recipe.optimizer.lr * 10),
        "optimizer.weight_decay": ("log", 1e-6, 1e-1),
    }
    if recipe.task == "detection":
        return search
    return search | {
        "loss.label_smoothing": ("range", 0.0, 0.2),
        "augment.min_crop_scale": ("range", 0.2, 1.0),
        "augment.flip": ("choice", "none", "random"),
    }


def parse_search(items: list[str], base: Recipe) -> Search:
    """Parse ``KEY=LOW..HIGH`` and ``KEY=A,B,C``; ValueError for anything else, and values that `base` cannot have."""
    search: Search = {}
    values = yaml.safe_load(base.to_yaml())
    for item in items:
        key, separator, text = item.partition("=")
        if not separator or not text:
            raise ValueError(f"--search {item}: write KEY=LOW..HIGH or KEY=A,B,C, such as optimizer.lr=0.001..0.1")
        key = key.replace("-", "_")
        if key in search:
            raise ValueError(f"--search {key}: named twice")
        search[key] = _parse_range(item, text) if ".." in text else ("choice", *map(_scalar, text.split(",")))
        group, _, name = key.rpartition(".")
        known = values.get(group, {}) if group else values
        if search[key][0] == "int" and isinstance(known.get(name), float):
            search[key] = ("range", *map(float, search[key][1:]))
        for value in search[key][1:]:
            try:
                recipe_from_dict(values, [f"--{key}={value if isinstance(value, str) else json.dumps(value)}"])
            except ValueError as error:
                raise ValueError(f"--search {item}: {error}") from None
    return search


def _parse_range(item: str, text: str) -> tuple[Any, ...]:
    ends = [_scalar(end) for end in text.split("..")]
    if len(ends) != 2 or any(isinstance(end, bool) or not isinstance(end, int | float) for end in ends):
        raise ValueError(f"--search {item}: a range has two numbers, such as 0.001..0.1")
    low, high = ends
    if not low < high:
        raise ValueError(f"--search {item}: the first number must be smaller than the second")
    if all(isinstance(end, int) for end in ends):
        return ("int", low, high)
    return ("log" if low > 0 and high / low >= LOG_RATIO else "range", float(low), float(high))


def _scalar(text: str) -> Any:
    """Return a number, true, false or null as such, and everything else as text."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return text if isinstance(value, dict | list) else value


def suggest(trial: Any, search: Search) -> dict[str, Any]:
    """Draw the values of a trial of Optuna; floats have four digits, so that they can be typed."""
    values: dict[str, Any] = {}
    for key, (kind, *ends) in search.items():
        if kind == "choice":
            values[key] = trial.suggest_categorical(key, ends)
        elif kind == "int":
            values[key] = trial.suggest_int(key, *ends)
        else:
            value = float(f"{trial.suggest_float(key, *ends, log=kind == 'log'):.4g}")
            values[key] = min(max(value, ends[0]), ends[1])
    return values
