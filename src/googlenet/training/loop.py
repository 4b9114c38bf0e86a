"""fit: from a recipe to trained weights, in one loop that reads from top to bottom.

What a step does depends on the recipe and the step's number alone: the order of the pictures, their changes,
their size and the learning rate are functions of it, and the one random state that is not (dropout's) is
saved. So a run that was interrupted, however roughly, goes on to the same weights.
"""

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..data.dataset import Dataset
from ..data.loader import Augment, steps_per_epoch, training_batch
from ..data.preprocess import Preprocess
from ..data.sources import load_dataset
from ..evaluation.metrics import scores
from ..evaluation.report import render_report
from ..models import native
from . import checkpoint
from .checkpoint import Checkpoint
from .environment import ENVIRONMENT, describe_environment, read_environment
from .optimiser import build_optimiser, moving_average, scale_to_weights
from .recipe import Recipe
from .record import Record, read_metrics
from .schedule import image_size, learning_rate_factor
from .task import Classification


class Fitted(NamedTuple):
    """A finished run: its folder, its final figures, its training time and speed."""

    run: Path
    metrics: dict[str, dict[str, float]]
    seconds: float
    images_per_second: float


class InterruptedRunError(RuntimeError):
    """Training was asked to stop; everything is saved, and the message says how to go on."""


def fit(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    progress: bool = True,
    command: str | None = None,
) -> Fitted:
    """Train as `recipe` says and leave everything in the run folder `out`.

    `resume` continues the run in `out` from its last saved state. `progress` is shown on standard error.
    `command` is quoted in the report. Raises ValueError for a folder in use or data that does not fit,
    NonFiniteLossError (a ValueError) when training diverges, InterruptedRunError after SIGINT or SIGTERM.
    """
    device = pick_device(recipe.device)
    run = _open_run(Path(out), recipe, resume, command)
    data = load_dataset(
        recipe.data.source,
        root=recipe.data.root,
        validation=recipe.data.validation,
        size=max(*recipe.size.sizes, recipe.test_size),
        unreadable=recipe.data.unreadable,
        limit=recipe.data.limit,
        seed=recipe.seed,
    )
    train = data.train.to(device)
    preprocess = _preprocess(recipe, data)
    augment = Augment(recipe.augment.flip, recipe.augment.shift, recipe.augment.erase)
    started = time.perf_counter()

    # The network, and what changes it.
    torch.manual_seed(recipe.seed)
    model = checkpoint.build_model(recipe, len(data.classes), data.channels).to(device)
    native.enable(model)
    task = Classification(recipe.loss)
    optimiser = build_optimiser(recipe.optimiser, model)
    average = moving_average(model, recipe.ema) if recipe.ema else None

    # Where to start: the beginning, or the last saved state.
    per_epoch = steps_per_epoch(len(data.train.labels), recipe.batch_size)
    total = recipe.epochs * per_epoch
    step, seconds = 0, 0.0
    state = checkpoint.load_state(run) if resume else None
    if state:
        step, seconds = state["step"], state["seconds"]
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        if average:
            average.load_state_dict(state["average"])
        torch.set_rng_state(state["random"])
        torch.cuda.set_rng_state_all(state["random_cuda"])

    def delivered() -> Any:
        return average.module if average else model

    def save_state(seconds: float) -> None:
        checkpoint.save_state(run, {
            "step": step,
            "seconds": seconds,
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "average": average.state_dict() if average else None,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all(),
        })  # fmt: skip

    def save_weights(metrics: dict[str, dict[str, float]]) -> None:
        done = Checkpoint(delivered(), preprocess, data.classes, recipe, metrics)
        checkpoint.save_weights(run / checkpoint.WEIGHTS, done)

    validate_every = max(1, round(recipe.validate_every * per_epoch))
    with (
        Record(run, step, total, per_epoch, seconds + time.perf_counter() - started, progress) as record,
        _stop_signal() as stop,
    ):
        for skipped in data.skipped:
            record.say(f"skipped: {skipped}")
        saved_at = time.perf_counter()
        model.train()
        while step < total:
            rate = recipe.optimiser.lr * learning_rate_factor(recipe.schedule, step, total, per_epoch)
            for group in optimiser.param_groups:
                group["lr"] = rate
            size = image_size(recipe.size, step, total, recipe.seed)
            batch = training_batch(
                train, preprocess, augment,
                step=step, batch_size=recipe.batch_size, size=size, seed=recipe.seed,
            )  # fmt: skip

            loss, correct = task.loss(model, batch)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            if recipe.optimiser.layerwise:
                scale_to_weights(model.parameters())
            if recipe.optimiser.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.optimiser.clip)
            optimiser.step()
            if average:
                average.update_parameters(model)
            step += 1
            record.step(step, loss, correct, len(batch.labels), learning_rate=rate, size=size)

            if data.validation and (step % validate_every == 0 and step < total):
                record.flush(step)
                record.scores("validation", step, scores(task.score(delivered(), data.validation, preprocess)))
            if stop.is_set() or time.perf_counter() - saved_at > 60 * recipe.checkpoint_minutes:
                record.flush(step)
                save_state(record.seconds)
                save_weights({})
                saved_at = time.perf_counter()
            if stop.is_set() and step < total:
                raise InterruptedRunError(
                    f"stopped at step {step} of {total}, everything is saved; "
                    f"go on with googlenet train --resume {run}"
                )
        seconds = record.seconds

        # The final figures: the test set is read here, once, and nothing is chosen by it.
        save_state(seconds)
        answers = {
            name: task.score(delivered(), split, preprocess)
            for name, split in (("validation", data.validation), ("test", data.test))
            if split
        }
        metrics = {name: scores(outputs) for name, outputs in answers.items()}
        for name, figures in metrics.items():
            record.scores(name, step, figures)
        save_weights(metrics)

    shown, outputs = (data.test, answers["test"]) if data.test else (data.validation, answers.get("validation"))
    page = render_report(
        run.name, recipe.to_yaml(), read_metrics(run), data.classes, shown, outputs, read_environment(run)
    )
    checkpoint.write_atomically(run / "report.html", page)
    return Fitted(run, metrics, seconds, recipe.epochs * len(data.train.labels) / seconds)


