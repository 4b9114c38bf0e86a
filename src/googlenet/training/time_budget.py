"""Keep a run within its time budget (recipe key `budget_minutes`): the number of steps follows the measured speed.

At regular steps the end of the run is predicted from the recent speed. If the prediction is off by more than
`TOLERANCE`, the number of steps changes, and the rest of the schedule is distributed over the steps that are left. A
run folder records these decisions in `BUDGET_FILE` as they are made. A resumed run follows the decisions about the
steps that it repeats, so it ends with the same weights as an uninterrupted one, as long as the speed stays within the
tolerance.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..files import write_atomically
from .step_schedule import Replan, StepSchedule

BUDGET_FILE = "budget.json"
# Largest deviation of the predicted end, as a fraction of the training time, that does not change the number of steps.
TOLERANCE = 0.03
# Decisions in a run, and the fraction of its steps that a speed is averaged over: it contains pauses for validation.
NUM_CHECKS = 50
SPEED_WINDOW = 0.2
# An evaluation of an image takes the forward third of a training step, and reading it.
EVAL_COST = 0.4
# Seconds to save the weights and write the report.
SAVE_SECONDS = 3.0


class TimeBudget(NamedTuple):
    """The time of a run, and what was decided so far.

    `seconds` is the training time, including the final evaluation of `num_eval_images` images; `checked` is the step of
    the last decision.
    """

    seconds: float
    num_eval_images: int
    checked: int = 0
    replans: tuple[Replan, ...] = ()


class Mark(NamedTuple):
    """The training time `seconds` at which `step` steps were finished."""

    step: int
    seconds: float


def is_check_due(budget: TimeBudget, schedule: StepSchedule, step: int) -> bool:
    """Return whether the number of steps is reconsidered after `step` finished steps: not where it was before."""
    if not budget.checked:
        return 2 <= step < schedule.total_steps  # the first steps are slower, but the plan may be far off
    return budget.checked + max(1, schedule.total_steps // NUM_CHECKS) <= step < schedule.total_steps


def check(budget: TimeBudget, schedule: StepSchedule, marks: Sequence[Mark], now: Mark) -> TimeBudget:
    """Decide about the number of steps after the finished step of `now`.

    `marks` are the earlier checks since this process trains, and its start. At least one more step follows.
    """
    recent = [mark for mark in marks if now.step - mark.step <= SPEED_WINDOW * schedule.total_steps]
    start = recent[0] if recent else marks[-1]
    seconds_per_step = max((now.seconds - start.seconds) / (now.step - start.step), 1e-9)
    evaluation = EVAL_COST * budget.num_eval_images * seconds_per_step / schedule.recipe.batch_size
    end = budget.seconds - evaluation - SAVE_SECONDS
    predicted = now.seconds + seconds_per_step * (schedule.total_steps - now.step)
    budget = budget._replace(checked=now.step)
    if abs(predicted - end) <= TOLERANCE * budget.seconds:
        return budget
    total = now.step + max(1, round((end - now.seconds) / seconds_per_step))
    if total == schedule.total_steps:
        return budget
    return budget._replace(replans=(*budget.replans, Replan(now.step, total)))


def read_budget(folder: Path) -> TimeBudget | None:
    """Read the decisions of a run folder; None if there are none. Raises ValueError for a damaged file."""
    path = folder / BUDGET_FILE
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text())
        return TimeBudget(**{**values, "replans": tuple(Replan(*pair) for pair in values["replans"])})
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{path}: damaged; train again in a new run folder") from None


def write_budget(folder: Path, budget: TimeBudget) -> None:
    """Write the decisions into a run folder."""
    write_atomically(folder / BUDGET_FILE, json.dumps(budget._asdict(), indent=2) + "\n")
