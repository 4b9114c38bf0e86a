"""Runs with a time budget: they end in time at any speed, and resume to the same weights."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from conftest import googlenet
from googlenet.checkpoint.format import read_run_recipe
from googlenet.config.parse import read_recipe
from googlenet.config.schema import Recipe, ScheduleConfig
from googlenet.training import setup
from googlenet.training.fit import fit
from googlenet.training.metrics_logger import MetricsLogger, StepMetrics, read_metrics
from googlenet.training.step_schedule import Replan, StepSchedule
from googlenet.training.time_budget import (
    BUDGET_FILE,
    SAVE_SECONDS,
    Mark,
    TimeBudget,
    check,
    is_check_due,
    read_budget,
)
from interruption import CHECKPOINT_EVERY_STEP, Crash, raise_at

RECIPE = Recipe(batch_size=32, schedule=ScheduleConfig("linear", warmup_fraction=0.1))


def schedule_of(steps: int) -> StepSchedule:
    return StepSchedule(RECIPE, 320, steps / 10, steps, 10)


def simulate(planned: int, seconds: float, step_seconds: Callable[[float], float]) -> tuple[float, StepSchedule]:
    """Return when the last step ends if a step that starts at time t takes ``step_seconds(t / seconds)``."""
    budget, schedule = TimeBudget(seconds, 0), schedule_of(planned)
    step, now, marks = 0, 0.0, [Mark(0, 0.0)]
    while step < schedule.total_steps:
        now, step = now + step_seconds(now / seconds), step + 1
        if is_check_due(budget, schedule, step):
            budget = check(budget, schedule, marks, Mark(step, now))
            marks.append(Mark(step, now))
            schedule = schedule._replace(replans=budget.replans)
    return now, schedule


@given(planned=st.integers(1, 3000), speed=st.floats(0.05, 0.5))
def test_ends_in_time_whatever_was_planned(planned: int, speed: float) -> None:
    seconds = 120.0
    end, _ = simulate(planned, seconds, lambda _: speed)
    if planned == 1 or planned * speed > 0.9 * seconds or planned > 2:
        expected = seconds - SAVE_SECONDS
        # The tolerance of 3 %, and the last step. A plan of one or two steps ends before the first check.
        assert planned <= 2 or abs(end - expected) <= 0.03 * seconds + 2 * speed


@given(at=st.floats(0.05, 0.85), factor=st.sampled_from([0.33, 0.5, 0.7, 1.5, 2.0, 3.0]))
def test_ends_in_time_if_the_speed_changes(at: float, factor: float) -> None:
    """Within 10 % of the budget, whenever the machine becomes up to three times slower or faster."""
    seconds = 300.0
    end, _ = simulate(1000, seconds, lambda time: 0.3 * (factor if time > at else 1.0))
    assert abs(end - (seconds - SAVE_SECONDS)) <= 0.1 * seconds


def test_steady_speed_never_changes_the_plan() -> None:
    end, schedule = simulate(396, 120.0, lambda _: 0.3)
    assert schedule.replans == ()
    assert end == pytest.approx(118.8)


replans = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 200)), max_size=5)


@given(changes=replans)
def test_position_goes_from_the_first_to_the_last_step_without_jumps(changes: list[tuple[int, int]]) -> None:
    """Each replan keeps the position that it finds, and the steps after it share the rest evenly."""
    made: list[Replan] = []
    for gap, rest in changes:
        start = (made[-1].step if made else 0) + gap
        if start >= (made[-1].total_steps if made else 100):
            break
        made.append(Replan(start, start + rest))
    schedule = schedule_of(100)._replace(replans=tuple(made))
    positions = [schedule.position(step) for step in range(schedule.total_steps + 1)]
    assert positions[0] == 0
    assert positions[-1] == pytest.approx(100, rel=1e-9)  # sums of at most six fractions
    assert all(low < high for low, high in itertools.pairwise(positions))
    for index, replan in enumerate(made):
        before = schedule._replace(replans=tuple(made[:index]))
        assert schedule.position(replan.step) == pytest.approx(before.position(replan.step), rel=1e-9)
    assert schedule.learning_rate(schedule.total_steps) == pytest.approx(0, abs=1e-9)


def test_without_replans_a_step_is_its_position() -> None:
    assert [schedule_of(7).position(step) for step in range(8)] == list(range(8))


FLAGS = [
    "--epochs=3", "--data.max_samples=64", "--batch_size=16", "--model.width_mult=0.25", "--data.val_split=16",
    "--budget_minutes=0.5", "--tracker=none", "--eval_every_epochs=100", CHECKPOINT_EVERY_STEP,
]  # fmt: skip


def set_speed(seconds_per_step: float, patch: pytest.MonkeyPatch) -> None:
    """Let every step of a run take so long by the run's own clock, and reading the data no time."""
    log_step, start_budget = MetricsLogger.log_step, setup.start_budget

    def count(self: MetricsLogger, step: int, metrics: StepMetrics) -> None:
        vars(self)["finished_steps"] = step
        log_step(self, step, metrics)

    def seconds(self: MetricsLogger) -> float:
        return seconds_per_step * vars(self).get("finished_steps", self._last_step)

    patch.setattr(MetricsLogger, "log_step", count)
    patch.setattr(MetricsLogger, "seconds", property(seconds))
    patch.setattr(setup, "start_budget", lambda folder, data, _: start_budget(folder, data, 12.0))


