"""Train a network: from a recipe to a run folder with weights, metrics and a report.

A step is a function of the recipe and the step number: order, augmentation, size and learning rate are computed from
them, and the one random state that is not (dropout's) is saved. An interrupted run therefore resumes to the same
weights. Several processes run this code, each on its slice of every batch and of the held-out images; gradients are
averaged, and the main process writes and prints.
"""

import json
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..checkpoint.format import WEIGHTS_FILE, Checkpoint, write_checkpoint
from ..checkpoint.train_state import TrainState, write_train_state
from ..config.schema import Recipe
from ..data.accounting import describe_replaced
from ..data.batch_slice import split_step
from ..data.calibration import write_calibration
from ..data.loader import BatchSpec
from ..errors import InterruptedRunError
from ..evaluation.report import ReportInfo
from ..files import unlock_at_end, write_atomically
from . import distributed
from .environment import ENVIRONMENT_FILE, read_replaced, record_replaced
from .finetune import set_train_mode
from .metrics_logger import MetricsLogger, StepMetrics, read_metrics
from .precise_bn import recompute_bn_stats
from .setup import Resume, TrainingRun, build_training_run
from .signals import graceful_shutdown
from .sync_batchnorm import no_sync
from .time_budget import Mark, TimeBudget, check, is_check_due, write_budget

# Called with the finished fraction of a run, 1 at the end, and the validation metric that the task maximizes.
ReportValue = Callable[[float, float], None]


class TrainResult(NamedTuple):
    """A finished run: its folder, its final metrics by split, its training time (with validations) and its speed."""

    run: Path
    metrics: dict[str, dict[str, float]]
    seconds: float
    images_per_second: float


def fit(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: Resume = False,
    progress: bool = True,
    command: str | None = None,
    trial: ReportValue | None = None,
) -> TrainResult:
    """Train as `recipe` says; write weights, metrics and a report into the run folder `out`.

    Args:
        out: the run folder; it must be new or empty unless the run is resumed.
        resume: True continues the run in `out` from its last checkpoint; "auto" does so if there is one.
        progress: show progress on standard error.
        command: the command line to quote in the report.
        trial: for a trial of a search; it is called after each validation and at the end, and may raise an exception
            to end the run. The test images are not evaluated.

    Raises:
        ValueError: the folder is in use, or recipe, data and weights do not fit together.
        NonFiniteLossError: training diverged (a ValueError).
        InterruptedRunError: SIGINT or SIGTERM was received; the state is saved.
    """
    with distributed.leave_at_end(), unlock_at_end():
        run, state = build_training_run(recipe, Path(out), resume, command)
        with MetricsLogger(run.folder, run.schedule, state, progress) as logger, graceful_shutdown() as stop:
            for note in run.notes:
                logger.log(note)
            set_train_mode(state.model)
            marks = [Mark(state.step, logger.seconds)]
            while not finished(run, state):
                logger.log_step(state.step + 1, train_step(run, state))
                state.step += 1
                metrics = validate_if_due(run, state, logger)
                if trial is not None and metrics is not None and not finished(run, state):
                    trial(state.step / run.schedule.total_steps, metrics[run.task.monitor])
                run = replan_if_due(run, state, logger, marks)
                checkpoint_if_due(run, state, logger, stop)
            predictions = predict_held_out(run, state, logger, test=trial is None)
            run = replace(run, task=run.task.with_thresholds(predictions.get("validation")))
            results = measure(run, state, logger, predictions)
            save(run, state, results)
            for line in describe_replaced(read_replaced(run.folder)):
                logger.log(line)
        if trial is not None:
            trial(1.0, results["validation"][run.task.monitor])
        distributed.run_on_main(lambda: save_calibration(run))
        distributed.run_on_main(lambda: write_report(run, predictions))
    return TrainResult(run.folder, results, state.seconds, run.schedule.images_seen(state.step) / state.seconds)


