"""The steps of a run: every image once per epoch, as a function of the recipe and the number of images alone."""

import signal
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from googlenet.checkpoint.format import read_run_recipe
from googlenet.config.parse import read_recipe
from googlenet.config.schema import Recipe, ScheduleConfig, SizeConfig
from googlenet.data.loader import steps_per_epoch
from googlenet.errors import InterruptedRunError
from googlenet.training.fit import fit
from googlenet.training.metrics_logger import read_metrics
from googlenet.training.schedules import image_size, learning_rate_factor
from googlenet.training.step_schedule import build_step_schedule
from interruption import signal_at

SCHEDULES = ["progressive", "random", "progressive_random"]


def recipe(schedule: str, batch_size: int = 16, epochs: int = 3, **options: object) -> Recipe:
    size = SizeConfig(schedule, (12, 16, 24), change_every_n_steps=2)
    linear = ScheduleConfig("linear", warmup_fraction=0.2)
    return Recipe(size=size, batch_size=batch_size, epochs=epochs, schedule=linear, **options)


@given(schedule=st.sampled_from(SCHEDULES), count=st.integers(2, 300), batch_size=st.integers(2, 40),
       epochs=st.integers(1, 4))  # fmt: skip
def test_every_epoch_has_every_image_once(schedule: str, count: int, batch_size: int, epochs: int) -> None:
    steps = build_step_schedule(recipe(schedule, batch_size, epochs), count)
    ranges = [steps.samples(step) for step in range(steps.total_steps)]
    for epoch in range(epochs):
        parts = [samples for samples in ranges if samples.epoch == epoch]
        assert parts[0].start == 0
        assert all(before.stop == after.start for before, after in zip(parts, parts[1:], strict=False))
        assert count - parts[-1].stop in (0, 1), "only a remainder of one is left out"
        assert all(part.num_images > 1 for part in parts), "batch normalization needs two"
    assert sum(samples.num_images for samples in ranges) == steps.images_seen(steps.total_steps)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_steps_are_functions_of_their_number(schedule: str) -> None:
    given, count = recipe(schedule), 100
    steps, per_epoch = build_step_schedule(given, count), steps_per_epoch(count, 16)
    assert (steps.total_steps, steps.steps_per_epoch, steps.eval_every_steps) == (21, 7, 7)
    assert (steps.images_seen(21), steps.images_seen(8)) == (300, 116)
    for step in range(steps.total_steps):
        assert steps.image_size(step) == image_size(given.size, step, 21, given.seed)
        assert steps.samples(step) == (step // 7, step % 7 * 16, min(step % 7 * 16 + 16, count))
        factor = learning_rate_factor(given.schedule, step, 21, per_epoch)
        assert steps.learning_rate(step) == given.optimizer.lr * factor


def test_min_steps_adds_epochs() -> None:
    steps = build_step_schedule(recipe("random", epochs=3, min_steps=100), 40)
    assert (steps.epochs, steps.total_steps) == (34, 102)
    assert steps.eval_every_steps == 34, "validated three times, as three epochs would be"
    assert build_step_schedule(recipe("random", epochs=3, min_steps=5), 40).epochs == 3


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [pytest.param("random", marks=pytest.mark.slow), "progressive_random"])
def test_interrupted_multi_size_run_ends_with_the_same_weights(
    schedule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--size.train=[8,12,16]", f"--size.schedule={schedule}", "--size.change_every_n_steps=2",
             "--data.max_samples=300", "--epochs=2", "--batch_size=32", "--precise_bn_batches=2",
             "--ema_decay=0.9"]  # fmt: skip
    given = read_recipe("fashion-mnist-smoke", flags)
    fit(given, tmp_path / "uninterrupted", progress=False)
    signal_at(5, signal.SIGTERM, monkeypatch)
    with pytest.raises(InterruptedRunError, match="step 5"):
        fit(given, tmp_path / "resumed", progress=False)
    fit(read_run_recipe(tmp_path / "resumed"), tmp_path / "resumed", resume=True, progress=False)
    expected, weights = (load_file(tmp_path / name / "model.safetensors") for name in ("uninterrupted", "resumed"))
    assert all(torch.equal(expected[key], weights[key]) for key in expected)
    sizes = {entry["size"] for entry in read_metrics(tmp_path / "uninterrupted") if entry["split"] == "train"}
    assert sizes <= {8, 12, 16}
