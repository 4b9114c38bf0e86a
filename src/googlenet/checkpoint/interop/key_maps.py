"""The keys of other libraries' state dicts, read from the tables in ``key_maps.yaml``.

`convert.key_map` combines them into the dictionary from this package's keys. A name in the tables may contain one list
in braces: ``{"conv{1,2}": "Conv2d_{1a,2a}"}`` are two entries.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

Names = Mapping[str, str]


class SourceModel(NamedTuple):
    """A network of another library.

    `model` is the equivalent model of this package. `units` (convolution, normalization, ReLU) and `linears` map this
    package's layers to the external ones; `unit` and `linear` map the tensors in each. `bgr`: the input channels are
    in the order BGR. `biased`: convolutions have biases in front of their normalizations. `options` are those of
    `create_model` that make this package's network equivalent.
    """

    model: str
    units: Names
    linears: Names
    unit: Names
    linear: Names
    bgr: bool = False
    biased: bool = False
    options: Mapping[str, Any] = {}


def expand_braces(name: str) -> list[str]:
    """Return the names that a name with a list in braces stands for."""
    if "{" not in name:
        return [name]
    prefix, _, rest = name.partition("{")
    items, _, suffix = rest.partition("}")
    return [f"{prefix}{item}{suffix}" for item in items.split(",")]


def expand(table: Mapping[str, Any], blocks: Mapping[str, Names]) -> Iterator[tuple[str, str]]:
    """Yield this package's and the external name of each layer of a table; a block stands for its layers."""
    for key, value in table.items():
        external, layers = (value, {"": ""}) if isinstance(value, str) else (value[0], blocks[value[1]])
        for name, external_name in zip(expand_braces(key), expand_braces(external), strict=True):
            for layer, external_layer in layers.items():
                yield f"{name}.{layer}" if layer else name, f"{external_name}{external_layer}"


def _units(entry: Mapping[str, Any], blocks: Mapping[str, Names]) -> dict[str, str]:
    """Return the units of an entry: by name, or, with `numbered`, numbered in the order of the table."""
    units = dict(expand(entry["units"], blocks))
    if "numbered" in entry:
        trunk = (layer for layer in units if layer.startswith("trunk."))
        units = {layer: entry["numbered"].format(number) for number, layer in enumerate(trunk)}
    return {**units, **entry.get("named", {})}


def read_source_models() -> dict[str, SourceModel]:
    """Read all networks whose weights can be converted, by library and the name in it."""
    tables = yaml.safe_load(Path(__file__).with_name("key_maps.yaml").read_text())
    blocks, tensors = (
        {name: dict(expand(table, {})) for name, table in tables[group].items()} for group in ("blocks", "tensors")
    )
    return {
        name: SourceModel(
            entry["model"],
            _units(entry, blocks),
            dict(expand(entry["linears"], blocks)),
            tensors[entry.get("unit", "conv_norm")],
            tensors[entry.get("linear", "linear")],
            entry.get("bgr", False),
            entry.get("biased", False),
            entry.get("options", {}),
        )
        for name, entry in tables["models"].items()
    }


SOURCE_MODELS = read_source_models()