def finished(run: TrainingRun, state: TrainState) -> bool:
    """Return whether all steps are done or early stopping ended the run."""
    stopped = state.early_stopping is not None and state.early_stopping.should_stop
    return stopped or state.step >= run.schedule.total_steps


def train_step(run: TrainingRun, state: TrainState) -> StepMetrics:
    """Take one optimization step."""
    step, recipe, accelerator = state.step, run.recipe, run.accelerator
    lr, size, samples = run.schedule.learning_rate(step), run.schedule.image_size(step), run.schedule.samples(step)
    rank, world_size = distributed.rank(), distributed.world_size()
    for group in state.optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    state.optimizer.zero_grad(set_to_none=True)
    loss_sum = num_correct = torch.zeros((), device=accelerator.device)
    parts = split_step(samples.num_images, recipe.grad_accum_steps, rank, world_size)
    for number, part in enumerate(parts, start=1):
        upcoming = islice(run.schedule.microbatches(step, rank, world_size), number, None)
        spec = BatchSpec(step, size, recipe.seed, samples, part, upcoming)
        batch = run.task.batch(run.data.train, run.preprocess, spec)
        fraction = batch.num_images / samples.num_images
        # Gradients are averaged over the processes once, in the backward pass of the last micro-batch.
        with nullcontext() if number == len(parts) else accelerator.no_sync(run.loss_module):
            loss, correct = run.loss_module(batch)
            accelerator.backward(loss * (fraction * world_size))
        if batch.num_images:  # the mean over an empty slice is NaN
            loss_sum, num_correct = loss_sum + loss.detach() * fraction, num_correct + correct
    accelerator.unscale_gradients()
    if recipe.optimizer.clip_grad_norm is not None:
        nn.utils.clip_grad_norm_(state.model.parameters(), recipe.optimizer.clip_grad_norm)
    state.optimizer.step()
    if state.ema_model:
        state.ema_model.update_parameters(state.model)
    return StepMetrics(loss_sum, num_correct, samples.num_images, lr, size)


def validate_if_due(run: TrainingRun, state: TrainState, logger: MetricsLogger) -> dict[str, float] | None:
    """Validate at the end of every interval, and after the last step if early stopping compares it.

    Returns the metrics of a validation.
    """
    step, last = state.step, state.step == run.schedule.total_steps
    due = state.early_stopping is not None if last else step % run.schedule.eval_every_steps == 0
    if not due or not run.data.validation:
        return None
    logger.flush(step)
    predictions = run.task.predict(state.eval_model, run.data.validation, run.preprocess)
    metrics = distributed.run_on_main(lambda: run.task.compute_metrics(predictions))
    if state.early_stopping is not None:
        state.early_stopping.update(metrics, step, state.eval_model)
    if not finished(run, state):
        logger.log_metrics("validation", step, metrics, run.task.headline_metrics)
    return metrics


def replan_if_due(run: TrainingRun, state: TrainState, logger: MetricsLogger, marks: list[Mark]) -> TrainingRun:
    """Change the number of steps of a run with a time budget if its speed has changed.

    `marks` are the checks of this process, to which this one is added.
    """
    known, device = run.budget, run.accelerator.device
    if known is None or not is_check_due(known, run.schedule, state.step):
        return run
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()  # steps are queued faster than they are computed
    now = Mark(state.step, logger.seconds)

    def decide() -> TimeBudget:
        decided = check(known, run.schedule, marks, now)
        write_budget(run.folder, decided)
        return decided

    budget = distributed.run_on_main(decide)
    marks.append(now)
    schedule = run.schedule._replace(replans=budget.replans)
    logger.set_last_step(schedule.total_steps)
    return replace(run, budget=budget, schedule=schedule)


