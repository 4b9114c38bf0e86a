"""Experiment trackers through accelerate: TensorBoard, Weights & Biases, MLflow, trackio.

A run has one tracker (recipe key `tracker`). ``metrics.jsonl`` has the same values whatever the tracker is.
"""

import json
import secrets
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from ..config.schema import Recipe
from ..files import write_atomically

PROJECT = "googlenet"
# The tracker's identifier of the run, so that a resumed run continues the same record.
TRACKER_FILE = "tracker.json"


class TrackerSpec(NamedTuple):
    """A tracker: its Python `module`, and the arguments of accelerate's class for a run.

    `arguments` gets the run folder, the identifier in `TRACKER_FILE` and the number of finished steps.
    """

    module: str
    arguments: Callable[[Path, str, int], dict[str, Any]]


def _tensorboard(folder: Path, _: str, step: int) -> dict[str, Any]:
    # TensorBoard discards the events that a resumed run repeats.
    return {"run_name": "tensorboard", "logging_dir": str(folder), "purge_step": step + 1 if step else None}


def _wandb(folder: Path, run_id: str, _: int) -> dict[str, Any]:
    return {"run_name": PROJECT, "name": folder.name, "id": run_id, "resume": "allow", "dir": str(folder)}


def _mlflow(folder: Path, run_id: str, step: int) -> dict[str, Any]:
    # MLflow chooses the identifier itself; see `start_tracker`.
    known = run_id if step else None
    return {"experiment_name": PROJECT, "run_name": None if known else folder.name, "run_id": known}


def _trackio(folder: Path, run_id: str, _: int) -> dict[str, Any]:
    # trackio identifies a run by its name.
    return {"run_name": PROJECT, "name": f"{folder.name}-{run_id}", "resume": "allow"}


# A tracker that accelerate knows is one line here, one name in `Recipe.tracker`, and an extra of its name.
TRACKERS: dict[str, TrackerSpec] = {
    "tensorboard": TrackerSpec("tensorboard", _tensorboard),
    "wandb": TrackerSpec("wandb", _wandb),
    "mlflow": TrackerSpec("mlflow", _mlflow),
    "trackio": TrackerSpec("trackio", _trackio),
}


def check_tracker(name: str) -> None:
    """Raise ValueError if the package of the tracker `name` is not installed."""
    if name != "none" and find_spec(TRACKERS[name].module) is None:
        raise ValueError(f"tracker {name}: not installed; pip install 'googlenet[{name}]', or use tracker tensorboard")


def start_tracker(folder: Path, recipe: Recipe, step: int) -> Any:
    """Start the recipe's tracker of accelerate for a run with `step` finished steps; None for the tracker none.

    Raises ValueError if it does not start, for example without a login.
    """
    if recipe.tracker == "none":
        return None
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    path = folder / TRACKER_FILE
    saved = json.loads(path.read_text()) if step and path.is_file() else {}
    continued = step if saved or recipe.tracker == "tensorboard" else 0
    run_id = saved.get("id") or secrets.token_hex(4)
    arguments = TRACKERS[recipe.tracker].arguments(folder, run_id, continued)
    try:
        tracker = LOGGER_TYPE_TO_CLASS[recipe.tracker](**arguments)
        tracker.start()
        if recipe.tracker != "tensorboard":  # a table of hyperparameters of one run in a folder of its own
            tracker.store_init_configuration(_flat(asdict(recipe)))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"tracker {recipe.tracker}: {reason}; or train with --tracker tensorboard") from error
    if recipe.tracker == "mlflow":
        run_id = tracker.tracker.info.run_id
    if recipe.tracker != "tensorboard":
        write_atomically(path, json.dumps({"tracker": recipe.tracker, "id": run_id}) + "\n")
    return tracker


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by their recipe keys, lists as text: trackers take single values."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(list(value)) if isinstance(value, tuple) else value
    return flat
