"""The parts of a step's batch: together they are the batch, whoever makes them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from googlenet.data.dataset import Split
from googlenet.data.loader import Augment, fixed_turn, steps_per_epoch, training_batch
from googlenet.data.preprocess import Preprocess
from googlenet.data.rows import rows_of_step


@given(count=st.integers(2, 200), accumulate=st.integers(1, 9), processes=st.integers(1, 9))
def test_parts_cover_the_batch_evenly(count: int, accumulate: int, processes: int) -> None:
    parts = [rows_of_step(count, accumulate, process, processes) for process in range(processes)]
    assert len({len(part) for part in parts}) == 1, "every process takes part in every micro-batch"
    covered = []
    for micro_batch in zip(*parts, strict=True):
        sizes = [rows.stop - rows.start for rows in micro_batch]
        assert max(sizes) - min(sizes) <= 1
        assert sum(sizes) >= 2
        covered += [row for rows in micro_batch for row in range(rows.start, rows.stop)]
    assert covered == list(range(count))
    if count >= 2 * accumulate:
        assert len(parts[0]) == accumulate


def test_one_picture_is_one_part() -> None:
    assert [tuple(rows) for rows in rows_of_step(1, 1, 0, 1)] == [(0, 1, 1)]


@pytest.mark.parametrize(
    "augment",
    [
        Augment("random", 2, 3),
        Augment("alternating", crop=0.4),
        Augment("random", policy="rand-m7-mstd0.5", random_erasing=0.5),
        Augment(mixup=0.2, cutmix=1.0, classes=50),
    ],
    ids=["own", "crop", "timm", "mixed"],
)
def test_parts_of_a_batch_are_its_rows(augment: Augment) -> None:
    images = torch.randint(0, 256, (50, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = Split(images, torch.arange(50), [""] * 50)
    preprocess = Preprocess(16, 3, (0.4,) * 3, (0.2,) * 3)
    for step in range(steps_per_epoch(50, 16) + 1):
        same = {"step": step, "batch_size": 16, "size": 16, "seed": 5}
        turn = fixed_turn(50, 16, step)
        everyones = [rows_of_step(turn.stop - turn.start, 2, process, 3) for process in range(3)]
        in_order = [rows for micro_batch in zip(*everyones, strict=True) for rows in micro_batch]
        parts = [training_batch(data, preprocess, augment, **same, turn=turn, rows=rows) for rows in in_order]
        once = training_batch(data, preprocess, augment, **same)
        assert torch.equal(torch.cat([part.images for part in parts]), once.images)
        assert torch.equal(torch.cat([part.labels for part in parts]), once.labels)
