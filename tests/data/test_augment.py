"""timm's augmentations are functions of the generator, and equal direct calls of timm."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.data.mixup import Mixup

from googlenet.data.augment import (
    Augment,
    apply_policy,
    build_auto_augment,
    mixup_cutmix,
    random_erasing,
    seeded_global_rng,
)
from googlenet.data.batch_slice import BatchSlice
from googlenet.data.dataset import Split
from googlenet.data.loader import Batch, full_batch_spec, training_batch
from googlenet.data.preprocess import Preprocess

ALL = Augment("random", 1, 0, 0.5, "rand-m7-mstd0.5", 0.5, 0.4, 1.0, 3)


def split(channels: int, count: int = 23) -> Split:
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (count, channels, 20, 20), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(count) % 3, [str(n) for n in range(count)])


def batch(channels: int, augment: Augment, step: int = 0) -> Batch:
    preprocess = Preprocess(16, channels, (0.5,) * channels, (0.25,) * channels)
    data = split(channels)
    spec = full_batch_spec(len(data.labels), 8, step=step, size=16, seed=1)
    return training_batch(data, preprocess, augment, spec)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_depends_only_on_seed_and_step_and_restores_global_generators(channels: int) -> None:
    batch(channels, ALL)  # Importing timm draws random numbers.
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    first = batch(channels, ALL, 1)
    after = random.random(), np.random.rand(), torch.rand(1)
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    assert (random.random(), np.random.rand(), torch.rand(1)) == after
    batch(channels, ALL, 2)
    again = batch(channels, ALL, 1)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert first.images.shape == (8, channels, 16, 16)
    assert not torch.equal(first.images, batch(channels, ALL, 2).images)


def test_mixup_and_cutmix_equal_timm() -> None:
    images, labels = torch.randn(6, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    for mixup, cutmix in ((0.4, 0.0), (0.0, 1.0), (0.4, 1.0)):
        augment = Augment(mixup=mixup, cutmix=cutmix, num_classes=3)
        with seeded_global_rng(9):
            ours = mixup_cutmix(images.clone(), labels, (images, labels), augment)
        np.random.seed(9)
        expected = Mixup(mixup, cutmix, label_smoothing=0.0, num_classes=3)(images.clone(), labels)
        assert torch.equal(ours[0], expected[0])
        assert torch.equal(ours[1], expected[1])
        assert not torch.equal(ours[0], images)


@given(count=st.integers(1, 9), mixup=st.sampled_from([0.0, 0.2, 1.0]), cutmix=st.sampled_from([0.5, 1.0]))
def test_mixed_labels_are_probabilities(count: int, mixup: float, cutmix: float) -> None:
    images, labels, even = torch.randn(count, 1, 6, 6), torch.arange(count) % 4, count // 2 * 2
    with seeded_global_rng(count):
        augment = Augment(mixup=mixup, cutmix=cutmix, num_classes=4)
        images, probabilities = mixup_cutmix(images, labels, (images[:even], labels[:even]), augment)
    assert images.shape == (count, 1, 6, 6)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(count))
    assert (probabilities >= 0).all()
    if count % 2:
        assert probabilities[-1].argmax() == labels[-1] and probabilities[-1].max() == 1, "timm mixes pairs"


def test_gray_images_stay_gray_and_in_range() -> None:
    images, preprocess = split(1).images, Preprocess(20, 1, (0.5,), (0.2,))
    out = torch.stack([apply_policy("rand-m9-n3", image, preprocess, seed) for seed, image in enumerate(images)])
    assert out.shape == images.shape and out.dtype == torch.uint8
    assert not torch.equal(out, images)


def test_random_erasing_blanks_to_the_mean() -> None:
    out = random_erasing(torch.ones(40, 1, 12, 12), 0.5, range(40))
    erased = (out == 0).flatten(1).any(1)
    assert 8 <= erased.sum() <= 32
    assert ((out == 0) | (out == 1)).all()


@pytest.mark.parametrize("policy", ["randy", "rand-q5", ""])
def test_an_unknown_policy_is_a_one_line_error(policy: str) -> None:
    with pytest.raises(ValueError, match="unknown timm policy") as raised:
        build_auto_augment(policy, 16, (0.5, 0.5, 0.5))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("augment", [Augment(auto_augment="rand-m7-mstd0.5"), Augment(random_erasing=0.6)], ids=str)
def test_an_image_is_augmented_alone(augment: Augment, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process augments its own images only, and gets those of the full batch."""
    data, preprocess = split(3), Preprocess(20, 3, (0.5,) * 3, (0.25,) * 3)
    spec = full_batch_spec(len(data.labels), 8, step=1, size=20, seed=4)
    full = training_batch(data, preprocess, augment, spec).images
    augmented, seeded = [], seeded_global_rng

    def count(seed: int) -> object:
        augmented.append(seed)
        return seeded(seed)

    monkeypatch.setattr("googlenet.data.augment.seeded_global_rng", count)
    for start, stop in ((0, 3), (3, 4), (5, 5), (2, 8)):
        augmented.clear()
        part = training_batch(data, preprocess, augment, spec._replace(part=BatchSlice(start, stop, 8))).images
        assert torch.equal(part, full[start:stop])
        assert len(augmented) == len(set(augmented)) == stop - start


@pytest.mark.parametrize("total", [2, 7, 8])
@pytest.mark.parametrize("augment", [Augment(mixup=0.3, num_classes=3), Augment(cutmix=1.0, num_classes=3)], ids=str)
def test_mixing_computes_partners_only(augment: Augment, total: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every slice of the batch equals timm's result for the full one, from its own images and their partners."""
    data, preprocess = split(1), Preprocess(20, 1, (0.5,), (0.25,))
    spec = full_batch_spec(len(data.labels), total, step=0, size=20, seed=6)
    plain = training_batch(data, preprocess, Augment(), spec)
    generator, even = torch.Generator().manual_seed(2 * 6 * 1_000_000_007), total // 2 * 2
    np.random.seed(int(torch.randint(2**31, (), generator=generator)))
    mixer = Mixup(augment.mixup, augment.cutmix, label_smoothing=0.0, num_classes=3)
    expected, probabilities = mixer(plain.images[:even].clone(), plain.labels[:even])
    expected = torch.cat((expected, plain.images[even:]))
    read, normalize = [], Preprocess.normalize
    monkeypatch.setattr(Preprocess, "normalize", lambda self, x: (read.append(len(x)), normalize(self, x))[1])
    for start in range(total + 1):
        for stop in range(start, total + 1):
            read.clear()
            batch = training_batch(data, preprocess, augment, spec._replace(part=BatchSlice(start, stop, total)))
            assert torch.equal(batch.images, expected[start:stop])
            assert torch.equal(batch.labels[: even - start], probabilities[start : min(stop, even)])
            assert sum(read) <= 2 * (stop - start)