def run_at(seconds_per_step: float, run: Path, monkeypatch: pytest.MonkeyPatch, crash_at: str | None = None) -> None:
    """Start or continue a run at a steady speed."""
    started = (run / BUDGET_FILE).exists()
    recipe = read_run_recipe(run) if started else read_recipe("fashion-mnist-smoke", FLAGS)
    with monkeypatch.context() as patched:
        set_speed(seconds_per_step, patched)
        if crash_at is None:
            fit(recipe, run, resume=started, progress=False)
            return
        raise_at(crash_at, patched)
        with pytest.raises(Crash):
            fit(recipe, run, progress=False)


@pytest.mark.slow
def test_interrupted_run_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planned 12 steps become more after step 2, whose state is lost: the resumed run repeats the decision."""
    run_at(0.5, tmp_path / "whole", monkeypatch)
    decisions = read_budget(tmp_path / "whole")
    assert decisions is not None and [replan.step for replan in decisions.replans] == [2]
    steps = max(entry["step"] for entry in read_metrics(tmp_path / "whole"))
    assert steps == decisions.replans[0].total_steps == 16, "8 s of 12 s: 3 s for saving, 1 s for evaluating"
    run_at(0.5, tmp_path / "crashed", monkeypatch, crash_at="2:before")
    run_at(0.5, tmp_path / "crashed", monkeypatch)
    assert read_budget(tmp_path / "crashed") == decisions
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "crashed")]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


@pytest.mark.slow
def test_resumed_run_on_a_slower_machine_keeps_what_was_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It still ends in time: twice as slow after the crash, so with fewer steps."""
    run_at(0.5, tmp_path / "run", monkeypatch, crash_at="8:before")
    first = read_budget(tmp_path / "run")
    assert first is not None and first.checked >= 8
    run_at(1.0, tmp_path / "run", monkeypatch)
    resumed = read_budget(tmp_path / "run")
    assert resumed is not None and resumed.replans[: len(first.replans)] == first.replans
    assert len(resumed.replans) > len(first.replans)
    assert resumed.replans[-1].total_steps < 16


def test_damaged_decisions_and_invalid_budgets(tmp_path: Path) -> None:
    (tmp_path / BUDGET_FILE).write_text("{")
    with pytest.raises(ValueError, match="damaged; train again"):
        read_budget(tmp_path)
    assert read_budget(tmp_path / "other") is None
    for value, message in (("0", "budget_minutes must be in (0, inf)"), ("soon", "budget_minutes must be a number")):
        done = googlenet("train", "fashion-mnist-smoke", "--minutes", value, "--out", tmp_path / "run")
        assert done.code == 2
        assert message in done.err and len(done.err.strip().splitlines()) == 1
