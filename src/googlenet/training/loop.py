"""fit: from a recipe to trained weights, in one loop that reads from top to bottom.

What a step does depends on the recipe and the step's number alone: the order of the pictures, their changes, their
size and the learning rate are functions of it, and the one random state that is not (dropout's) is saved. So a run
that was interrupted, however roughly, goes on to the same weights.
"""

import hashlib
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from ..data.dataset import Dataset
from ..data.loader import Augment, steps_per_epoch, training_batch
from ..data.preprocess import Preprocess
from ..data.sources import absolute_source, load_dataset
from ..errors import InterruptedRunError
from ..evaluation.metrics import scores
from ..evaluation.report import render_report
from ..models import native
from ..models.catalogue import spec
from ..models.googlenet import GoogLeNet, resolve
from . import checkpoint
from .checkpoint import Checkpoint
from .environment import ENVIRONMENT, describe_environment, read_environment
from .optimiser import build_optimiser, moving_average, scale_to_weights
from .recipe import Recipe
from .record import Record, read_metrics
from .schedule import image_size, learning_rate_factor
from .task import Classification


class Fitted(NamedTuple):
    """A finished run: its folder, its final figures by split, its training time (validations included) and speed."""

    run: Path
    metrics: dict[str, dict[str, float]]
    seconds: float
    images_per_second: float


