"""Ensembles on disk: a folder with ``ensemble.json``, ``recipe.yaml`` and one ordinary run folder per member."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..files import write_atomically
from ..models.ensemble import Ensemble
from .format import Checkpoint, check_task, read_run

ENSEMBLE_FILE = "ensemble.json"
# `fit` writes the report last: a run that has one is finished.
FINISHED_FILE = "report.html"


@dataclass(frozen=True)
class EnsembleInfo:
    """The content of ``ensemble.json``.

    `last_width_mult` is the width factor of the last member (None: like the others); `metrics` of the averaged
    prediction are None until all members are trained. With `num_folds` the members are the folds of a
    cross-validation, one repeat after the other, and `folds` has the metrics of each. `thresholds` are those of
    `Checkpoint`.
    """

    num_models: int
    last_width_mult: float | None
    metrics: dict[str, Any] | None = None
    num_folds: int | None = None
    folds: list[dict[str, float]] | None = None
    thresholds: tuple[float, ...] = ()

    def write(self, folder: Path) -> None:
        """Write ``ensemble.json``."""
        write_atomically(folder / ENSEMBLE_FILE, json.dumps(vars(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "EnsembleInfo":
        """Read ``ensemble.json``; ValueError if it is missing or damaged."""
        path = folder / ENSEMBLE_FILE
        if not path.is_file():
            raise ValueError(f"{folder}: not an ensemble: it has no {ENSEMBLE_FILE}")
        try:
            values = json.loads(path.read_text())
            num_models, last_width_mult, metrics = (values[key] for key in ("num_models", "last_width_mult", "metrics"))
            optional = (values.get("num_folds"), values.get("folds"), tuple(values.get("thresholds", ())))
            return cls(int(num_models), last_width_mult, metrics, *optional)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: damaged, or not written by this program ({error})") from None

    def runs(self, folder: Path) -> list[Path]:
        """Return the members' run folders."""
        return [folder / f"member-{number}" for number in range(1, self.num_models + 1)]


def is_ensemble(folder: Path) -> bool:
    """Return whether `folder` is an ensemble's."""
    return (folder / ENSEMBLE_FILE).is_file()


def read_ensemble(folder: Path, task: str | None = None) -> Checkpoint:
    """Read the members as one `Checkpoint` with the first member's recipe.

    Raises ValueError if it is not fully trained, or if the members' inputs or classes differ.
    """
    info = EnsembleInfo.read(folder)
    runs = info.runs(folder)
    if info.metrics is None:
        finished = sum((run / FINISHED_FILE).exists() for run in runs)
        advice = f"continue with googlenet ensemble train --resume {folder}"
        raise ValueError(f"{folder}: {finished} of {len(runs)} members are trained; {advice}")
    members = [read_run(run) for run in runs]
    first = members[0]
    check_task(first.recipe, task, str(folder))
    for run, member in zip(runs, members, strict=True):
        if (member.preprocess, member.classes) != (first.preprocess, first.classes):
            advice = f"evaluate such networks together with googlenet evaluate {runs[0]} --ensemble {run}"
            raise ValueError(f"{run}: preprocessing or classes differ from those of {runs[0].name}; {advice}")
    recipe = first.recipe
    if info.num_folds is not None:
        # Every image that a fold holds out is a training image of the other members.
        recipe = replace(recipe, data=replace(recipe.data, fold=None))
    return replace(first, model=ensemble_of(members), metrics=info.metrics, recipe=recipe, thresholds=info.thresholds)


def ensemble_of(members: list[Checkpoint]) -> Ensemble:
    """Combine checkpoints into one module in evaluation mode."""
    return Ensemble([member.network for member in members], members[0].recipe.task == "multilabel").eval()
