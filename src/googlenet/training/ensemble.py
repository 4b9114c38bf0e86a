"""Several networks of one recipe that answer as one, trained as ILSVRC14's seven were.

"Going Deeper with Convolutions", section 7: the same initial weights and learning rates; the sampling and the order
of the pictures differ; one network is wider. A folder of them has ``ensemble.json``, ``recipe.yaml`` and
``member-1``, ``member-2``, ..., each an ordinary run.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..data.loader import evaluation_batches
from ..errors import InterruptedRunError
from ..evaluation.metrics import collect, scores
from ..files import write_atomically
from ..models.catalogue import defaults
from ..models.ensemble import Ensemble
from . import prepare
from .checkpoint import RECIPE, Checkpoint, load, load_recipe
from .devices import pick_device
from .loop import fit
from .recipe import Recipe
from .record import read_metrics

ENSEMBLE = "ensemble.json"

# Written last by `fit`: a run that has it is finished.
DONE = "report.html"

MEMBERS, WIDER = 7, 1.25


class Member(NamedTuple):
    """A trained member: its `run` folder, what it differs in, its final figures by split, its seconds of training."""

    run: Path
    seed: int
    width: float | None
    metrics: dict[str, dict[str, float]]
    seconds: float


class FittedEnsemble(NamedTuple):
    """A finished ensemble: its folder, the figures of the members' mean by split, and the members."""

    folder: Path
    metrics: dict[str, dict[str, float]]
    members: list[Member]


def member_recipes(recipe: Recipe, members: int = MEMBERS, wider: float | None = WIDER) -> list[Recipe]:
    """One recipe per member: initial weights and held-out pictures are those of `recipe`, the other draws its own.

    The seeds count up from the recipe's. The last network has `wider` times the recipe's channels; None leaves it as
    the others are. ValueError for fewer than 2 members, and where a wider network cannot be had.
    """
    if members < 2:
        raise ValueError(f"an ensemble has 2 members or more, not {members}")
    initial = recipe.seed if recipe.model.seed is None else recipe.model.seed
    model = replace(recipe.model, seed=initial)
    data = replace(recipe.data, seed=recipe.split_seed)
    found = [replace(recipe, model=model, data=data, seed=recipe.seed + number) for number in range(members)]
    if wider is None:
        return found
    if wider <= 1:
        raise ValueError(f"a wider network has more than 1 times the channels, not {wider:g}")
    if model.weights is not None:
        raise ValueError(
            "the weights that the recipe starts from fit one width alone: leave it out with --wider none"
        )
    name = model.name or "googlenet"
    if "width" not in defaults(name):
        raise ValueError(f"only a GoogLeNet can be made wider, and {name} is none: leave it out with --wider none")
    return [*found[:-1], replace(found[-1], model=replace(model, width=wider * (model.width or 1.0)))]


def start_ensemble(recipe: Recipe, out: Path, members: int = MEMBERS, wider: float | None = WIDER) -> None:
    """Make the folder `out`, from which `train_ensemble` trains; ValueError where it is in use."""
    if recipe.task != "classification":
        raise ValueError(f"an ensemble answers as one by its classes; a recipe of {recipe.task} has none to average")
    recipe = prepare.resolved(recipe, pick_device(recipe.device))
    member_recipes(recipe, members, wider)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(
            f"{out}: exists already; name another folder, or go on with googlenet ensemble train --resume {out}"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / RECIPE, recipe.to_yaml())
    _write(out, {"members": members, "wider": wider, "metrics": None})


def train_ensemble(out: Path, *, command: str | None = None, progress: bool = True) -> FittedEnsemble:
    """Train what `start_ensemble` has laid out, one member after the other, and measure their mean.

    Members that are finished are kept, one that was interrupted goes on to the same weights. Raises what `fit` does.
    The folder goes again where nothing could be trained.
    """
    about = _read(out)
    recipes = member_recipes(load_recipe(out), about["members"], about["wider"])
    runs = _runs(out, about)
    for number, (run, recipe) in enumerate(zip(runs, recipes, strict=True), start=1):
        if (run / DONE).exists():
            continue
        if progress:
            print(f"member {number} of {len(runs)}", file=sys.stderr)
        try:
            fit(recipe, run, restartable=True, progress=progress, command=command)
        except InterruptedRunError:
            raise InterruptedRunError(
                f"stopped in member {number} of {len(runs)}, everything is saved; "
                f"go on with googlenet ensemble train --resume {out}"
            ) from None
        except BaseException:
            if not any(other.exists() for other in runs):
                for name in (ENSEMBLE, RECIPE):
                    (out / name).unlink()
                out.rmdir()
            raise
    trained = [load(run) for run in runs]
    if about["metrics"] is None:
        about["metrics"] = _measure(trained)
        _write(out, about)
    members = [
        Member(run, one.recipe.seed, one.recipe.model.width, one.metrics, _seconds(run))
        for run, one in zip(runs, trained, strict=True)
    ]
    return FittedEnsemble(out, about["metrics"], members)


def is_ensemble(place: Path) -> bool:
    """Whether `place` is a folder of `start_ensemble`."""
    return (place / ENSEMBLE).is_file()


def load_ensemble(place: Path) -> Checkpoint:
    """The members as one `Checkpoint`; its recipe is the first member's.

    ValueError, with what to do, for one that is not trained to its end, and for members that do not belong together.
    """
    about = _read(place)
    runs = _runs(place, about)
    if about["metrics"] is None:
        done = sum((run / DONE).exists() for run in runs)
        raise ValueError(
            f"{place}: {done} of {len(runs)} members are trained; "
            f"go on with googlenet ensemble train --resume {place}"
        )
    members = [load(run) for run in runs]
    first = members[0]
    for run, other in zip(runs, members, strict=True):
        if (other.preprocess, other.classes) != (first.preprocess, first.classes):
            raise ValueError(
                f"{run}: takes other pixels or classes than {runs[0].name}; such networks answer together with "
                f"googlenet evaluate {runs[0]} --with {run}"
            )
    return replace(first, model=_together(members), metrics=about["metrics"])


def _together(members: list[Checkpoint]) -> Ensemble:
    model = Ensemble([member.network for member in members])
    model.eval()
    return model


def _measure(members: list[Checkpoint]) -> dict[str, dict[str, float]]:
    """The figures of the members' mean on what was held out."""
    first = members[0]
    device = pick_device(first.recipe.device)
    model = _together(members).to(device)
    data = prepare.load(first.recipe).to(device)
    return {
        name: scores(collect(model, evaluation_batches(split, first.preprocess), device))
        for name, split in (("validation", data.validation), ("test", data.test))
        if split
    }


def _seconds(run: Path) -> float:
    return max((entry["seconds"] for entry in read_metrics(run) if entry["split"] == "train"), default=0.0)


def _runs(out: Path, about: dict[str, Any]) -> list[Path]:
    return [out / f"member-{number}" for number in range(1, about["members"] + 1)]


def _write(out: Path, about: dict[str, Any]) -> None:
    write_atomically(out / ENSEMBLE, json.dumps(about, indent=2) + "\n")


def _read(out: Path) -> dict[str, Any]:
    path = out / ENSEMBLE
    if not path.is_file():
        raise ValueError(f"{out}: not an ensemble: it has no {ENSEMBLE}")
    try:
        about = json.loads(path.read_text())
        return {"members": int(about["members"]), "wider": about["wider"], "metrics": about["metrics"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged, or not a file of ours ({error})") from None
