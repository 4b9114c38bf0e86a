"""The list of a run's steps, by its properties: every picture once a pass, as many pixels a step, nothing but the
recipe and the number of pictures."""

import signal
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from googlenet.data.loader import steps_per_epoch
from googlenet.errors import InterruptedRunError
from googlenet.training.checkpoint import load_recipe
from googlenet.training.loop import fit
from googlenet.training.plan import batch_at, plan_run
from googlenet.training.recipe import Recipe, Schedule, Size
from googlenet.training.recipe_file import read_recipe
from googlenet.training.record import read_metrics
from googlenet.training.schedule import image_size, learning_rate_factor
from interruption import signal_at

KINDS = ["progressive", "random", "progressive_random"]


def recipe(kind: str, batch: str, batch_size: int = 16, epochs: int = 3, **more: object) -> Recipe:
    size = Size(kind, (12, 16, 24), every=2, batch=batch)
    return Recipe(size=size, batch_size=batch_size, epochs=epochs, schedule=Schedule("one_cycle", warmup=0.2), **more)


@given(kind=st.sampled_from(KINDS), batch=st.sampled_from(["fixed", "constant_memory"]), count=st.integers(2, 300),
       batch_size=st.integers(2, 40), epochs=st.integers(1, 4))  # fmt: skip
def test_every_pass_shows_every_picture_once(kind: str, batch: str, count: int, batch_size: int, epochs: int) -> None:
    plan = plan_run(recipe(kind, batch, batch_size, epochs), count)
    steps = [plan.at(step) for step in range(plan.total)]
    for epoch in range(epochs):
        parts = [step.turn for step in steps if step.turn.epoch == epoch]
        assert parts[0].start == 0
        assert all(before.stop == after.start for before, after in zip(parts, parts[1:], strict=False))
        assert count - parts[-1].stop in (0, 1), "only a remainder of one is left out"
        assert all(part.stop - part.start > 1 for part in parts), "batch normalisation needs two"
    assert sum(step.turn.stop - step.turn.start for step in steps) == plan.images(plan.total)
    progress = [step.progress for step in steps]
    assert progress == sorted(progress)
    assert max(progress) < epochs * plan.nominal
    if batch == "constant_memory":
        largest = batch_size * 24**2
        assert all((step.turn.stop - step.turn.start) * step.size**2 <= largest for step in steps)
        whole = [step for step in steps if step.turn.stop != count and step.turn.stop != count - 1]
        assert all((step.turn.stop - step.turn.start + 1) * step.size**2 > largest for step in whole)


@pytest.mark.parametrize("kind", KINDS)
def test_fixed_batches_follow_from_the_number_alone(kind: str) -> None:
    given, count = recipe(kind, "fixed"), 100
    plan, per_epoch = plan_run(given, count), steps_per_epoch(count, 16)
    assert (plan.total, plan.per_epoch, plan.validate_every, plan.images(21), plan.images(8)) == (21, 7, 7, 300, 116)
    for step in range(plan.total):
        at = plan.at(step)
        assert at.size == image_size(given.size, step, 21, given.seed)
        assert at.turn == (step // 7, step % 7 * 16, min(step % 7 * 16 + 16, count))
        factor = learning_rate_factor(given.schedule, step, 21, per_epoch)
        assert plan.learning_rate(step) == given.optimiser.lr * factor


def test_one_size_at_constant_memory_is_fixed() -> None:
    size = Size("fixed", 24, batch="constant_memory")
    alike = [plan_run(Recipe(size=s, batch_size=16, epochs=2), 101) for s in (size, Size("fixed", 24))]
    assert alike[0].total == alike[1].total
    assert [alike[0].at(n) for n in range(alike[0].total)] == [alike[1].at(n) for n in range(alike[1].total)]


def test_smaller_sizes_get_larger_batches_and_the_run_fewer_steps() -> None:
    given = recipe("progressive", "constant_memory", batch_size=8, epochs=6)
    assert [batch_at(given, size) for size in (24, 16, 12)] == [8, 18, 32]
    plan = plan_run(given, 576)
    assert plan.nominal == 72
    assert [plan.at(step).size for step in range(plan.total)] == [12] * 36 + [16] * 64 + [24] * 144
    assert plan.validate_every == round(plan.total / 6)
    rates = [plan.learning_rate(step) for step in range(plan.total)]
    peak = rates.index(max(rates))
    assert plan.at(peak).progress == pytest.approx(0.2 * 6 * 72, abs=4), "warm-up is a part of the pictures"


def test_small_folders_get_more_passes() -> None:
    plan = plan_run(recipe("random", "fixed", epochs=3, min_steps=100), 40)
    assert (plan.epochs, plan.total) == (34, 102)
    assert plan.validate_every == 34, "validated three times, as three epochs would be"
    assert plan_run(recipe("random", "fixed", epochs=3, min_steps=5), 40).epochs == 3


@pytest.mark.parametrize("kind", [pytest.param("random", marks=pytest.mark.slow), "progressive_random"])
def test_an_interrupted_run_of_growing_batches_ends_with_the_same_weights(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--size.train=[8,12,16]", f"--size.kind={kind}", "--size.every=2", "--size.batch=constant_memory",
             "--data.limit=300", "--epochs=2", "--batch_size=32", "--reestimate_norm=2", "--ema=0.9"]  # fmt: skip
    given = read_recipe("fashion-mnist-smoke", flags)
    fit(given, tmp_path / "whole", progress=False)
    signal_at(5, signal.SIGTERM, monkeypatch)
    with pytest.raises(InterruptedRunError, match="step 5"):
        fit(given, tmp_path / "cut", progress=False)
    fit(load_recipe(tmp_path / "cut"), tmp_path / "cut", resume=True, progress=False)
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    sizes = {entry["size"] for entry in read_metrics(tmp_path / "whole") if entry["split"] == "train"}
    assert sizes <= {8, 12, 16}