def pick_device(name: str) -> torch.device:
    """The device that `name` says; ``auto`` takes CUDA, then MPS, then the CPU. ValueError where it is absent."""
    have = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in have.items() if there))
    if not have.get(name.partition(":")[0], False):
        raise ValueError(
            f"device {name!r} is not on this machine; it has {', '.join(k for k, v in have.items() if v)}"
        )
    return torch.device(name)


def _preprocess(recipe: Recipe, data: Dataset) -> Preprocess:
    plain = recipe.data.normalise == "none"
    mean = (0.0,) * data.channels if plain else data.mean
    std = (1.0,) * data.channels if plain else data.std
    return Preprocess(recipe.test_size, data.channels, mean, std, fit=recipe.data.fit)


def _open_run(run: Path, recipe: Recipe, resume: bool, command: str | None) -> Path:
    """Make the run folder, or check that it can be continued."""
    if resume:
        if checkpoint.load_recipe(run) != recipe:
            raise ValueError(f"{run}: was started with another recipe")
        return run
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise ValueError(f"{run}: exists already; name another folder, or continue it with --resume {run}")
    run.mkdir(parents=True, exist_ok=True)
    checkpoint.write_atomically(run / checkpoint.RECIPE, recipe.to_yaml())
    checkpoint.write_atomically(run / ENVIRONMENT, json.dumps(describe_environment(command), indent=2) + "\n")
    return run


@contextmanager
def _stop_signal() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, so that the step under way is finished and saved.

    A second signal acts at once, as without us.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for kind, handler in before.items():
            signal.signal(kind, handler)

    def on_signal(*_: Any) -> None:
        stop.set()
        restore()

    for kind in before:
        signal.signal(kind, on_signal)
    try:
        yield stop
    finally:
        restore()
