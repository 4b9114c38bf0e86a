"""Convert state dicts between this package and other libraries, by the tables of `key_maps`.

Conversion is strict in both directions: a missing, unexpected or wrongly shaped tensor is an error that names it.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ...models.factory import create_model
from ...models.state_dict import check_state_dict, shapes_of
from .key_maps import SOURCE_MODELS, SourceModel

BATCH_COUNTER = "num_batches_tracked"
AUX_PREFIX = "aux_heads."


def key_map(source: SourceModel, aux: bool) -> dict[str, str]:
    """Return the external key of every tensor of this package's network, with or without the auxiliary heads."""
    pairs = {
        f"{layer}.{name}": f"{external_layer}{external_name}"
        for layers, names in ((source.units, source.unit), (source.linears, source.linear))
        for layer, external_layer in layers.items()
        for name, external_name in names.items()
    }
    return {key: external for key, external in pairs.items() if aux or not key.startswith(AUX_PREFIX)}


def has_aux(source: SourceModel, external_keys: Iterable[str]) -> bool:
    """Return whether an external state dict with these keys contains tensors of auxiliary heads."""
    present = set(external_keys)
    return any(key.startswith(AUX_PREFIX) and name in present for key, name in key_map(source, aux=True).items())


class ConvertedStateDict(NamedTuple):
    """A state dict with this package's keys, and the network that it fits."""

    tensors: dict[str, Tensor]
    num_classes: int
    in_channels: int
    aux: bool


def from_external_state_dict(source: SourceModel, external: Mapping[str, Tensor], origin: str) -> ConvertedStateDict:
    """Convert an external state dict to this package's keys, with auxiliary heads if it has them.

    The converted network takes RGB images even if the source takes BGR. A convolution bias in front of batch
    normalization is subtracted from the running mean, which gives the same function. Raises ValueError, which names
    `origin` and the keys, unless every tensor fits.
    """
    aux = has_aux(source, external)
    names = key_map(source, aux)
    first = _first_conv(source)
    head, stem = external.get(names["classifier.weight"]), external.get(names[first])
    if head is None or stem is None or stem.ndim != 4 or head.ndim < 2:
        missing = [names[key] for key, tensor in ((first, stem), ("classifier.weight", head)) if tensor is None]
        raise ValueError(
            f"{origin}: not the weights of {source.model} in this library's format: "
            + (f"missing {' and '.join(missing)}" if missing else f"{names[first]} is not a convolution weight")
        )
    num_classes, in_channels = head.shape[-2], stem.shape[1]
    with torch.device("meta"):
        shapes = shapes_of(create_model(source.model, num_classes, in_channels, aux, **source.options))
    given = {
        name: _squeeze_leading(tensor, len(shapes[key]))
        for key, name in names.items()
        if (tensor := external.get(name)) is not None
    }
    biases = {f"{name}.bias": layer for layer, name in source.units.items()} if source.biased else {}
    expected = {names[key]: shape for key, shape in shapes.items()}
    # Files older than PyTorch 0.4.1 have no batch counters.
    expected = {name: shape for name, shape in expected.items() if not name.endswith(BATCH_COUNTER) or name in given}
    expected |= {name: shapes[f"{layer}.norm.running_mean"] for name, layer in biases.items()}
    check_state_dict(expected, {**external, **given}, origin)
    tensors = {
        key: given[names[key]] if names[key] in given else torch.zeros(shape, dtype=torch.long)
        for key, shape in shapes.items()
    }
    for name, layer in biases.items():
        mean = f"{layer}.norm.running_mean"
        tensors[mean] = tensors[mean] - external[name]
    if source.bgr and in_channels == 3:
        tensors[first] = tensors[first].flip(1)
    return ConvertedStateDict(tensors, num_classes, in_channels, aux)


def to_external_state_dict(source: SourceModel, tensors: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    """Convert this package's state dict to the external keys: the inverse of `from_external_state_dict`."""
    names = key_map(source, any(key.startswith(AUX_PREFIX) for key in tensors))
    first = _first_conv(source)
    with torch.device("meta"):
        num_classes, in_channels = tensors["classifier.weight"].shape[0], tensors[first].shape[1]
        model = create_model(source.model, num_classes, in_channels, len(names) > len(key_map(source, aux=False)))
    check_state_dict(shapes_of(model), tensors, origin)
    external = {name: tensors[key] for key, name in names.items()}
    if source.bgr and tensors[first].shape[1] == 3:
        external[names[first]] = tensors[first].flip(1)
    if source.biased:
        external |= {
            f"{name}.bias": torch.zeros_like(tensors[f"{layer}.norm.bias"]) for layer, name in source.units.items()
        }
    return external


def matching_libraries(external: Iterable[str]) -> list[str]:
    """Return the libraries with the network that most of these keys belong to; none if that is less than half."""
    keys = set(external)
    counts = {name: len(keys & set(key_map(source, aux=True).values())) for name, source in SOURCE_MODELS.items()}
    best = max(counts.values())
    names = [name for name, count in counts.items() if count == best] if 2 * best >= len(keys) else []
    return list(dict.fromkeys(name.split(":")[0] for name in names))


def identify_source(library: str, external: Mapping[str, Tensor]) -> str:
    """Return the name in `SOURCE_MODELS` of the network of `library` whose keys are most similar.

    Raises ValueError for an unknown library.
    """
    candidates = [name for name in SOURCE_MODELS if name.split(":")[0] == library]
    if not candidates:
        libraries = dict.fromkeys(name.split(":")[0] for name in SOURCE_MODELS)
        raise ValueError(f"unknown library {library!r}; supported are {', '.join(libraries)}")

    def similarity(name: str) -> float:
        """Return the number of common keys as a fraction of all keys; files need not contain auxiliary heads."""
        keys = {aux: set(key_map(SOURCE_MODELS[name], aux).values()) for aux in (True, False)}
        return len(keys[True] & external.keys()) / len(keys[False] | external.keys())

    return max(candidates, key=similarity)


def _first_conv(source: SourceModel) -> str:
    """Return the key of the first convolution's weight."""
    return next(iter(source.units)) + ".conv.weight"


def _squeeze_leading(tensor: Tensor, dims: int) -> Tensor:
    """Remove leading dimensions of size 1, which old Caffe files write before a matrix's shape."""
    while tensor.ndim > dims and tensor.shape[0] == 1:
        tensor = tensor[0]
    return tensor
