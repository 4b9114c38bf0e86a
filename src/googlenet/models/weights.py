"""Weights of other libraries, in and out, by the tables of `key_maps`: strict both ways.

Nothing is guessed: a tensor that is missing, left over or of another shape is an error that names it.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .catalogue import create
from .key_maps import ORIGINS, Origin

COUNTER = "num_batches_tracked"
AUXILIARY = "aux_heads."


def keys(origin: Origin, aux: bool) -> dict[str, str]:
    """Every tensor's key: ours -> theirs; with those of the auxiliary heads, or without."""
    found = {
        f"{layer}.{mine}": f"{there}{other}"
        for layers, names in ((origin.units, origin.unit), (origin.linears, origin.linear))
        for layer, there in layers.items()
        for mine, other in names.items()
    }
    return {mine: other for mine, other in found.items() if aux or not mine.startswith(AUXILIARY)}


def has_aux(origin: Origin, tensors: Iterable[str]) -> bool:
    """Whether their `tensors` hold any of the auxiliary heads'."""
    theirs = set(tensors)
    return any(mine.startswith(AUXILIARY) and other in theirs for mine, other in keys(origin, aux=True).items())


class Fitting(NamedTuple):
    """Weights in our keys, and what they are of."""

    tensors: dict[str, Tensor]
    num_classes: int
    in_channels: int
    aux: bool


def to_ours(origin: Origin, theirs: Mapping[str, Tensor], where: str) -> Fitting:
    """Their tensors under our keys, for a network of `origin.model`; auxiliary heads where the file has them.

    Pixels are taken red first afterwards, whatever the origin's order; a bias in front of a normalisation is moved
    into its mean, which is the same function. ValueError, which names `where` and the keys, unless every tensor fits.
    """
    aux = has_aux(origin, theirs)
    names = keys(origin, aux)
    first = _first(origin)
    head, stem = theirs.get(names["classifier.weight"]), theirs.get(names[first])
    if head is None or stem is None or stem.ndim != 4 or head.ndim < 2:
        lacks = [names[key] for key, found in ((first, stem), ("classifier.weight", head)) if found is None]
        raise ValueError(
            f"{where}: not the weights of a {origin.model} from there: "
            + (f"it has no {' and no '.join(lacks)}" if lacks else f"{names[first]} is not a convolution's")
        )
    num_classes, in_channels = head.shape[-2], stem.shape[1]
    with torch.device("meta"):
        shapes = shapes_of(create(origin.model, num_classes, in_channels, aux))
    given = {
        key: _strip(tensor, len(shapes[mine]))
        for mine, key in names.items()
        if (tensor := theirs.get(key)) is not None
    }
    biases = {f"{there}.bias": layer for layer, there in origin.units.items()} if origin.biased else {}
    expected = {names[mine]: shape for mine, shape in shapes.items()}
    # Files older than PyTorch 0.4.1 do not count batches.
    expected = {key: shape for key, shape in expected.items() if not key.endswith(COUNTER) or key in given}
    expected |= {key: shapes[f"{layer}.norm.running_mean"] for key, layer in biases.items()}
    raise_unless_fits(expected, {**theirs, **given}, where)
    tensors = {
        mine: given[names[mine]] if names[mine] in given else torch.zeros(shape, dtype=torch.long)
        for mine, shape in shapes.items()
    }
    for key, layer in biases.items():
        mean = f"{layer}.norm.running_mean"
        tensors[mean] = tensors[mean] - theirs[key]
    if origin.bgr and in_channels == 3:
        tensors[first] = tensors[first].flip(1)
    return Fitting(tensors, num_classes, in_channels, aux)


def to_theirs(origin: Origin, ours: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The inverse of `to_ours`: a ``state_dict()`` of ours under their keys. ValueError unless all of it fits."""
    names = keys(origin, any(key.startswith(AUXILIARY) for key in ours))
    with torch.device("meta"):
        classes, channels = ours["classifier.weight"].shape[0], ours[_first(origin)].shape[1]
        model = create(origin.model, classes, channels, len(names) > len(keys(origin, aux=False)))
    raise_unless_fits(shapes_of(model), ours, where)
    tensors = {other: ours[mine] for mine, other in names.items()}
    first = _first(origin)
    if origin.bgr and ours[first].shape[1] == 3:
        tensors[names[first]] = ours[first].flip(1)
    if origin.biased:
        tensors |= {
            f"{there}.bias": torch.zeros_like(ours[f"{layer}.norm.bias"]) for layer, there in origin.units.items()
        }
    return tensors


def raise_unless_fits(
    expected: Mapping[str, torch.Size], tensors: Mapping[str, Tensor], where: str, at_most: int = 5
) -> None:
    """ValueError that lists missing, unexpected and wrongly shaped keys unless `tensors` are those `expected`."""
    problems = [f"missing {key}" for key in expected.keys() - tensors.keys()]
    problems += [f"unexpected {key}" for key in tensors.keys() - expected.keys()]
    problems += [
        f"{key} is {tuple(tensors[key].shape)}, not {tuple(expected[key])}"
        for key in expected.keys() & tensors.keys()
        if tensors[key].shape != expected[key]
    ]
    if problems:
        more = f" and {len(problems) - at_most} more" if len(problems) > at_most else ""
        raise ValueError(f"{where}: does not fit the network: {'; '.join(sorted(problems)[:at_most])}{more}")


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    """The shape of every tensor of a network."""
    return {key: value.shape for key, value in model.state_dict().items()}


def _first(origin: Origin) -> str:
    """The key of the first convolution's weight."""
    return next(iter(origin.units)) + ".conv.weight"


def _strip(tensor: Tensor, dims: int) -> Tensor:
    """Without the leading ones that Caffe's older files write before a matrix's shape."""
    while tensor.ndim > dims and tensor.shape[0] == 1:
        tensor = tensor[0]
    return tensor


def matching(library: str, tensors: Mapping[str, Tensor]) -> str:
    """The name in `ORIGINS` of the network that most of the keys are of; ValueError for a library not there."""
    names = [name for name in ORIGINS if name.split(":")[0] == library]
    if not names:
        known = ", ".join(dict.fromkeys(name.split(":")[0] for name in ORIGINS))
        raise ValueError(f"no weights of {library!r} are known; there are those of {known}")

    def share(name: str) -> int:
        return len(set(keys(ORIGINS[name], aux=True).values()) & tensors.keys())

    return max(names, key=share)
