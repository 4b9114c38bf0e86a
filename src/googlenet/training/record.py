"""What a run writes while it goes: metrics.jsonl, TensorBoard, the progress bar. Reads no number per step."""

import json
import math
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ..errors import NonFiniteLossError
from ..files import write_atomically
from . import processes

METRICS = "metrics.jsonl"

# Steps between two readings of the losses: each reading waits for the device.
EVERY = 20

REMEDY = "train anew with a lower optimiser.lr, a longer schedule.warmup or an optimiser.clip"

# Without a terminal, seconds between two lines of progress.
QUIET_SECONDS = 30.0


class Record:
    """Collects each step's figures on the device and writes their means every `EVERY` steps.

    `seconds` is the training time so far, earlier sessions of a resumed run included. Of several processes each notes
    its part of every step, and the main one writes the whole.
    """

    def __init__(self, run: Path, step: int, total: int, per_epoch: float, seconds: float, show: bool):
        self.run, self.total, self.per_epoch = run, total, per_epoch
        self._started = time.perf_counter() - seconds
        self._last_step, self._last_seconds = step, seconds
        self._losses: list[Tensor] = []
        self._correct: list[Tensor] = []
        self._images = 0
        self._settings: dict[str, float] = {}
        self._show = show and processes.is_main()
        self._console = Console(stderr=True)
        self._said = time.perf_counter()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (self._show and self._console.is_terminal),
        )
        self._task = self._bar.add_task("step", total=total, completed=step, figures="")
        self._board: SummaryWriter | None = None
        if processes.is_main():
            self._keep_until(step)
            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1 if step else None)

    def __enter__(self) -> "Record":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._board:
            self._board.close()

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return time.perf_counter() - self._started

    def step(self, step: int, loss: Tensor, correct: Tensor, images: int, **settings: float) -> None:
        """Note one finished step (counted from 1); `settings` are its learning rate, size and the like.

        `loss` and `correct` are this process's parts of the step's; `images` are the step's.
        """
        self._losses.append(loss.detach())
        self._correct.append(correct)
        self._images += images
        self._settings = settings
        if len(self._losses) >= EVERY or step == self.total:
            self.flush(step)

    def flush(self, step: int) -> None:
        """Write what was collected up to `step`; raises NonFiniteLossError if a loss is no finite number."""
        if not self._losses:
            return
        losses = processes.total(torch.stack(self._losses).float()).cpu()
        broken = torch.nonzero(~torch.isfinite(losses)).flatten()
        if len(broken):
            first = step - len(losses) + 1 + int(broken[0])
            raise NonFiniteLossError(f"the loss became {losses[broken[0]].item()} at step {first}; {REMEDY}")
        accuracy = processes.total(torch.stack(self._correct).sum()).item() / self._images
        seconds = self.seconds
        speed = self._images / max(seconds - self._last_seconds, 1e-9)
        loss = losses.mean().item()
        self._write("train", step, loss=loss, accuracy=accuracy, images_per_second=speed, **self._settings)
        figures = f"loss {loss:.3f}  accuracy {accuracy:.3f}  {speed:.0f} images/s"
        self._bar.update(self._task, completed=step, figures=figures)
        if not self._console.is_terminal and time.perf_counter() - self._said > QUIET_SECONDS:
            left = (self.total - step) * (seconds - self._last_seconds) / max(step - self._last_step, 1)
            self.say(f"step {step}/{self.total}  {figures}  {left:.0f} s left")
        self._losses, self._correct, self._images = [], [], 0
        self._last_step, self._last_seconds = step, seconds

    def scores(self, split: str, step: int, figures: dict[str, float], named: dict[str, str]) -> None:
        """Write the figures of an evaluation on `split`, and tell those that are `named`, by what they are called.

        NonFiniteLossError if its loss is no finite number.
        """
        if not math.isfinite(figures.get("loss", 0.0)):
            raise NonFiniteLossError(f"the {split} loss is {figures['loss']} after step {step}; {REMEDY}")
        self._write(split, step, **figures)
        self.leave_out_pause()
        told = ", ".join(f"{called} {figures[name]:.4f}" for name, called in named.items() if name in figures)
        self.say(f"{split} after step {step}: {told}")

    def leave_out_pause(self) -> None:
        """The time since the last reading was not for training steps: keep it out of the speed."""
        self._last_seconds = self.seconds

    def say(self, line: str) -> None:
        """One line for a person, on standard error."""
        if self._show:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
            self._said = time.perf_counter()

    def _write(self, split: str, step: int, **figures: float) -> None:
        if self._board is None:
            return
        entry = {"split": split, "step": step, "epoch": round(step / self.per_epoch, 4), **figures}
        entry["seconds"] = round(self.seconds, 3)
        with (self.run / METRICS).open("a") as file:
            file.write(json.dumps(entry, allow_nan=False) + "\n")
        for name, value in figures.items():
            if math.isfinite(value):
                self._board.add_scalar(f"{name}/{split}", value, step)

    def _keep_until(self, step: int) -> None:
        """Drop the entries that a resumed run is about to repeat: later steps, and the final evaluation."""

        def stays(entry: dict[str, Any]) -> bool:
            written: int = entry["step"]
            return 0 < written <= step and (written < self.total or entry["split"] == "train")

        kept = [entry for entry in read_metrics(self.run) if stays(entry)]
        write_atomically(self.run / METRICS, "".join(json.dumps(entry) + "\n" for entry in kept))


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The entries of a run's metrics.jsonl; a last line cut by a crash is left out."""
    path = run / METRICS
    if not path.exists():
        return []
    entries = []
    for line in path.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries
