"""Read the named tensors of weights files in the forms that other programs write, without executing code in them."""

import argparse
import json
import pathlib
import pickle
import re
import sys
import textwrap
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...files import raise_for_placeholder

PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".pkl")
KERAS_SUFFIXES = (".h5", ".hdf5", ".keras")
WEIGHT_SUFFIXES = (".safetensors", *PICKLE_SUFFIXES, *KERAS_SUFFIXES, ".caffemodel")
# The files of a saved folder (accelerate, transformers, the Hugging Face Hub), in the order of preference.
FOLDER_FILES = tuple(
    name + index for name in ("model.safetensors", "pytorch_model.bin") for index in ("", ".index.json")
)

# Where training programs store the weights in a checkpoint: as they were trained, else averaged.
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params", "module")
EMA_WRAPPERS = ("model_ema", "state_dict_ema", "ema_state_dict", "ema_model", "params_ema", "ema")
# Data parallel training, torch.compile, and the attribute of a module that contains the network.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.")
EMA_COUNTER = "n_averaged"

_NUMPY_TYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
# Values beside the weights that are data only: options of argparse (torchvision, timm), paths and numpy's numbers.
SAFE_GLOBALS: list[Any] = [
    argparse.Namespace,
    *((pathlib.PurePath, f"{module}.{kind}Path") for module in ("pathlib", "pathlib._local")
      for kind in ("Posix", "Windows", "PurePosix", "PureWindows")),
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *(type(np.dtype(name)) for name in _NUMPY_TYPES),
]  # fmt: skip


class WeightsFile(NamedTuple):
    """The named tensors of a file, and how they were found: the wrapper, prefixes and entries that were removed."""

    tensors: dict[str, Tensor]
    notes: list[str]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a weights file or folder, and print on standard error what was removed around them."""
    tensors, notes = read_weights(path)
    if notes:
        print(f"{path}: {'; '.join(notes)}", file=sys.stderr)
    return tensors


def read_weights(path: Path) -> WeightsFile:
    """Read a .safetensors, .caffemodel, Keras or PyTorch file, a sharded one (.index.json), or a folder with one.

    The state dict of a training checkpoint is found under the names `WRAPPERS`, else `EMA_WRAPPERS`, nested or not;
    the `PREFIXES` that all keys have are removed. Raises ValueError for anything else.
    """
    path = find_weights(path)
    raise_for_placeholder(path)
    if path.suffix == ".caffemodel":
        from .caffe import read_caffemodel

        return WeightsFile(read_caffemodel(path), [])
    if path.suffix in KERAS_SUFFIXES:
        from .keras import read_keras

        return WeightsFile(read_keras(path), [])
    content = _read_shards(path) if path.suffix == ".json" else _read_file(path)
    found = _find_state_dict(content)
    if found is None:
        raise ValueError(f"{path}: contains no state dict (a mapping from names to tensors)")
    state_dict, wrappers = found
    tensors = {str(key): value for key, value in state_dict.items() if isinstance(value, Tensor)}
    notes = [f"the weights are under {' / '.join(wrappers)}"] if wrappers else []
    if others := [str(key) for key, value in state_dict.items() if not isinstance(value, Tensor)]:
        notes.append(f"ignored entries that are not tensors: {', '.join(others[:5])}{' ...' * (len(others) > 5)}")
    tensors, removed = strip_prefixes(tensors)
    return WeightsFile(tensors, notes + ([f"removed {' and '.join(removed)}"] if removed else []))


def find_weights(path: Path) -> Path:
    """Return the file itself, or the weights file in a folder; ValueError unless it is exactly one."""
    if not path.exists():
        raise ValueError(f"{path}: no such file")
    if not path.is_dir():
        return path
    names = [name for name in FOLDER_FILES if (path / name).is_file()][:1]
    names = names or sorted(file.name for file in path.iterdir() if file.suffix in WEIGHT_SUFFIXES and file.is_file())
    if len(names) != 1:
        problem = f"contains several weights files ({', '.join(names[:5])})" if names else "contains no weights file"
        raise ValueError(f"{path}: a folder that {problem}; name a file")
    return path / names[0]


def strip_prefixes(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Remove the prefixes that all keys have, and the counter of an averaged model; return what was removed too."""
    removed = []
    while True:
        if EMA_COUNTER in tensors:
            tensors = {key: value for key, value in tensors.items() if key != EMA_COUNTER}
            removed.append(f"the counter {EMA_COUNTER}")
        prefix = next((prefix for prefix in PREFIXES if tensors and all(key.startswith(prefix) for key in tensors)), "")
        if not prefix:
            return tensors, removed
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
        removed.append(f"the prefix {prefix}")