def fit(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    progress: bool = True,
    command: str | None = None,
) -> Fitted:
    """Train as `recipe` says and leave everything in the run folder `out`.

    `resume` continues the run in `out` from its last saved state. `progress` is shown on standard error. `command` is
    quoted in the report. Raises ValueError for a folder in use or data that does not fit, NonFiniteLossError (a
    ValueError) when training diverges, InterruptedRunError after SIGINT or SIGTERM.
    """
    # Everything that can be wrong is looked at before the run folder is made.
    run, recipe = Path(out), _resolved(recipe)
    _check_folder(run, recipe, resume)
    device = pick_device(recipe.device)
    data = _load(recipe).to(device)
    started = time.perf_counter()
    torch.manual_seed(recipe.seed)
    model = checkpoint.build_model(recipe, len(data.classes), data.channels).to(device)
    _check_fit(recipe, model, data)
    if not resume:
        run.mkdir(parents=True, exist_ok=True)
        checkpoint.write_atomically(run / checkpoint.RECIPE, recipe.to_yaml())
        checkpoint.write_atomically(run / ENVIRONMENT, json.dumps(describe_environment(command), indent=2) + "\n")

    # What changes the weights. The native step is the same arithmetic, on CPUs only.
    is_native = native.enable(model)
    task = Classification(recipe.loss)
    preprocess = _preprocess(recipe, data)
    augment = Augment(recipe.augment.flip, recipe.augment.shift, recipe.augment.erase)
    optimiser = build_optimiser(recipe.optimiser, model)
    average = moving_average(model, recipe.ema) if recipe.ema else None
    kept = cast(GoogLeNet, average.module) if average else model  # the weights that are measured and delivered

    # Where to start: the beginning, or the last saved state. `step` counts the steps that are done.
    per_epoch = steps_per_epoch(len(data.train.labels), recipe.batch_size)
    total = recipe.epochs * per_epoch
    validate_every = max(1, round(recipe.validate_every * per_epoch))
    pictures = _digest(data)
    step, seconds = 0, time.perf_counter() - started
    state = checkpoint.load_state(run) if resume else None
    if state is not None:
        if state["pictures"] != pictures:
            raise ValueError(f"{recipe.data.source}: the pictures are not those that {run} was started with")
        step, seconds = state["step"], state["seconds"]
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        if average:
            average.load_state_dict(state["average"])
        torch.set_rng_state(state["random"])
        torch.cuda.set_rng_state_all(state["random_cuda"])

    def save(step: int, seconds: float, metrics: dict[str, dict[str, float]]) -> None:
        """The state that `resume` goes on from, and the weights as they would be delivered now."""
        checkpoint.save_state(run, {
            "step": step,
            "seconds": seconds,
            "pictures": pictures,
            "native": is_native,
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "average": average.state_dict() if average else None,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all(),
        })  # fmt: skip
        done = Checkpoint(kept, preprocess, data.classes, recipe, metrics)
        checkpoint.save_weights(run / checkpoint.WEIGHTS, done)

    with Record(run, step, total, per_epoch, seconds, progress) as record, _stop_signal() as stop:
        for skipped in data.skipped:
            record.say(f"skipped: {skipped}")
        if state is not None and state["native"] != is_native:
            record.say("this machine takes the steps another way (a C compiler, or none): the last bits will differ")
        saved_at = time.perf_counter()
        model.train()
        while step < total:
            rate = recipe.optimiser.lr * learning_rate_factor(recipe.schedule, step, total, per_epoch)
            for group in optimiser.param_groups:
                group["lr"] = rate
            size = image_size(recipe.size, step, total, recipe.seed)
            batch = training_batch(
                data.train, preprocess, augment,
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

            if data.validation and step % validate_every == 0 and step < total:
                record.flush(step)
                record.scores("validation", step, scores(task.score(kept, data.validation, preprocess)))
            due = time.perf_counter() - saved_at > 60 * recipe.checkpoint_minutes
            if step < total and (due or stop.is_set()):
                record.flush(step)  # refuses to save weights whose loss was not finite
                save(step, record.seconds, {})
                record.leave_out_pause()
                saved_at = time.perf_counter()
            if step < total and stop.is_set():
                raise InterruptedRunError(
                    f"stopped at step {step} of {total}, everything is saved; "
                    f"go on with googlenet train --resume {run}"
                )
        seconds = record.seconds

        # The final figures: the test set is read here, once, and nothing is chosen by it.
        held_out = {"validation": data.validation, "test": data.test}
        answers = {name: task.score(kept, split, preprocess) for name, split in held_out.items() if split}
        metrics = {name: scores(outputs) for name, outputs in answers.items()}
        for name, figures in metrics.items():
            record.scores(name, step, figures)
        save(step, seconds, metrics)

    shown = "test" if data.test else "validation"
    page = render_report(
        run.name, recipe.to_yaml(), read_metrics(run), data.classes,
        held_out[shown].to(torch.device("cpu")), answers.get(shown), read_environment(run),
    )  # fmt: skip
    checkpoint.write_atomically(run / "report.html", page)
    images = recipe.epochs * min(len(data.train.labels), per_epoch * recipe.batch_size)
    return Fitted(run, metrics, seconds, images / seconds)


def pick_device(name: str) -> torch.device:
    """The device that `name` says; ``auto`` takes CUDA, then MPS, then the CPU. ValueError where it is absent."""
    have = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    present = [kind for kind, there in have.items() if there]
    if name == "auto":
        return torch.device(present[0])
    if name.partition(":")[0] not in present:
        raise ValueError(f"device {name!r} is not on this machine; it has {', '.join(present)}")
    return torch.device(name)


def _resolved(recipe: Recipe) -> Recipe:
    """`recipe` with every value that was left to the model or to the working directory filled in."""
    spec(recipe.model.name)  # refuses an unknown name
    design = resolve(recipe.model.name, recipe.model.init, recipe.model.dropout, recipe.model.pools, recipe.model.stem_stride)
    return replace(
        recipe,
        model=replace(recipe.model, init=design.init, dropout=design.dropout, pools=design.pools),
        data=replace(recipe.data, source=absolute_source(recipe.data.source, recipe.data.root)),
        size=replace(recipe.size, test=recipe.test_size),
    )


def _check_folder(run: Path, recipe: Recipe, resume: bool) -> None:
    """Refuse a folder that is in use, or, to resume, one that holds no run or another recipe's."""
    if resume:
        if checkpoint.load_recipe(run) != recipe:
            raise ValueError(f"{run}: was started with another recipe")
    elif run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise ValueError(f"{run}: exists already; name another folder, or continue it with --resume {run}")


def _load(recipe: Recipe) -> Dataset:
    return load_dataset(
        recipe.data.source,
        root=recipe.data.root,
        validation=recipe.data.validation,
        size=recipe.stored_size,
        fit=recipe.data.fit,
        unreadable=recipe.data.unreadable,
        limit=recipe.data.limit,
        seed=recipe.seed,
        resident=recipe.data.resident,
        workers=recipe.data.workers,
    )


def _check_fit(recipe: Recipe, model: GoogLeNet, data: Dataset) -> None:
    """Refuse sizes under the network's minimum, and batches too small for its normalisation."""
    smallest = min(*recipe.size.sizes, recipe.test_size)
    if smallest < model.min_size:
        hint = ", or model.pools padded" if recipe.model.pools == "ceil" else ""
        raise ValueError(
            f"size {smallest} is too small: {recipe.model.name} needs at least {model.min_size} pixels{hint}"
        )
    normalises = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    if normalises and min(recipe.batch_size, len(data.train.labels)) < 2:
        raise ValueError(f"{recipe.model.name} normalises over the batch: it needs 2 pictures a step at least")


def _preprocess(recipe: Recipe, data: Dataset) -> Preprocess:
    plain = recipe.data.normalise == "none"
    mean = (0.0,) * data.channels if plain else data.mean
    std = (1.0,) * data.channels if plain else data.std
    return Preprocess(recipe.test_size, data.channels, mean, std, fit=recipe.data.fit)


def _digest(data: Dataset) -> str:
    """Tells one set of training pictures from another, by names, labels and pixels' mean."""
    about = json.dumps([data.classes, list(data.train.names), data.train.labels.tolist(), data.mean, data.std])
    return hashlib.sha256(about.encode()).hexdigest()


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
        print("finishing this step, then saving (once more: stop at once)", file=sys.stderr, flush=True)

    for kind in before:
        signal.signal(kind, on_signal)
    try:
        yield stop
    finally:
        restore()
