"""Load any kind of checkpoint by its path or name."""

import os
import shlex
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..config.schema import Recipe
from ..files import raise_for_placeholder
from .ensemble import is_ensemble, read_ensemble
from .format import MANIFEST_FILE, RECIPE_FILE, Checkpoint, check_task, read_checkpoint, read_run
from .interop.convert import matching_libraries
from .interop.pretrained import is_pretrained_name, load_pretrained
from .interop.weight_files import KERAS_SUFFIXES, WEIGHT_SUFFIXES, find_weights, read_weights
from .train_state import STATE_FILE


def load(path: str | os.PathLike[str], *, task: str | None = None) -> Checkpoint:
    """Load a checkpoint on the CPU: a run folder, an ensemble's folder, a .safetensors file, or published weights.

    Those are named such as "torchvision:googlenet" or "timm:inception_v3.tf_in1k", downloaded by that library,
    converted and cached. Raises ValueError for a missing or damaged file, weights of another program (with the command
    that converts them), an exported folder, weights that do not fit the network they name or are not finite, and a
    network for another `task` than the one given.
    """
    file = Path(path)
    if is_pretrained_name(str(path)) and not file.exists():
        check_task(Recipe(), task, str(path))  # published networks are classifiers: nothing is downloaded for detection
        return load_pretrained(str(path))
    if is_ensemble(file):
        return read_ensemble(file, task)
    if (file / MANIFEST_FILE).is_file():
        raise ValueError(f"{path}: an exported folder; this needs the run or .safetensors file it was exported from")
    if is_external(file):
        raise ValueError(f"{path}: {_advice(file)}")
    return read_run(file, task) if file.is_dir() else read_checkpoint(file, task)


def is_external(path: Path) -> bool:
    """Return whether `path` is a weights file of another program, or a folder with one and without a recipe."""
    if path.is_dir():
        if (path / RECIPE_FILE).exists():
            return False
        try:
            path = find_weights(path)
        except ValueError:
            return False
    if path.suffix != ".safetensors":
        return path.is_file() and (path.suffix in WEIGHT_SUFFIXES or path.name.endswith(".index.json"))
    try:
        with safe_open(path, framework="pt") as file:
            return "googlenet" not in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _advice(path: Path) -> str:
    """Return what weights of another program are, and the command that converts them."""
    if path.name == STATE_FILE and (path.parent / RECIPE_FILE).is_file():
        return f"a training state; name the run: {path.parent}"
    weights = find_weights(path)
    raise_for_placeholder(weights)
    suffix = weights.suffix
    if suffix == ".caffemodel" or suffix in KERAS_SUFFIXES:
        libraries = ["caffe" if suffix == ".caffemodel" else "keras"]
    else:
        try:
            tensors = read_weights(path).tensors
        except ValueError as error:
            return f"weights of another program, which cannot be read: {error}"
        libraries = matching_libraries(tensors)
        if not libraries:
            keys = ", ".join(sorted(tensors)[:3])
            return f"weights of another program, with keys of no network that googlenet convert knows ({keys}, ...)"
    out = shlex.quote(f"{path.stem}{'-converted' * (suffix == '.safetensors')}.safetensors")
    others = f" (or --from {' or '.join(libraries[1:])}: the preprocessing differs)" if libraries[1:] else ""
    command = f"googlenet convert {shlex.quote(str(path))} --from {libraries[0]} --out {out}"
    return f"weights of another program, without preprocessing and classes; convert them first: {command}{others}"
