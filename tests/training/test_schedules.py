"""Learning-rate schedules against PyTorch's schedulers and by their properties."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from googlenet.config.schema import ScheduleConfig, SizeConfig
from googlenet.training.schedules import image_size, learning_rate_factor

TOTAL, PER_EPOCH = 120, 10


def ours(schedule: ScheduleConfig) -> list[float]:
    return [learning_rate_factor(schedule, step, TOTAL, PER_EPOCH) for step in range(TOTAL)]


@pytest.mark.parametrize(
    ("schedule", "reference"),
    [
        (ScheduleConfig("constant"), lambda o: torch.optim.lr_scheduler.ConstantLR(o, factor=1.0)),
        (
            ScheduleConfig("step", gamma=0.96, step_epochs=2),
            lambda o: torch.optim.lr_scheduler.StepLR(o, 2 * PER_EPOCH, gamma=0.96),
        ),
        (
            ScheduleConfig("exponential", gamma=0.5, step_epochs=1),
            lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5 ** (1 / PER_EPOCH)),
        ),
        (ScheduleConfig("cosine"), lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, TOTAL)),
        (
            ScheduleConfig("linear", min_lr_factor=0.1),
            lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.1, TOTAL),
        ),
    ],
)
def test_equals_torch(schedule: ScheduleConfig, reference: object) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = reference(optimizer)
    theirs = []
    for _ in range(TOTAL):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert ours(schedule) == pytest.approx(theirs, rel=1e-6)


@given(
    name=st.sampled_from(["constant", "step", "exponential", "cosine", "linear"]),
    warmup=st.floats(0, 0.9),
    floor=st.floats(0, 0.5),
    total=st.integers(1, 500),
)
def test_rises_during_warmup_then_never_rises(name: str, warmup: float, floor: float, total: int) -> None:
    schedule = ScheduleConfig(name, warmup_fraction=warmup, min_lr_factor=floor, step_epochs=1)
    rates = [learning_rate_factor(schedule, step, total, 10) for step in range(total)]
    assert all(0 < rate <= 1 for rate in rates)
    rise = sum(step < warmup * total for step in range(total))
    assert all(b > a for a, b in zip(rates[:rise], rates[1:rise], strict=False))
    assert all(b <= a for a, b in zip(rates[rise:], rates[rise + 1 :], strict=False))


def test_image_sizes() -> None:
    assert {image_size(SizeConfig("fixed", (96,)), step, 100, 0) for step in range(100)} == {96}
    grown = [image_size(SizeConfig("progressive", (24, 28, 32)), step, 90, 0) for step in range(90)]
    assert grown == [24] * 30 + [28] * 30 + [32] * 30
    drawn = [
        image_size(SizeConfig("random", (24, 28, 32), change_every_n_steps=5), step, 3000, 7) for step in range(3000)
    ]
    blocks = [set(drawn[i : i + 5]) for i in range(0, 3000, 5)]
    assert all(len(block) == 1 for block in blocks)
    assert all(drawn.count(size) == pytest.approx(1000, abs=200) for size in (24, 28, 32))
    assert drawn == [
        image_size(SizeConfig("random", (24, 28, 32), change_every_n_steps=5), step, 3000, 7) for step in range(3000)
    ]


def test_growing_random_sizes() -> None:
    size = SizeConfig("progressive_random", (24, 28, 32), change_every_n_steps=2)
    sizes = [image_size(size, step, 900, 1) for step in range(900)]
    assert set(sizes[:300]) == {24}
    assert set(sizes[300:600]) == {24, 28}
    assert set(sizes[600:]) == {24, 28, 32}
    assert all(sizes[600:].count(s) == pytest.approx(100, abs=45) for s in (24, 28, 32))
    assert [sizes[n] for n in range(0, 300, 2)] == [sizes[n] for n in range(1, 300, 2)]
    assert sizes == [image_size(size, step, 900, 1) for step in range(900)]
    assert sizes != [image_size(size, step, 900, 2) for step in range(900)]
