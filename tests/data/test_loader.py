"""Batches as functions of the seed and the step; augmentations by their properties."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from googlenet.data.augment import erase, flip, shift
from googlenet.data.dataset import Split
from googlenet.data.loader import Augment, Batch, evaluation_batches, steps_per_epoch, training_batch
from googlenet.data.preprocess import Preprocess

RAW = Preprocess(6, 1, (0.0,), (1.0,))


def split(count: int) -> Split:
    """Pictures whose pixels are all their own number."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 6, 6).contiguous()
    return Split(images, torch.arange(count), [str(n) for n in range(count)])


def batch_at(step: int, data: Split, augment: Augment | None = None, seed: int = 0, size: int = 6) -> Batch:
    return training_batch(data, RAW, augment or Augment(), step=step, batch_size=16, size=size, seed=seed)


@given(count=st.integers(2, 130))
def test_an_epoch_shows_every_picture_once(count: int) -> None:
    data = split(count)
    steps = steps_per_epoch(count, 16)
    labels = [batch_at(step, data).labels for step in range(steps)]
    seen = sorted(torch.cat(labels).tolist())
    assert min(len(part) for part in labels) > 1
    assert len(seen) == len(set(seen)) == count - (count % 16 == 1)


@pytest.mark.parametrize(
    ("count", "batch_size", "steps"), [(1, 16, 1), (2, 16, 1), (16, 16, 1), (17, 16, 1), (18, 16, 2), (3, 1, 3)]
)
def test_a_remainder_of_one_is_no_step_but_one_picture_alone_is(count: int, batch_size: int, steps: int) -> None:
    assert steps_per_epoch(count, batch_size) == steps
    assert len(batch_at(0, split(count)).labels) == min(count, 16)


def test_a_step_depends_on_seed_and_step_alone() -> None:
    data, augment = split(100), Augment("random", 2, 2)
    once = batch_at(9, data, augment)
    batch_at(3, data, augment)
    torch.manual_seed(1)
    again = batch_at(9, data, augment)
    assert torch.equal(once.images, again.images)
    assert torch.equal(once.labels, again.labels)
    assert not torch.equal(once.labels, batch_at(9, data, augment, seed=1).labels)
    assert not torch.equal(once.labels, batch_at(10, data, augment).labels)
    first, second = (torch.cat([batch_at(s + e * 7, data).labels for s in range(7)]) for e in (0, 1))
    assert not torch.equal(first, second), "each epoch has an order of its own"


def test_pictures_keep_their_labels_and_size() -> None:
    batch = batch_at(2, split(100), size=9)
    assert batch.images.shape == (16, 1, 9, 9)
    torch.testing.assert_close(batch.images[:, 0, 4, 4] * 255, batch.labels.float())


def test_evaluation_batches_keep_the_order() -> None:
    labels = [batch.labels for batch in evaluation_batches(split(10), RAW, size=700)]
    assert [len(part) for part in labels] == [4, 4, 2]
    assert torch.cat(labels).tolist() == list(range(10))


def mirrored(images: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    same, other = ((a == b).flatten(1).all(1) for a, b in ((out, images), (out, images.flip(-1))))
    assert (same ^ other).all()
    return other


def test_alternating_flips_show_both_sides_in_two_epochs() -> None:
    images, indices = torch.rand(4000, 1, 4, 4), torch.arange(4000)
    generator = torch.Generator()
    sides = [mirrored(images, flip(images, "alternating", indices, epoch, 3, generator)) for epoch in range(3)]
    assert torch.equal(sides[0], ~sides[1])
    assert torch.equal(sides[0], sides[2])
    assert sides[0].float().mean().item() == pytest.approx(0.5, abs=0.03)
    # No pattern: neighbours agree as often as not, and another seed decides otherwise.
    assert (sides[0][1:] == sides[0][:-1]).float().mean().item() == pytest.approx(0.5, abs=0.04)
    other = mirrored(images, flip(images, "alternating", indices, 0, 4, generator))
    assert (sides[0] == other).float().mean().item() == pytest.approx(0.5, abs=0.04)


def test_random_flips_mirror_half() -> None:
    images = torch.rand(2000, 1, 4, 4)
    out = flip(images, "random", torch.arange(2000), 0, 0, torch.Generator().manual_seed(0))
    assert mirrored(images, out).float().mean().item() == pytest.approx(0.5, abs=0.04)
    assert flip(images, "none", torch.arange(2000), 0, 0, torch.Generator()) is images


def test_shift_moves_whole_pictures() -> None:
    images = torch.zeros(500, 2, 9, 9)
    images[:, 0, 4, 4], images[:, 1, 4, 4] = 1, 2
    out = shift(images, 2, torch.Generator().manual_seed(0))
    assert torch.equal(out[:, 1], 2 * out[:, 0])
    where = torch.nonzero(out[:, 0])[:, 1:]
    assert len(where) == 500
    assert {tuple(w) for w in where.tolist()} == {(r, c) for r in range(2, 7) for c in range(2, 7)}


def test_erase_blanks_one_square() -> None:
    out = erase(torch.ones(300, 1, 10, 10), 3, torch.Generator().manual_seed(0))
    blank = (out == 0).sum((1, 2, 3))
    assert blank.max() == 9
    assert blank.min() >= 4, "cut by the border at most to a 2x2 corner"