def _find_state_dict(content: Any, depth: int = 4) -> tuple[Mapping[str, Any], list[str]] | None:
    """Return the state dict in a checkpoint and the names that lead to it; None without one.

    Raises ValueError if there are several under other names than the usual ones.
    """
    if not isinstance(content, Mapping) or not depth or not all(isinstance(key, str) for key in content):
        return None
    nested = {name: found for name, value in content.items() if (found := _find_state_dict(value, depth - 1))}
    usual = [name for name in (*WRAPPERS, *EMA_WRAPPERS) if name in nested]
    if not usual and len(nested) > 1:
        raise ValueError(f"several state dicts, {', '.join(nested)}: save the one to use in a file of its own")
    for name in usual or nested:
        state_dict, names = nested[name]
        return state_dict, [name, *names]
    return (content, []) if any(isinstance(value, Tensor) for value in content.values()) else None


def _read_file(path: Path) -> Any:
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                if "googlenet" in (file.metadata() or {}):
                    raise ValueError(f"{path}: a checkpoint of this package already; convert it with --to-library")
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: damaged, or not a safetensors file ({error})") from None
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(SAFE_GLOBALS):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: {_refusal(path, str(error))}") from None
    except Exception as error:  # whatever damaged bytes make the reader raise
        # PyTorch's text on a truncated file has a page about its reader.
        reason = textwrap.shorten((str(error) or type(error).__name__).splitlines()[0], 120, placeholder=" ...")
        if "TorchScript" in str(error):
            raise ValueError(f"{path}: a TorchScript program; save its state_dict() as a .pth file") from None
        raise ValueError(f"{path}: damaged, or not a PyTorch file ({reason})") from None


def _refusal(path: Path, error: str) -> str:
    """Return why a pickle was not opened, and what to do."""
    found = re.search(r"(?:GLOBAL|class|global:?) ([\w.]+\.\w+)", error)
    if "Unsupported global" not in error and "Unsupported class" not in error:
        return "damaged, or not a PyTorch file"
    reason = f"contains more than tensors and numbers{f' ({found[1]})' if found else ''}"
    advice = "save its state_dict() where it was created"
    if b"pytorch-lightning_version" in path.read_bytes():
        advice = f'there, run torch.save(torch.load("{path.name}", weights_only=False)["state_dict"], "weights.pth")'
    return f"{reason}, so opening it could execute code; {advice}"


def _read_shards(path: Path) -> dict[str, Any]:
    """Read all files of an index: {"weight_map": {key: file}}."""
    try:
        weight_map = {str(key): str(name) for key, name in json.loads(path.read_text())["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not the index of a sharded checkpoint ({error!r})") from None
    content: dict[str, Any] = {}
    for name in sorted(set(weight_map.values())):
        file = path.parent / Path(name).name
        if not file.is_file():
            raise ValueError(f"{file}: missing, but {path.name} names it; copy the complete folder")
        raise_for_placeholder(file)
        content |= _read_file(file)
    if missing := weight_map.keys() ^ content.keys():
        raise ValueError(f"{path}: {len(missing)} keys are not in both the index and its files, such as {min(missing)}")
    return content
