"""Train an ensemble as in ILSVRC14: several networks of one recipe whose probabilities are averaged.

"Going Deeper with Convolutions", section 7: all networks have the same initial weights and learning rates; the order
and augmentation of the images differ; one network is wider.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ..checkpoint.ensemble import ENSEMBLE_FILE, FINISHED_FILE, EnsembleInfo, ensemble_of
from ..checkpoint.format import RECIPE_FILE, Checkpoint, read_run, read_run_recipe
from ..config.schema import Recipe
from ..config.tasks import get_task_module
from ..data.loader import evaluation_batches
from ..devices import pick_device
from ..errors import InterruptedRunError
from ..evaluation.metrics import classification_metrics, run_inference
from ..files import write_atomically
from ..models.registry import default_config
from .fit import fit
from .metrics_logger import read_metrics
from .setup import resolve_recipe

# The paper's ensemble.
NUM_MODELS, LAST_WIDTH_MULT = 7, 1.25


class Member(NamedTuple):
    """A trained member: run folder, seed, width, final metrics by split, seconds of training."""

    run: Path
    seed: int
    width_mult: float | None
    metrics: dict[str, dict[str, float]]
    seconds: float


class EnsembleResult(NamedTuple):
    """A trained ensemble: its folder, the metrics of the averaged prediction by split, and the members."""

    folder: Path
    metrics: dict[str, dict[str, float]]
    members: list[Member]


def member_recipes(
    recipe: Recipe, num_models: int = NUM_MODELS, last_width_mult: float | None = LAST_WIDTH_MULT
) -> list[Recipe]:
    """Return one recipe per member, with the same initial weights and validation split, and seeds that count up.

    The last one has `last_width_mult` times the recipe's channels (None: like the others). Raises ValueError for fewer
    than 2 members, and if the last network cannot be made wider.
    """
    if num_models < 2:
        raise ValueError(f"an ensemble has 2 or more members, not {num_models}")
    model = replace(recipe.model, seed=recipe.seed if recipe.model.seed is None else recipe.model.seed)
    data = replace(recipe.data, split_seed=recipe.split_seed)
    recipes = [replace(recipe, model=model, data=data, seed=recipe.seed + index) for index in range(num_models)]
    if last_width_mult is None:
        return recipes
    if last_width_mult <= 1:
        raise ValueError(f"the last width factor must be above 1, not {last_width_mult:g}")
    if model.init_from is not None:
        raise ValueError("model.init_from: the weights fit one width only; use --last-width-mult none")
    name = model.name or "googlenet"
    if "width_mult" not in default_config(name):
        raise ValueError(f"only GoogLeNets have a width factor, not {name}; use --last-width-mult none")
    wider = replace(model, width_mult=last_width_mult * (model.width_mult or 1.0))
    return [*recipes[:-1], replace(recipes[-1], model=wider)]


def create_ensemble(
    recipe: Recipe, folder: Path, num_models: int = NUM_MODELS, last_width_mult: float | None = LAST_WIDTH_MULT
) -> None:
    """Create the folder that `train_ensemble` trains; ValueError if it is in use."""
    if recipe.task != "classification":
        raise ValueError(f"ensembles average class probabilities, which task {recipe.task} does not have")
    recipe = resolve_recipe(recipe)
    member_recipes(recipe, num_models, last_width_mult)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        advice = f"name another folder, or continue it: googlenet ensemble train --resume {folder}"
        raise ValueError(f"{folder}: exists already; {advice}")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / RECIPE_FILE, recipe.to_yaml())
    EnsembleInfo(num_models, last_width_mult).write(folder)


def train_ensemble(folder: Path, *, command: str | None = None, progress: bool = True) -> EnsembleResult:
    """Train the members of a folder made by `create_ensemble` one after another, and measure their average.

    Finished members are kept and an interrupted one resumes. Raises the errors of `fit`; if no member could be started,
    the folder is removed.
    """
    info = EnsembleInfo.read(folder)
    runs = info.runs(folder)
    recipes = member_recipes(read_run_recipe(folder), info.num_models, info.last_width_mult)
    for index, (run, recipe) in enumerate(zip(runs, recipes, strict=True), start=1):
        if (run / FINISHED_FILE).exists():
            continue
        if progress:
            print(f"member {index} of {len(runs)}", file=sys.stderr)
        try:
            fit(recipe, run, resume="auto", progress=progress, command=command)
        except InterruptedRunError:
            raise InterruptedRunError(
                f"stopped in member {index} of {len(runs)}, everything is saved; "
                f"continue with googlenet ensemble train --resume {folder}"
            ) from None
        except BaseException:
            if not any(path.exists() for path in runs):
                for name in (ENSEMBLE_FILE, RECIPE_FILE):
                    (folder / name).unlink()
                folder.rmdir()
            raise
    checkpoints = [read_run(run) for run in runs]
    metrics = _measure(checkpoints) if info.metrics is None else info.metrics
    if info.metrics is None:
        replace(info, metrics=metrics).write(folder)
    members = [
        Member(run, member.recipe.seed, member.recipe.model.width_mult, member.metrics, _training_seconds(run))
        for run, member in zip(runs, checkpoints, strict=True)
    ]
    return EnsembleResult(folder, metrics, members)


def _measure(members: list[Checkpoint]) -> dict[str, dict[str, float]]:
    """Measure the averaged prediction on the held-out splits."""
    recipe, preprocess = members[0].recipe, members[0].preprocess
    device = pick_device(recipe.device)
    model = ensemble_of(members).to(device)
    data = get_task_module(recipe).load_data(recipe).to(device)
    return {
        name: classification_metrics(run_inference(model, evaluation_batches(split, preprocess), device))
        for name, split in (("validation", data.validation), ("test", data.test))
        if split
    }


def _training_seconds(run: Path) -> float:
    return max((entry["seconds"] for entry in read_metrics(run) if entry["split"] == "train"), default=0.0)
