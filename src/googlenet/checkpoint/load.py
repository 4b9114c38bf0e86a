"""Load any kind of checkpoint by its path or name."""

import os
from pathlib import Path

from ..config.schema import Recipe
from .ensemble import is_ensemble, read_ensemble
from .format import Checkpoint, check_task, read_checkpoint, read_run
from .interop.pretrained import is_pretrained_name, load_pretrained


def load(path: str | os.PathLike[str], *, task: str | None = None) -> Checkpoint:
    """Load a checkpoint on the CPU: a run folder, an ensemble's folder, a .safetensors file, or published weights.

    Those are named such as "torchvision:googlenet" or "timm:inception_v3.tf_in1k", downloaded by that library,
    converted and cached. Raises ValueError for a missing or damaged file, a pickle (never opened, as it could execute
    code), weights that do not fit the network they name, and a network for another `task` than the one given.
    """
    file = Path(path)
    if is_pretrained_name(str(path)) and not file.exists():
        check_task(Recipe(), task, str(path))  # published networks are classifiers: nothing is downloaded for detection
        return load_pretrained(str(path))
    if is_ensemble(file):
        return read_ensemble(file, task)
    return read_run(file, task) if file.is_dir() else read_checkpoint(file, task)
