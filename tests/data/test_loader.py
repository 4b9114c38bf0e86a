"""Batches are functions of the seed and the step; augmentations have the documented properties."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from googlenet.data.augment import Augment, alternating_flip, cutout, random_flip, translate
from googlenet.data.batch_slice import full_batch
from googlenet.data.dataset import Split
from googlenet.data.loader import Batch, evaluation_batches, full_batch_spec, steps_per_epoch, training_batch
from googlenet.data.preprocess import Preprocess

IDENTITY = Preprocess(6, 1, (0.0,), (1.0,))


def split(count: int) -> Split:
    """Return images whose pixels all equal their index."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 6, 6).contiguous()
    return Split(images, torch.arange(count), [str(n) for n in range(count)])


def batch_at(step: int, data: Split, augment: Augment | None = None, seed: int = 0, size: int = 6) -> Batch:
    spec = full_batch_spec(len(data.labels), 16, step=step, size=size, seed=seed)
    return training_batch(data, IDENTITY, augment or Augment(), spec)


@given(count=st.integers(2, 130))
def test_an_epoch_shows_every_image_once(count: int) -> None:
    data = split(count)
    steps = steps_per_epoch(count, 16)
    labels = [batch_at(step, data).labels for step in range(steps)]
    shown = sorted(torch.cat(labels).tolist())
    assert min(len(batch) for batch in labels) > 1
    assert len(shown) == len(set(shown)) == count - (count % 16 == 1)


@pytest.mark.parametrize(
    ("count", "batch_size", "steps"), [(1, 16, 1), (2, 16, 1), (16, 16, 1), (17, 16, 1), (18, 16, 2), (3, 1, 3)]
)
def test_a_remainder_of_one_is_left_out_but_a_single_image_is_not(count: int, batch_size: int, steps: int) -> None:
    assert steps_per_epoch(count, batch_size) == steps
    assert len(batch_at(0, split(count)).labels) == min(count, 16)


def test_a_batch_depends_only_on_seed_and_step() -> None:
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
    assert not torch.equal(first, second), "each epoch has its own order"


def test_images_keep_their_labels_and_size() -> None:
    batch = batch_at(2, split(100), size=9)
    assert batch.images.shape == (16, 1, 9, 9)
    torch.testing.assert_close(batch.images[:, 0, 4, 4] * 255, batch.labels.float())


def test_evaluation_batches_keep_the_order() -> None:
    labels = [batch.labels for batch in evaluation_batches(split(10), IDENTITY, size=700)]
    assert [len(batch) for batch in labels] == [4, 4, 2]
    assert torch.cat(labels).tolist() == list(range(10))


def is_flipped(images: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    same, flipped = ((a == b).flatten(1).all(1) for a, b in ((out, images), (out, images.flip(-1))))
    assert (same ^ flipped).all()
    return flipped


def test_alternating_flip_shows_both_orientations_in_two_epochs() -> None:
    images, indices = torch.rand(4000, 1, 4, 4), torch.arange(4000)
    flips = [is_flipped(images, alternating_flip(images, indices, epoch, 3)) for epoch in range(3)]
    assert torch.equal(flips[0], ~flips[1])
    assert torch.equal(flips[0], flips[2])
    assert flips[0].float().mean().item() == pytest.approx(0.5, abs=0.03)
    # Neighbors and other seeds agree as often as they disagree, so there is no pattern.
    assert (flips[0][1:] == flips[0][:-1]).float().mean().item() == pytest.approx(0.5, abs=0.04)
    other = is_flipped(images, alternating_flip(images, indices, 0, 4))
    assert (flips[0] == other).float().mean().item() == pytest.approx(0.5, abs=0.04)


def test_random_flip_flips_half_of_the_images() -> None:
    images = torch.rand(2000, 1, 4, 4)
    out = random_flip(images, torch.Generator().manual_seed(0), full_batch(2000))
    assert is_flipped(images, out).float().mean().item() == pytest.approx(0.5, abs=0.04)


def test_without_flip_the_images_are_unchanged() -> None:
    ramp = torch.arange(36, dtype=torch.uint8).view(1, 1, 6, 6).expand(20, -1, -1, -1).contiguous()
    data = Split(ramp, torch.arange(20), [""] * 20)
    assert torch.equal(batch_at(0, data).images, ramp[:16] / 255)


def test_translate_moves_whole_images() -> None:
    images = torch.zeros(500, 2, 9, 9)
    images[:, 0, 4, 4], images[:, 1, 4, 4] = 1, 2
    out = translate(images, 2, torch.Generator().manual_seed(0), full_batch(500))
    assert torch.equal(out[:, 1], 2 * out[:, 0])
    positions = torch.nonzero(out[:, 0])[:, 1:]
    assert len(positions) == 500
    assert {tuple(p) for p in positions.tolist()} == {(r, c) for r in range(2, 7) for c in range(2, 7)}


def test_cutout_blanks_one_square() -> None:
    out = cutout(torch.ones(300, 1, 10, 10), 3, torch.Generator().manual_seed(0), full_batch(300))
    blank = (out == 0).sum((1, 2, 3))
    assert blank.max() == 9
    assert blank.min() >= 4, "the border cuts the square to 2x2 at most"
