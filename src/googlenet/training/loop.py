"""fit: from a recipe to trained weights, in one loop that reads from top to bottom.

What a step does depends on the recipe and the step's number alone: the order of the pictures, their changes, their
size and the learning rate are functions of it, and the one random state that is not (dropout's) is saved. So a run
that was interrupted, however roughly, goes on to the same weights.

Several processes run this same code, each on its part of every batch. Their gradients are averaged on the way back,
so all of them take the same steps; the main one writes, measures and speaks.
"""

import time
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..data.rows import rows_of_step
from ..errors import InterruptedRunError
from ..files import write_atomically
from ..models import native
from . import checkpoint, prepare, processes
from .batch_statistics import apart, synchronise_norms
from .checkpoint import Checkpoint
from .devices import pick_device
from .environment import read_environment
from .norms import reestimate
from .optimiser import build_optimiser, moving_average
from .plan import plan_run
from .recipe import Recipe
from .record import Record, read_metrics
from .selection import Best
from .start import load_start, training_mode
from .stopping import stop_signal
from .task import About, Learner, Part
from .tasks import home


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
    restartable: bool = False,
    progress: bool = True,
    command: str | None = None,
) -> Fitted:
    """Train as `recipe` says and leave everything in the run folder `out`.

    `resume` continues the run in `out` from its last saved state; `restartable` does so where there is one, and
    starts it where there is none. `progress` is shown on standard error. `command` is quoted in the report. Raises
    ValueError for a folder in use or data that does not fit, NonFiniteLossError (a ValueError) when training
    diverges, InterruptedRunError after SIGINT or SIGTERM.
    """
    # Everything that can be wrong is looked at before the run folder is made.
    device = pick_device(recipe.device)
    native.kernel_level()
    run, recipe = Path(out), prepare.resolved(recipe, device)
    accelerator = processes.join(device, recipe.precision, recipe.compile)
    resume = processes.on_main(lambda: prepare.check_folder(run, recipe, resume, restartable))
    device = accelerator.device
    kind = home(recipe)
    data = kind.load(recipe).to(device)
    started = time.perf_counter()
    torch.manual_seed(recipe.seed + processes.rank())  # each process drops out other units
    state = processes.on_main(lambda: checkpoint.load_state(run)) if resume else None
    start = load_start(recipe) if state is None else None  # a run that goes on has its weights
    task, model, preprocess, count, pictures = kind.ingredients(recipe, data, start, state)
    model = model.to(device)
    if state is not None and state["pictures"] != pictures:
        raise ValueError(f"{recipe.data.source}: the pictures are not those that {run} was started with")
    shares_statistics = processes.count() > 1 and synchronise_norms(model)
    optimiser = build_optimiser(recipe.optimiser, model)
    processes.on_main(lambda: prepare.make_folder(run, recipe, command))

    # What changes the weights. The native step computes the same, on CPUs only; its batch normalisation knows
    # the pictures of one process.
    is_native = not shares_statistics and not recipe.compile and native.enable(model)
    if device.type == "cuda":
        model.to(memory_format=torch.channels_last)
    average = moving_average(model, recipe.ema) if recipe.ema else None
    kept: nn.Module = average.module if average else model  # the weights that are measured and delivered
    learner, optimiser = accelerator.prepare(Learner(task, model), optimiser)

    # Where to start: the beginning, or the last saved state. `step` counts the steps that are done.
    plan = plan_run(recipe, count)
    total, validate_every = plan.total, plan.validate_every
    step, seconds = 0, time.perf_counter() - started
    best = Best(recipe.early_stop, task.best) if recipe.early_stop else None
    if state is not None:
        step, seconds = state["step"], state["seconds"]
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        if average:
            average.load_state_dict(state["average"])
        if best:
            best.load(state["best"])
        if accelerator.scaler:
            accelerator.scaler.load_state_dict(state["scaler"])
        processes.set_random_state(state["random"], device)

    def save(step: int, seconds: float, metrics: dict[str, dict[str, float]]) -> None:
        """The state that `resume` goes on from, and the weights as they would be delivered now."""
        random = processes.random_states(device)

        def write() -> None:
            checkpoint.save_state(run, {
                "step": step,
                "seconds": seconds,
                "pictures": pictures,
                "preprocess": preprocess.to_dict(),
                "best": best.state() if best else None,
                "native": is_native,
                "model": model.state_dict(),
                "optimiser": optimiser.state_dict(),
                "average": average.state_dict() if average else None,
                "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
                "random": random,
            })  # fmt: skip
            done = Checkpoint(kept, preprocess, data.classes, recipe, metrics)
            checkpoint.save_weights(run / checkpoint.WEIGHTS, done)

        processes.on_main(write)

    def validate() -> dict[str, float]:
        return task.figures(task.score(kept, data.validation, preprocess))

    end = step if best and best.over else total
    with Record(run, step, end, plan.per_epoch, seconds, progress) as record, stop_signal() as stop:
        for skipped in data.skipped:
            record.say(f"skipped: {skipped}")
        if state is not None and state["native"] != is_native:
            record.say("this machine takes the steps another way (a C compiler, or none): the last bits will differ")
        if state is not None and len(state["random"]) != processes.count():
            record.say("another number of processes than before: the last bits, and what dropout drops, will differ")
        saved_at = time.perf_counter()
        nothing = torch.zeros((), device=device)
        training_mode(model)
        while step < end:
            rate, planned = plan.learning_rate(step), plan.at(step)
            for group in optimiser.param_groups:
                group["lr"] = rate * group.get("factor", 1.0)
            images = planned.turn.stop - planned.turn.start
            rank, ranks = processes.rank(), processes.count()
            parts = rows_of_step(images, recipe.accumulate, rank, ranks)
            loss_sum = correct_sum = nothing
            optimiser.zero_grad(set_to_none=True)
            for number, rows in enumerate(parts, 1):
                later = islice(plan.pieces(step, rank, ranks), number, None)
                part = Part(step, planned.size, planned.turn, rows, later)
                batch = task.batch(data.train, preprocess, recipe, part)
                share = batch.pictures / images
                # The gradients of all processes are averaged once, on the way back from the last part.
                with nullcontext() if number == len(parts) else accelerator.no_sync(learner):
                    loss, correct = learner(batch)
                    accelerator.backward(loss * (share * ranks))
                if batch.pictures:  # the mean over no pictures is no number
                    loss_sum, correct_sum = loss_sum + loss.detach() * share, correct_sum + correct

            accelerator.unscale_gradients()
            if recipe.optimiser.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.optimiser.clip)
            optimiser.step()
            if average:
                average.update_parameters(model)
            step += 1
            record.step(step, loss_sum, correct_sum, images, learning_rate=rate, size=planned.size)

            if data.validation and ((step % validate_every == 0 and step < total) or (best and step == total)):
                record.flush(step)
                figures = processes.on_main(validate)
                if best:
                    best.offer(figures, step, kept)
                    end = step if best.over else end
                if step < end:
                    record.scores("validation", step, figures, task.named)
            due = processes.is_main() and time.perf_counter() - saved_at > 60 * recipe.checkpoint_minutes
            stopping, saving = processes.any_of(stop.is_set(), due)
            if step < end and (saving or stopping):
                record.flush(step)  # refuses to save weights whose loss was not finite
                save(step, record.seconds, {})
                record.leave_out_pause()
                saved_at = time.perf_counter()
            if step < end and stopping:
                raise InterruptedRunError(
                    f"stopped at step {step} of {total}, everything is saved; "
                    f"go on with googlenet train --resume {run}"
                )
        if best and best.score:
            kept.load_state_dict(best.weights)
        if recipe.reestimate_norm is not None:
            with apart(kept):  # each process over the same batches
                reestimate(kept, task.plain(data.train, preprocess, recipe))
        seconds = record.seconds

        # The final figures: the test set is read here, once, and nothing is chosen by it.
        held_out = {"validation": data.validation, "test": data.test}
        answers: dict[str, Any] = {}

        def measure() -> dict[str, dict[str, float]]:
            answers.update({name: task.score(kept, split, preprocess) for name, split in held_out.items() if split})
            metrics = {name: task.figures(found) for name, found in answers.items()}
            if best:
                metrics["validation"]["best_step"] = best.step
                record.say(f"the best of the validated weights are those of step {best.step}")
            for name, figures in metrics.items():
                record.scores(name, step, figures, task.named)
            return metrics

        metrics = processes.on_main(measure)
        save(step, seconds, metrics)

    def report() -> None:
        shown = "test" if data.test else "validation"
        about = About(run.name, recipe.to_yaml(), read_metrics(run), data.classes, read_environment(run))
        page = task.report(about, held_out[shown], answers.get(shown))
        write_atomically(run / "report.html", page)

    processes.on_main(report)
    processes.leave()
    return Fitted(run, metrics, seconds, plan.images(step) / seconds)
