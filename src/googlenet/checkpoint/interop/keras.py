"""Read the weights of Keras' InceptionV3 and InceptionResNetV2 from its HDF5 and .keras files, without Keras.

Keras numbers most layers automatically, and the first number depends on what the program built before. Here the
convolution layers are called conv2d_0, conv2d_1, ... in the order in which the network was built, each with the
variables of its normalization; see `SourceModel`.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...models.blocks import ConcatBranches, Residual
from ...models.factory import create_model
from ...models.layers import ConvNormAct
from .key_maps import SOURCE_MODELS, SourceModel

NORM_VARIABLES = ("gamma", "beta", "moving_mean", "moving_variance")
# The groups that contain layers: full models and weights of Keras 2 (the last two), and of Keras 3.
LAYER_GROUPS = ("layers", "_layer_checkpoint_dependencies", "model_weights", "")
# The name of an automatically numbered layer: its kind and number.
NUMBERED = re.compile(r"(conv2d|batch_normalization)(?:_(\d+))?")

Layers = dict[str, dict[str, Tensor]]


def read_keras(path: Path) -> dict[str, Tensor]:
    """Read the tensors of an .h5, .weights.h5 or .keras file: "layer.variable" -> float32 tensor in PyTorch's layout.

    Kernels are (out, in, height, width) and (out, in). A normalization without scale has a gamma of ones. Raises
    ValueError for another kind of file, and for a model without classifier.
    """
    layers, has_names = _read_layers(path)
    dense = [name for name, variables in layers.items() if variables.get("kernel", torch.empty(0)).ndim == 2]
    if not any(variables.get("kernel", torch.empty(0)).ndim == 4 for variables in layers.values()):
        raise ValueError(f"{path}: contains no convolution layers of a Keras model")
    if len(dense) != 1:
        problem = f"has the dense layers {', '.join(dense)}" if dense else "was saved with include_top=False"
        raise ValueError(f"{path}: {problem}; a classifier has one dense layer after global average pooling")
    layers["predictions"] = layers.pop(dense[0])
    layers = _merge_norms(layers)
    if not has_names:
        layers = _restore_order(layers)
    return {f"{name}.{key}": value for name, variables in layers.items() for key, value in variables.items()}


def _read_layers(path: Path) -> tuple[Layers, bool]:
    """Return the variables of each layer, by its name; and whether the file has the names, or numbers of its own."""
    try:
        import h5py
    except ImportError:
        raise ValueError(f"{path}: reading Keras files needs h5py: pip install 'googlenet[keras]'") from None
    names: Mapping[str, str] = {}
    source: Any = path
    try:
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive:
                source = io.BytesIO(archive.read("model.weights.h5"))
                names = _config_names(json.loads(archive.read("config.json")))
        with h5py.File(source, "r") as file:
            group = next(file[name] if name else file for name in LAYER_GROUPS if not name or name in file)
            datasets: list[tuple[str, Any]] = []
            group.visititems(lambda name, item: datasets.append((name, item)) if hasattr(item, "shape") else None)
            return _group_variables(datasets, names)
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: damaged, or not a Keras file ({error})") from None


def _group_variables(datasets: list[tuple[str, Any]], names: Mapping[str, str]) -> tuple[Layers, bool]:
    """Group datasets "layer/.../variable" (Keras 2) or ".../layer/vars/number" (Keras 3) by layer."""
    parents: dict[str, set[str]] = {}
    for name, _ in datasets:
        parents.setdefault(name.split("/")[0], set()).add(name.rpartition("/")[0])
    layers: Layers = {}
    has_names = True
    for name, item in datasets:
        parts = name.split("/")
        if "vars" in parts[:-1]:
            number = parts[parts.index("vars") - 1]
            stored = item.parent.attrs.get("name")
            has_names &= stored is not None or number in names or NUMBERED.fullmatch(number) is None
            layer = str(stored or names.get(number, number))
        else:
            # The group of a nested model contains several layers.
            layer = parts[0] if len(parents[parts[0]]) == 1 else parts[-2]
        # Kernels are stored as (height, width, in, out) and (in, out).
        tensor = torch.from_numpy(item[()].astype("float32"))
        tensor = tensor.permute(3, 2, 0, 1).contiguous() if tensor.ndim == 4 else tensor
        tensor = tensor.T.contiguous() if tensor.ndim == 2 else tensor
        layers.setdefault(layer, {})[parts[-1].removesuffix(":0")] = tensor
    return {name: _name_variables(variables) for name, variables in layers.items()}, has_names


def _name_variables(variables: dict[str, Tensor]) -> dict[str, Tensor]:
    """Replace the numbers of variables by their names; add the scale of a normalization without one."""
    if all(key.isdigit() for key in variables):
        ordered = [variables[key] for key in sorted(variables, key=int)]
        names = ("kernel", "bias") if ordered[0].ndim > 1 else NORM_VARIABLES[-len(ordered) :]
        variables = dict(zip(names, ordered, strict=False))
    if "moving_variance" in variables:
        variables.setdefault("gamma", torch.ones_like(variables["moving_variance"]))
    return variables


def _merge_norms(layers: Layers) -> Layers:
    """Number the layers from 0, and merge normalizations into the layers before them."""
    numbered: dict[str, list[tuple[int, str]]] = {"conv2d": [], "batch_normalization": []}
    merged: Layers = {}
    for name, variables in layers.items():
        if match := NUMBERED.fullmatch(name):
            numbered[match[1]].append((int(match[2] or 0), name))
        else:
            merged.setdefault(name.removesuffix("_bn"), {}).update(variables)
    for names in numbered.values():
        for index, (_, name) in enumerate(sorted(names)):
            merged.setdefault(f"conv2d_{index}", {}).update(layers[name])
    return merged


def _config_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of layers by their names in the weights file, which count the layers of each class."""
    counts: dict[str, int] = {}
    names = {}
    for layer in config["config"]["layers"]:
        kind = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", layer["class_name"]).lower()
        number = counts[kind] = counts.get(kind, -1) + 1
        names[f"{kind}_{number}" if number else kind] = layer["config"]["name"]
    return names


