"""Search for better recipe values with Optuna: trials are complete runs, compared on the validation images.

A search is a folder: the base recipe, the search space, Optuna's study, and a run folder for each trial. The first
trial is the recipe itself. The values of a trial depend only on the results of the trials before it and on the recipe's
seed, so an interrupted search continues as if it had not stopped. Trials do not evaluate the test images.
"""

import json
import math
import statistics
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ..config.parse import read_recipe
from ..config.schema import Recipe
from ..errors import InterruptedRunError
from ..files import write_atomically
from .fit import fit
from .setup import resolve_recipe
from .tune_space import Search, suggest

BASE_FILE, SEARCH_FILE, STUDY_FILE, BEST_FILE = "base.yaml", "tune.json", "study.db", "best.yaml"
# A trial is stopped if it is worse than the median of the others at that point: not before this fraction of a run, and
# not before this many trials.
MIN_PROGRESS, MIN_TRIALS = 0.3, 4


class TrialRow(NamedTuple):
    """A trial: its number, ``complete``, ``stopped`` or ``failed``, its values by recipe key, and its result.

    `value` is the validation metric (of stopped trials: the last one, or None), `seconds` its duration,
    `note` why it failed or was stopped.
    """

    number: int
    state: str
    values: dict[str, Any]
    value: float | None
    seconds: float
    note: str


class Limits(NamedTuple):
    """The end of a search: seconds of all trials together, and the number of trials; None: no limit."""

    seconds: float | None
    trials: int | None


def create_search(recipe: Recipe, search: Search, folder: Path, limits: Limits) -> None:
    """Create the folder that `run_search` continues.

    Raises ValueError if the folder is in use, or the recipe has no validation images.
    """
    check_optuna()
    recipe = resolve_recipe(recipe)
    if recipe.data.val_split == 0:
        raise ValueError("tune compares trials on validation images: set data.val_split, such as 0.2")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: exists already; name another folder, or continue it with --resume {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / BASE_FILE, recipe.to_yaml())
    document = {"search": {key: list(values) for key, values in search.items()}, **limits._asdict()}
    write_atomically(folder / SEARCH_FILE, json.dumps(document, indent=2) + "\n")


def check_optuna() -> None:
    """Raise ValueError if Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise ValueError("tune needs Optuna: pip install 'googlenet[tune]'") from None


def read_search(folder: Path) -> tuple[Search, Limits]:
    """Read the search space and the limits of a search; ValueError if `folder` is not a search."""
    try:
        document = json.loads((folder / SEARCH_FILE).read_text())
        search = {key: tuple(values) for key, values in document["search"].items()}
        return search, Limits(document["seconds"], document["trials"])
    except (OSError, ValueError, KeyError):
        raise ValueError(f"{folder}: not the folder of a search (no valid {SEARCH_FILE})") from None


def run_search(folder: Path, limits: Limits, *, progress: bool = True) -> list[TrialRow]:
    """Run trials until the `limits` are reached; return all trials of the folder, the best first.

    An interrupted trial is continued first. Writes the recipe of the best trial.

    Raises:
        ValueError: the recipe itself does not train, or no trial has a result.
        InterruptedRunError: SIGINT or SIGTERM was received; the state is saved.
    """
    check_optuna()
    search, _ = read_search(folder)
    study = open_study(folder)
    while (trial := next_trial(study, folder, search, limits)) is not None:
        run_trial(study, trial, folder, limits, progress)
    rows = trial_rows(study)
    if not rows or rows[0].value is None:
        raise ValueError(f"{folder}: no trial has a result; the first one ended with: {rows[-1].note}")
    write_atomically(folder / BEST_FILE, trial_recipe(folder, rows[0].values).to_yaml())
    return rows


def open_study(folder: Path) -> Any:
    """Open or create Optuna's study of a search."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=MIN_TRIALS, n_warmup_steps=round(100 * MIN_PROGRESS))
    return optuna.create_study(
        storage=f"sqlite:///{folder / STUDY_FILE}", study_name="googlenet", direction="maximize", pruner=pruner,
        load_if_exists=True,
    )  # fmt: skip


