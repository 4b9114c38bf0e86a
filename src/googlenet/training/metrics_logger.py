"""Log a run: metrics.jsonl, the tracker, progress bar."""

import json
import math
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checkpoint.train_state import TrainState
from ..errors import NonFiniteLossError
from ..evaluation.progress import ProgressDisplay
from ..files import write_atomically
from . import distributed
from .step_schedule import StepSchedule
from .trackers import start_tracker

METRICS_FILE = "metrics.jsonl"

# Losses are read every this many steps: every reading waits for the device.
LOG_EVERY_N_STEPS = 20

DIVERGENCE_HINT = "train again with a lower optimizer.lr, a longer schedule.warmup_fraction or optimizer.clip_grad_norm"


class StepMetrics(NamedTuple):
    """The result of one step.

    `loss` and `num_correct` are this process's share, as scalars on the device; `num_images` is the size of the full
    batch. `lr` is the learning rate and `size` the image size in pixels.
    """

    loss: Tensor
    num_correct: Tensor
    num_images: int
    lr: float
    size: int


class MetricsLogger:
    """Collect the metrics of the steps on the device and write their means every `LOG_EVERY_N_STEPS` steps.

    `seconds` is the training time so far, including earlier sessions of a resumed run. Every process collects its
    share, and the main process writes.
    """

    def __init__(self, run: Path, schedule: StepSchedule, state: TrainState, progress: bool):
        stopped = state.early_stopping is not None and state.early_stopping.should_stop
        self.run, self.steps_per_epoch = run, schedule.total_steps / schedule.epochs
        self.last_step = state.step if stopped else schedule.total_steps
        self._checkpoint_at = time.perf_counter()
        self._started = self._checkpoint_at - state.seconds
        self._last_step, self._last_seconds = state.step, state.seconds
        self._pending: list[StepMetrics] = []
        self._display = ProgressDisplay(self.last_step, state.step, enabled=progress and distributed.is_main_process())
        self._tracker: Any = None
        # What the tracker has, so that a resumed run does not send it again. TensorBoard discards it instead.
        self._sent: set[tuple[str, int]] = set()
        if distributed.is_main_process():
            if schedule.recipe.tracker != "tensorboard":
                self._sent = {(entry["split"], entry["step"]) for entry in read_metrics(run)}
            self._truncate_after(state.step)
            self._tracker = start_tracker(run, schedule.recipe, state.step)

    def __enter__(self) -> "MetricsLogger":
        self._display.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._display.__exit__(*error)
        if self._tracker:
            self._tracker.finish()

    @property
    def seconds(self) -> float:
        """Return the training time so far in seconds."""
        return time.perf_counter() - self._started

    @property
    def seconds_since_checkpoint(self) -> float:
        """Return the seconds since the last checkpoint of this session."""
        return time.perf_counter() - self._checkpoint_at

    def set_last_step(self, step: int) -> None:
        """Change the number of steps of the run."""
        self.last_step = step
        self._display.set_total(step)

    def log_step(self, step: int, metrics: StepMetrics) -> None:
        """Collect the metrics of finished step `step`, which counts from 1."""
        self._pending.append(metrics)
        if len(self._pending) >= LOG_EVERY_N_STEPS or step == self.last_step:
            self.flush(step)

    def flush(self, step: int) -> None:
        """Write the metrics collected up to `step`; raises NonFiniteLossError if a loss is not finite."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        losses = distributed.all_reduce_sum(torch.stack([m.loss.detach() for m in pending]).float()).cpu()
        invalid = torch.nonzero(~torch.isfinite(losses)).flatten()
        if len(invalid):
            first = step - len(losses) + 1 + int(invalid[0])
            raise NonFiniteLossError(f"the loss became {losses[invalid[0]].item()} at step {first}; {DIVERGENCE_HINT}")
        num_images = sum(m.num_images for m in pending)
        correct = torch.stack([m.num_correct for m in pending]).sum()
        accuracy = distributed.all_reduce_sum(correct).item() / num_images
        seconds = self.seconds
        speed = num_images / max(seconds - self._last_seconds, 1e-9)
        loss = losses.mean().item()
        self._write(
            "train", step, loss=loss, accuracy=accuracy, images_per_second=speed,
            learning_rate=pending[-1].lr, size=pending[-1].size,
        )  # fmt: skip
        text = f"loss {loss:.3f}  accuracy {accuracy:.3f}  {speed:.0f} images/s"
        self._display.describe(f"step {step}/{self.last_step}  {text}")
        self._display.advance(step - self._last_step)
        self._last_step, self._last_seconds = step, seconds

    def log_metrics(self, split: str, step: int, metrics: dict[str, float], headline: dict[str, str]) -> None:
        """Write the metrics of an evaluation on `split` and print the `headline` ones by their display names.

        Raises NonFiniteLossError if the loss is not finite.
        """
        if not math.isfinite(metrics.get("loss", 0.0)):
            raise NonFiniteLossError(f"the {split} loss is {metrics['loss']} after step {step}; {DIVERGENCE_HINT}")
        self._write(split, step, **metrics)
        self._exclude_pause()
        text = ", ".join(f"{label} {metrics[name]:.4f}" for name, label in headline.items() if name in metrics)
        self.log(f"{split} after step {step}: {text}")

    def _exclude_pause(self) -> None:
        """Exclude the time since the last reading from the speed: it was not spent on steps."""
        self._last_seconds = self.seconds

    def checkpoint_saved(self) -> None:
        """Note that a checkpoint was written."""
        self._exclude_pause()
        self._checkpoint_at = time.perf_counter()

    def log(self, message: str) -> None:
        """Print a message on standard error."""
        self._display.log(message)

    def _write(self, split: str, step: int, **metrics: float) -> None:
        if not distributed.is_main_process():
            return
        entry = {"split": split, "step": step, "epoch": round(step / self.steps_per_epoch, 4), **metrics}
        entry["seconds"] = round(self.seconds, 3)
        with (self.run / METRICS_FILE).open("a") as file:
            file.write(json.dumps(entry, allow_nan=False) + "\n")
        self._track({f"{name}/{split}": value for name, value in metrics.items() if math.isfinite(value)}, split, step)

    def _track(self, values: dict[str, float], split: str, step: int) -> None:
        """Send `values` to the tracker; a tracker that fails, such as a server that is down, does not end the run."""
        if self._tracker is None or (split, step) in self._sent:
            return
        try:
            self._tracker.log(values, step=step)
        except Exception as error:
            reason = " ".join(str(error).split())
            self.log(f"tracking stops at step {step} ({reason}); {METRICS_FILE} has all metrics")
            self._tracker = None

    def _truncate_after(self, step: int) -> None:
        """Drop the entries that a resumed run will repeat: those of later steps and of the final evaluation."""
        lines = [
            json.dumps(entry) + "\n"
            for entry in read_metrics(self.run)
            if 0 < entry["step"] <= step and (entry["step"] < self.last_step or entry["split"] == "train")
        ]
        write_atomically(self.run / METRICS_FILE, "".join(lines))


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Read the entries of a run's metrics.jsonl, without a last line that a crash truncated."""
    path = run / METRICS_FILE
    if not path.exists():
        return []
    entries = []
    for line in path.read_text().splitlines():
        with suppress(json.JSONDecodeError):
            entries.append(json.loads(line))
    return entries