def _restore_order(layers: Layers) -> Layers:
    """Rename layers that were saved without names, in Keras' order, which is that of the distance from the output."""
    convolutions = {name: layer for name, layer in layers.items() if name.startswith("conv2d_")}
    # Normalizations have the same order, but the last convolution of a residual block has none.
    kernels = [layer["kernel"] for layer in convolutions.values() if "kernel" in layer]
    for source in (source for name, source in SOURCE_MODELS.items() if name.startswith("keras:")):
        order = list(_saved_order(source))
        if len(order) != len(kernels):
            continue
        named: Layers = {name: dict(layers[f"conv2d_{index}"]) for index, name in enumerate(order)}
        norms = iter([{k: v for k, v in layer.items() if k in NORM_VARIABLES} for layer in convolutions.values()])
        for name in order:
            named[name] = {key: value for key, value in named[name].items() if key in ("kernel", "bias")}
            if name in source.units.values():
                named[name] |= next(norms)
        if _fits(source, named) and not _fits(source, convolutions):
            return {**named, "predictions": layers["predictions"]}
    return layers


def _fits(source: SourceModel, layers: Layers) -> bool:
    """Return whether every convolution has the shape of the network's."""
    with torch.device("meta"):
        model = create_model(source.model)
    shapes = {name: model.get_parameter(f"{layer}.conv.weight").shape for layer, name in source.units.items()}
    with suppress(KeyError):
        return all(layers[name]["kernel"].shape == shape for name, shape in shapes.items())
    return False


def _saved_order(source: SourceModel) -> Iterator[str]:
    """Return the external names of the convolutions, farthest from the output first, else in the order of the table."""
    with torch.device("meta"):
        trunk = create_model(source.model).trunk
    names = {**source.units, **source.linears}
    depths = {f"trunk.{name}": depth for name, depth in _depths(trunk, "", 0)[0].items()}
    return (names[name] for name in sorted(depths, key=depths.__getitem__, reverse=True))


def _depths(module: nn.Module, name: str, after: int) -> tuple[dict[str, int], int]:
    """Return the distance of each convolution from the output, with `after` layers behind the module, and the largest.

    A unit is three of Keras' layers. The order of the table is kept.
    """
    match module:
        case ConvNormAct():
            return {name: after + 3}, after + 3
        case Residual():
            # A scaled sum and an activation, the projection, the concatenated branches.
            depths, largest = _depths(module.paths, f"{name}.paths", after + 3)
            return {**depths, f"{name}.expand": after + 3}, largest
        case nn.Sequential() | ConcatBranches():
            parallel = isinstance(module, ConcatBranches)
            after = largest = after + parallel
            results: list[dict[str, int]] = []
            for child, layer in reversed(list(module.named_children())):
                depths, deepest = _depths(layer, f"{name}.{child}".removeprefix("."), after)
                results.append(depths)
                largest, after = max(largest, deepest), after if parallel else deepest
            return {key: value for depths in reversed(results) for key, value in depths.items()}, largest
        case _:
            return {}, after + 1