def next_trial(study: Any, folder: Path, search: Search, limits: Limits) -> Any:
    """Return the interrupted trial, else a new one; None if a limit is reached.

    A new trial does not start if one of median duration would end after the time limit.
    """
    import optuna

    rows = trial_rows(study)
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        return optuna.trial.Trial(study, trial._trial_id)
    if limits.trials is not None and len(rows) >= limits.trials:
        return None
    durations = [row.seconds for row in rows]
    if durations and limits.seconds is not None and sum(durations) + statistics.median(durations) > limits.seconds:
        return None
    # A sampler with a random state of its own for every trial: a continued search draws the same values.
    number = len(study.get_trials(deepcopy=False))
    base = read_recipe(str(folder / BASE_FILE))
    study.sampler = optuna.samplers.TPESampler(seed=base.seed + number, n_startup_trials=MIN_TRIALS)
    trial = study.ask()
    trial.set_user_attr("values", {} if number == 0 else suggest(trial, search))
    return trial


def trial_recipe(folder: Path, values: dict[str, Any]) -> Recipe:
    """Return the base recipe with the values of a trial."""
    flags = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]
    return read_recipe(str(folder / BASE_FILE), flags)


def run_trial(study: Any, trial: Any, folder: Path, limits: Limits, progress: bool) -> None:
    """Train a trial to its end, and record its result in the study."""
    import optuna

    complete, stopped, failed = (getattr(optuna.trial.TrialState, name) for name in ("COMPLETE", "PRUNED", "FAIL"))
    values: list[float] = []
    spent, started = sum(row.seconds for row in trial_rows(study)), time.monotonic()
    earlier = trial.user_attrs.get("seconds", 0.0)

    def report(done: float, value: float) -> None:
        values.append(value)
        with warnings.catch_warnings():  # a continued trial repeats a value
            warnings.simplefilter("ignore")
            trial.report(value, round(100 * done))
        late = limits.seconds is not None and spent + time.monotonic() - started > limits.seconds
        if done < 1 and late and trial.number > 0:
            raise optuna.TrialPruned("the time is over")
        if done < 1 and trial.should_prune():
            raise optuna.TrialPruned("below the median of the other trials")

    def finish(state: Any, note: str = "") -> None:
        trial.set_user_attr("seconds", round(earlier + time.monotonic() - started, 2))
        trial.set_user_attr("note", note)
        if state is not None:
            study.tell(trial, values[-1] if state == complete else None, state=state)

    run = folder / f"trial-{trial.number:03}"
    try:
        fit(
            trial_recipe(folder, trial.user_attrs.get("values", {})),
            run,
            resume="auto",
            progress=progress,
            trial=report,
        )
    except optuna.TrialPruned as reason:
        finish(stopped, str(reason))
    except InterruptedRunError as error:
        finish(None)
        advice = f"continue with googlenet tune --resume {folder}"
        raise InterruptedRunError(f"stopped in trial {trial.number}, everything is saved; {advice}") from error
    except ValueError as error:
        finish(failed, " ".join(str(error).split()))
        if trial.number == 0:
            raise
    else:
        finish(complete)


def trial_rows(study: Any) -> list[TrialRow]:
    """Return the ended trials and the time of an interrupted one, the best first, those without a result last."""
    states = {"COMPLETE": "complete", "PRUNED": "stopped", "FAIL": "failed", "RUNNING": "running"}
    rows = []
    for trial in study.get_trials(deepcopy=False):
        last = trial.intermediate_values.get(trial.last_step) if trial.last_step is not None else None
        value = trial.value if trial.value is not None else last
        attributes = trial.user_attrs
        state, seconds, note = states[trial.state.name], attributes.get("seconds", 0.0), attributes.get("note", "")
        rows.append(TrialRow(trial.number, state, attributes.get("values", {}), value, seconds, note))

    def rank(row: TrialRow) -> tuple[int, float, int]:
        value = -math.inf if row.value is None else row.value
        return (0 if row.state == "complete" else 1, -value, row.number)

    return sorted((row for row in rows if row.state != "running" or row.seconds), key=rank)


def recipe_values(recipe: Recipe, keys: list[str]) -> dict[str, Any]:
    """Return the values of a recipe by key, such as ``optimizer.lr``."""
    document = yaml.safe_load(recipe.to_yaml())
    return {key: document[key] if "." not in key else document[key.split(".")[0]][key.split(".")[1]] for key in keys}
