"""Train an ensemble as in ILSVRC14: several networks of one recipe whose probabilities are averaged.

"Going Deeper with Convolutions", section 7: all networks have the same initial weights and learning rates; the order
and augmentation of the images differ; one network is wider.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..checkpoint.ensemble import ENSEMBLE_FILE, FINISHED_FILE, EnsembleInfo, ensemble_of
from ..checkpoint.format import RECIPE_FILE, Checkpoint, read_run, read_run_recipe
from ..config.schema import Recipe
from ..config.tasks import get_task_module
from ..data.loader import evaluation_batches
from ..devices import pick_device
from ..errors import InterruptedRunError
from ..evaluation.metrics import classification_metrics, run_inference
from ..evaluation.multilabel import choose_thresholds, multilabel_metrics
from ..files import write_atomically
from ..models.registry import default_config
from .cross_validation import check_folds, cross_validate, fold_recipes, require_pyarrow
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
    """A trained ensemble: its folder, the metrics of the averaged prediction by split, and the members.

    Of a cross-validation the metrics under "out_of_fold" are those of all images, each predicted by the networks that
    were not trained on it, and `folds` has the metrics of each fold; else None.
    """

    folder: Path
    metrics: dict[str, dict[str, Any]]
    members: list[Member]
    folds: list[dict[str, float]] | None = None


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
    recipe = _resolve(recipe)
    member_recipes(recipe, num_models, last_width_mult)
    _create_folder(folder, recipe, EnsembleInfo(num_models, last_width_mult))


def create_cross_validation(recipe: Recipe, folder: Path, num_folds: int, repeats: int = 1) -> None:
    """Create the folder in which `train_ensemble` trains a network per fold and repeat; ValueError if it is in use."""
    first, *_ = fold_recipes(recipe, num_folds, repeats)
    first = _resolve(first)
    require_pyarrow()
    check_folds(first, repeats)
    recipe = replace(first, data=replace(first.data, fold=None))
    _create_folder(folder, recipe, EnsembleInfo(num_folds * repeats, None, num_folds=num_folds))


def _resolve(recipe: Recipe) -> Recipe:
    if recipe.task == "detection":
        raise ValueError(f"ensembles average class probabilities, which task {recipe.task} does not have")
    return resolve_recipe(recipe)


def _create_folder(folder: Path, recipe: Recipe, info: EnsembleInfo) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        advice = f"name another folder, or continue it: googlenet ensemble train --resume {folder}"
        raise ValueError(f"{folder}: exists already; {advice}")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / RECIPE_FILE, recipe.to_yaml())
    info.write(folder)


def train_ensemble(folder: Path, *, command: str | None = None, progress: bool = True) -> EnsembleResult:
    """Train the members of a folder made by `create_ensemble` one after another, and measure their average.

    Finished members are kept and an interrupted one resumes. Raises the errors of `fit`; if no member could be started,
    the folder is removed.
    """
    info = EnsembleInfo.read(folder)
    runs = info.runs(folder)
    recipe = read_run_recipe(folder)
    if info.num_folds is None:
        recipes = member_recipes(recipe, info.num_models, info.last_width_mult)
    else:
        recipes = fold_recipes(recipe, info.num_folds, info.num_models // info.num_folds)
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
    if info.metrics is None:
        info = _measure(checkpoints, info, folder)
        info.write(folder)
    assert info.metrics is not None
    members = [
        Member(run, member.recipe.seed, member.recipe.model.width_mult, member.metrics, _training_seconds(run))
        for run, member in zip(runs, checkpoints, strict=True)
    ]
    return EnsembleResult(folder, info.metrics, members, info.folds)


def _measure(members: list[Checkpoint], info: EnsembleInfo, folder: Path) -> EnsembleInfo:
    """Measure the averaged prediction on the held-out splits, and a cross-validation on every image."""
    recipe, preprocess = members[0].recipe, members[0].preprocess
    device = pick_device(recipe.device)
    model = ensemble_of(members).to(device)
    data = get_task_module(recipe).load_data(recipe).to(device)
    splits = {"validation": data.validation, "test": data.test}
    if info.num_folds is not None:
        del splits["validation"]  # training images of all members but one
    predictions = {
        name: run_inference(model, evaluation_batches(split, preprocess), device)
        for name, split in splits.items()
        if split
    }
    metrics, thresholds = dict[str, Any](), tuple[float, ...]()
    if recipe.task == "multilabel":
        thresholds = choose_thresholds(predictions.get("validation"), len(data.classes))
    if info.num_folds is not None:
        result = cross_validate(members, folder)
        metrics["out_of_fold"], thresholds = result.pooled, result.thresholds
        info = replace(info, folds=result.folds)
    for name, outputs in predictions.items():
        metrics[name] = multilabel_metrics(outputs, thresholds) if thresholds else classification_metrics(outputs)
    return replace(info, metrics=metrics, thresholds=thresholds)


def _training_seconds(run: Path) -> float:
    return max((entry["seconds"] for entry in read_metrics(run) if entry["split"] == "train"), default=0.0)
