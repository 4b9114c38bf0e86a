"""The death of a training run at a given point, the same point each time.

In this process a `Died` is raised there. As a program, ``python interruption.py POINT RANK ARGUMENT...`` runs
``googlenet ARGUMENT...``, and the process of that rank sends itself SIGKILL there, before its first restart.

A point is ``STEP:PHASE``. The phases ``before``, ``during`` and ``after`` are those of the writing of the state of
that step (``during``: the temporary file is written and not yet renamed); ``step`` is in the middle of the step.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from googlenet.training import checkpoint
from googlenet.training.task import Classification

PHASES = ("before", "during", "after", "step")
# A state is saved after every step, so that each step can be the one to resume from.
EVERY_STEP = "--checkpoint_minutes=1e-9"


class Died(BaseException):
    """The end of a run that nothing in it can catch as an error."""


def die_at(point: str, die: Callable[[], NoReturn], patch: Callable[[Any, str, Any], None] = setattr) -> None:
    """Call `die` at `point`; `patch` puts the functions that do so in place of the package's own."""
    number, phase = point.split(":")
    step, calls = int(number), 0
    assert phase in PHASES
    save_state, loss, replace = checkpoint.save_state, Classification.loss, os.replace

    def dying_save(run: Any, state: dict[str, Any]) -> None:
        if state["step"] != step or phase == "step":
            save_state(run, state)
            return
        if phase == "before":
            die()
        if phase == "during":
            patch(os, "replace", lambda *_: die())
        try:
            save_state(run, state)
        finally:
            patch(os, "replace", replace)
        die()

    def dying_loss(self: Classification, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if phase == "step" and calls == step:
            die()
        return loss(self, *arguments)

    patch(checkpoint, "save_state", dying_save)
    patch(Classification, "loss", dying_loss)


def raise_at(point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise `Died` at `point` of the next run in this process."""

    def die() -> NoReturn:
        print(f"dies at {point}", file=sys.stderr)
        raise Died(point)

    die_at(point, die, monkeypatch.setattr)


def signal_at(step: int, kind: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send a signal to this process in the middle of a step (from 1) of the next run of classification."""
    loss, calls = Classification.loss, 0

    def signalling(self: Classification, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == step:
            signal.raise_signal(kind)
        return loss(self, *arguments)

    monkeypatch.setattr(Classification, "loss", signalling)


def main() -> None:
    """Run the command line with a death in it."""
    from googlenet.cli import run

    point, rank, *arguments = sys.argv[1:]
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if first and os.environ.get("RANK", "0") == rank:

        def die() -> NoReturn:
            print(f"dies at {point}", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError("unreachable")

        die_at(point, die)
    sys.argv[1:] = arguments
    run()


if __name__ == "__main__":
    main()
