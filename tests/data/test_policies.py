"""timm's augmentations: functions of the generator alone, and equal to timm's own called by hand."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.data.mixup import Mixup

from googlenet.data.dataset import Split
from googlenet.data.loader import Augment, Batch, training_batch
from googlenet.data.policies import apply_policy, drawing, erase_regions, mix, policy, random_crop
from googlenet.data.preprocess import Preprocess

EVERYTHING = Augment("random", 1, 0, 0.5, "rand-m7-mstd0.5", 0.5, 0.4, 1.0, 3)


def split(channels: int, count: int = 23) -> Split:
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (count, channels, 20, 20), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(count) % 3, [str(n) for n in range(count)])


def batch(channels: int, augment: Augment, step: int = 0, batch_size: int = 8) -> Batch:
    preprocess = Preprocess(16, channels, (0.5,) * channels, (0.25,) * channels)
    return training_batch(split(channels), preprocess, augment, step=step, batch_size=batch_size, size=16, seed=1)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_is_a_function_of_seed_and_step_and_leaves_other_numbers_alone(channels: int) -> None:
    batch(channels, EVERYTHING)  # imports draw numbers of their own
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    first = batch(channels, EVERYTHING, 1)
    after = random.random(), np.random.rand(), torch.rand(1)
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    assert (random.random(), np.random.rand(), torch.rand(1)) == after
    batch(channels, EVERYTHING, 2)
    again = batch(channels, EVERYTHING, 1)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert first.images.shape == (8, channels, 16, 16)
    assert not torch.equal(first.images, batch(channels, EVERYTHING, 2).images)


def test_mixing_equals_timm_s() -> None:
    images, labels = torch.randn(6, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    for mixup, cutmix in ((0.4, 0.0), (0.0, 1.0), (0.4, 1.0)):
        with drawing(torch.Generator().manual_seed(9)):
            ours = mix(images.clone(), labels, mixup, cutmix, 3)
        number = int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(9)))
        np.random.seed(number)
        theirs = Mixup(mixup, cutmix, label_smoothing=0.0, num_classes=3)(images.clone(), labels)
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
        assert not torch.equal(ours[0], images)


@given(count=st.integers(1, 9), mixup=st.sampled_from([0.0, 0.2, 1.0]), cutmix=st.sampled_from([0.5, 1.0]))
def test_mixed_labels_are_shares(count: int, mixup: float, cutmix: float) -> None:
    labels = torch.arange(count) % 4
    with drawing(torch.Generator().manual_seed(count)):
        images, shares = mix(torch.randn(count, 1, 6, 6), labels, mixup, cutmix, 4)
    assert images.shape == (count, 1, 6, 6)
    torch.testing.assert_close(shares.sum(1), torch.ones(count))
    assert (shares >= 0).all()
    if count % 2:
        assert shares[-1].argmax() == labels[-1] and shares[-1].max() == 1, "timm mixes pairs"


@given(least=st.floats(0.05, 0.99), seed=st.integers(0, 99), side=st.integers(1, 40))
def test_crops_are_parts_of_the_picture(least: float, seed: int, side: int) -> None:
    # Every row is brighter than the one above.
    ramp = torch.arange(20, dtype=torch.uint8) * 10
    rows = ramp.view(1, 1, -1, 1).expand(4, 1, 20, 20)
    plain = Preprocess(side, 1, (0.0,), (1.0,))
    generator = torch.Generator().manual_seed(seed)
    out = random_crop(rows, least, side, plain, generator)
    assert out.shape == (4, 1, side, side)
    assert out.min() >= -1e-3 and out.max() <= 190.001
    assert (out.diff(dim=2) >= -1e-3).all(), "still brightens downwards"


@pytest.mark.parametrize("least", [0.1, 0.5, 0.9])
def test_crops_have_at_least_their_share(least: float) -> None:
    # A pixel's value is its row, or its column: the range that is left says how much was kept.
    ramp = torch.arange(200, dtype=torch.uint8)
    pixels = torch.stack([ramp.view(-1, 1).expand(200, 200), ramp.expand(200, 200)]).expand(60, 2, 200, 200)
    plain = Preprocess(400, 2, (0.0, 0.0), (1.0, 1.0))
    out = random_crop(pixels, least, 400, plain, torch.Generator().manual_seed(0))
    height, width = (out.amax((2, 3)) - out.amin((2, 3)) + 1).unbind(1)
    share, aspect = height * width / 200**2, width / height
    # Near the whole picture a crop that is wider than high does not fit in, and is cut.
    assert share.min() > min(least, 0.75) - 0.02
    assert aspect.min() > 0.74 and aspect.max() < 1.35
    assert share.max() - share.min() > 0.1


def test_grey_pictures_stay_grey_and_in_range() -> None:
    images = split(1).images.float()
    with drawing(torch.Generator().manual_seed(0)):
        out = apply_policy("rand-m9-n3", images, Preprocess(20, 1, (0.5,), (0.2,)))
    assert out.shape == images.shape
    assert out.min() >= 0 and out.max() <= 255
    assert not torch.equal(out, images)


def test_erasing_blanks_to_the_mean() -> None:
    with drawing(torch.Generator().manual_seed(0)):
        out = erase_regions(torch.ones(40, 1, 12, 12), 0.5)
    erased = (out == 0).flatten(1).any(1)
    assert 8 <= erased.sum() <= 32
    assert ((out == 0) | (out == 1)).all()


@pytest.mark.parametrize("text", ["randy", "rand-q5", ""])
def test_unknown_policies_get_one_line(text: str) -> None:
    with pytest.raises(ValueError, match="timm knows no policy") as raised:
        policy(text, 16, (0.5, 0.5, 0.5))
    assert "\n" not in str(raised.value)
