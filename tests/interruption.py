"""Crash a training run at a given point, the same point each time.

In this process a `Crash` is raised at the point. As a program, ``python interruption.py POINT RANK ARGUMENT...`` runs
``googlenet ARGUMENT...``, and the process of that rank sends itself SIGKILL at the point, before its first restart.

A point is ``STEP:PHASE``. The phases ``before``, ``during`` and ``after`` refer to writing the training state of that
step (``during``: the temporary file is written and not yet renamed); ``step`` is in the middle of the step.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

import googlenet.training.fit  # noqa: F401  so that its functions can be replaced
from googlenet.training.tasks.classification import ClassificationTask

PHASES = ("before", "during", "after", "step")
# The state is saved after every step, so that each step can be the one to resume from.
CHECKPOINT_EVERY_STEP = "--checkpoint_every_minutes=1e-9"


class Crash(BaseException):
    """The end of a run; not an `Exception`, so that nothing catches it as an error."""


def crash_at(point: str, crash: Callable[[], NoReturn], patch: Callable[[Any, str, Any], None] = setattr) -> None:
    """Call `crash` at `point`; `patch` installs the functions that do so in place of the package's own."""
    number, phase = point.split(":")
    step, calls = int(number), 0
    assert phase in PHASES
    module = sys.modules["googlenet.training.fit"]
    write_train_state, loss, replace = module.write_train_state, ClassificationTask.loss, os.replace

    def crashing_write(run: Any, state: dict[str, Any]) -> None:
        if state["step"] != step or phase == "step":
            write_train_state(run, state)
            return
        if phase == "before":
            crash()
        if phase == "during":
            patch(os, "replace", lambda *_: crash())
        try:
            write_train_state(run, state)
        finally:
            patch(os, "replace", replace)
        crash()

    def crashing_loss(self: ClassificationTask, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if phase == "step" and calls == step:
            crash()
        return loss(self, *arguments)

    patch(module, "write_train_state", crashing_write)
    patch(ClassificationTask, "loss", crashing_loss)


def raise_at(point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise `Crash` at `point` of the next run in this process."""

    def crash() -> NoReturn:
        print(f"crashes at {point}", file=sys.stderr)
        raise Crash(point)

    crash_at(point, crash, monkeypatch.setattr)


def signal_at(step: int, kind: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send a signal to this process in the middle of a step (from 1) of the next run of classification."""
    loss, calls = ClassificationTask.loss, 0

    def signalling(self: ClassificationTask, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == step:
            signal.raise_signal(kind)
        return loss(self, *arguments)

    monkeypatch.setattr(ClassificationTask, "loss", signalling)


def main() -> None:
    """Run the command line with a crash in it."""
    from googlenet.cli.main import run

    point, rank, *arguments = sys.argv[1:]
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if first and os.environ.get("RANK", "0") == rank:

        def crash() -> NoReturn:
            print(f"crashes at {point}", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError("unreachable")

        crash_at(point, crash)
    sys.argv[1:] = arguments
    run()


if __name__ == "__main__":
    main()