def checkpoint_if_due(run: TrainingRun, state: TrainState, logger: MetricsLogger, stop: threading.Event) -> None:
    """Save the state at intervals and when the run is interrupted; raises InterruptedRunError for the latter."""
    due = distributed.is_main_process() and logger.seconds_since_checkpoint > 60 * run.recipe.checkpoint_every_minutes
    stopping, saving = distributed.any_rank(stop.is_set(), due)
    if finished(run, state) or not (stopping or saving):
        return
    logger.flush(state.step)  # raises NonFiniteLossError instead of saving diverged weights
    state.seconds = logger.seconds
    save(run, state, {})
    logger.checkpoint_saved()
    if stopping:
        raise InterruptedRunError(
            f"stopped at step {state.step} of {run.schedule.total_steps}, everything is saved; "
            f"continue with googlenet train --resume {run.folder}"
        )


def save(run: TrainingRun, state: TrainState, metrics: dict[str, dict[str, float]]) -> None:
    """Write the training state and the weights as they would be delivered now."""
    random = distributed.random_states(run.accelerator.device)
    replaced = distributed.all_gather_object(run.data.accounting.replaced)

    def write() -> None:
        saved = state.state_dict() | {
            "data_digest": run.data_digest, "preprocess": run.preprocess.to_dict(),
            "native_kernels": run.native_kernels, "random": random,
        }  # fmt: skip
        write_train_state(run.folder, saved)
        classes, thresholds = run.data.classes, run.task.thresholds
        checkpoint = Checkpoint(state.eval_model, run.preprocess, classes, run.recipe, metrics, thresholds)
        write_checkpoint(run.folder / WEIGHTS_FILE, checkpoint)
        record_replaced(run.folder, replaced)

    distributed.run_on_main(write)


def predict_held_out(
    run: TrainingRun, state: TrainState, logger: MetricsLogger, *, test: bool = True
) -> dict[str, Any]:
    """Select the final weights and predict every held-out split: the only use of the test images.

    Without `test` only the validation images are used. Returns the predictions by split.
    """
    task, model, early_stopping = run.task, state.eval_model, state.early_stopping
    if early_stopping is not None and early_stopping.weights:
        model.load_state_dict(early_stopping.weights)
    if run.recipe.precise_bn_batches is not None:
        with no_sync(model):  # every process computes the statistics of the same batches
            recompute_bn_stats(model, task.clean_batches(run.data.train, run.preprocess, run.recipe))
    state.seconds = logger.seconds
    splits = {"validation": run.data.validation, "test": run.data.test if test else ()}
    return {name: task.predict(model, data, run.preprocess) for name, data in splits.items() if data}


def measure(
    run: TrainingRun, state: TrainState, logger: MetricsLogger, predictions: dict[str, Any]
) -> dict[str, dict[str, float]]:
    """Compute and log the metrics of the predictions of the final weights, by split."""
    task, early_stopping = run.task, state.early_stopping

    def compute() -> dict[str, dict[str, float]]:
        metrics = {name: task.compute_metrics(outputs) for name, outputs in predictions.items()}
        if early_stopping is not None:
            metrics["validation"]["best_step"] = early_stopping.step
            logger.log(f"early stopping: the best weights are those of step {early_stopping.step}")
        for name, values in metrics.items():
            logger.log_metrics(name, state.step, values, task.headline_metrics)
        return metrics

    return distributed.run_on_main(compute)


def save_calibration(run: TrainingRun) -> None:
    """Write held-out images, or training images if there are none, to compare precisions on."""
    calibration = run.task.calibration(run.data.validation or run.data.train, run.preprocess)
    if calibration is not None:
        write_calibration(run.folder, calibration)


def write_report(run: TrainingRun, predictions: dict[str, Any]) -> None:
    """Write report.html, which also marks the run as finished."""
    name, folder = ("test" if "test" in predictions else "validation"), run.folder
    metrics, environment = read_metrics(folder), json.loads((folder / ENVIRONMENT_FILE).read_text())
    environment["data"]["replaced"] = read_replaced(folder)
    info = ReportInfo(folder.name, run.recipe.to_yaml(), metrics, run.data.classes, environment)
    page = run.task.report(info, getattr(run.data, name), predictions.get(name))
    write_atomically(folder / "report.html", page)
