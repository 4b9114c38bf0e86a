"""Photometric distortions equal torchvision's where nothing is clipped; flips and rotations move whole images."""

import itertools
import math

import pytest
import torch
from torchvision.transforms import functional as F

from googlenet.data.augment import Augment, rotate90, vertical_flip
from googlenet.data.dataset import Split
from googlenet.data.image_seeds import COLOR, image_uniform
from googlenet.data.loader import full_batch_spec, training_batch
from googlenet.data.photometric import DISTORTIONS, LIGHTING, NUM_DRAWS, distort_colors
from googlenet.data.preprocess import Preprocess


def colors(count: int = 6, channels: int = 3) -> torch.Tensor:
    """Images in the middle of the range, so that nothing is clipped."""
    generator = torch.Generator().manual_seed(3)
    return 100 + 50 * torch.rand(count, channels, 7, 9, generator=generator, dtype=torch.float64)


def draws(count: int = 6, order: tuple[int, ...] = (0, 1, 2, 3)) -> torch.Tensor:
    uniform = image_uniform(torch.arange(count), 1, 2, COLOR, NUM_DRAWS).double()
    uniform[:, 4:8] = torch.tensor([order.index(kind) for kind in range(4)]) / 4
    return uniform


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("channels", [1, 3])
def test_each_distortion_equals_torchvisions(name: str, channels: int) -> None:
    images, uniform = colors(channels=channels), draws()
    out = distort_colors(images, Augment(**{name: 0.4}), uniform)
    factors = 1 + 0.4 * (2 * uniform[:, DISTORTIONS.index(name)] - 1)
    adjust = getattr(F, f"adjust_{name}")
    for image, distorted, factor in zip(images, out, factors.tolist(), strict=True):
        expected = adjust(image / 255, factor) * 255
        # torchvision's weights of the brightness, 0.2989, 0.587 and 0.114, sum to 0.9999.
        assert (distorted - expected).abs().max() < 0.02
        changes = (distorted - image).abs().max() > 0.1
        assert changes == (name != "saturation" or channels == 3)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_distortions_are_composed_in_the_drawn_order(order: tuple[int, ...]) -> None:
    images, uniform = colors(), draws(order=(*order, 3))
    out = distort_colors(images, Augment(brightness=0.2, contrast=0.3, saturation=0.4), uniform)
    for image, distorted, row in zip(images, out, uniform, strict=True):
        expected = image / 255
        for kind in order:
            strength = (0.2, 0.3, 0.4)[kind]
            adjust = getattr(F, f"adjust_{DISTORTIONS[kind]}")
            expected = adjust(expected, 1 + strength * (2 * row[kind].item() - 1))
        assert (distorted - expected * 255).abs().max() < 0.05, "three times the difference of the weights"


def test_every_order_is_drawn() -> None:
    uniform = image_uniform(torch.arange(5000), 0, 0, COLOR, NUM_DRAWS)
    orders = {tuple(row) for row in uniform[:, 4:8].argsort(1).tolist()}
    assert orders == set(itertools.permutations(range(4)))


def test_hue_keeps_luma_and_gray() -> None:
    images, luma = colors(), torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(3, 1, 1)
    out = distort_colors(images, Augment(hue=0.1), draws())
    assert ((out - images) * luma).sum(1).abs().max() < 1e-9
    assert (out - images).abs().max() > 1
    gray = colors(channels=1)
    # The published matrix of YIQ has three decimals, so gray is kept to 0.001 of the value.
    assert (distort_colors(gray.expand(-1, 3, -1, -1), Augment(hue=0.5), draws()) - gray).abs().max() < 0.5
    assert torch.allclose(distort_colors(gray, Augment(hue=0.5), draws()), gray)


def test_lighting_adds_principal_components() -> None:
    count = 4000
    uniform = image_uniform(torch.arange(count), 0, 0, COLOR, NUM_DRAWS).double()
    images = torch.full((count, 3, 1, 1), 128.0, dtype=torch.float64)
    added = (distort_colors(images, Augment(lighting=0.1), uniform) - images).flatten(1) / 255
    components = torch.tensor(LIGHTING, dtype=torch.float64)
    expected = 0.01 * components @ components.T
    # Five standard errors of a variance of 4,000 normal numbers.
    assert (added.T.cov() - expected).abs().max() < 5 * math.sqrt(2 / count) * expected.max()
    assert added.mean(0).abs().max() < 5 * math.sqrt(expected.max() / count)


def test_values_are_clipped_and_a_gray_image_is_a_color_image_of_equal_channels() -> None:
    augment = Augment(brightness=1.0, contrast=1.0, saturation=1.0, lighting=2.0)
    gray, uniform = colors(40, 1), image_uniform(torch.arange(40), 0, 0, COLOR, NUM_DRAWS)
    color = distort_colors(gray.expand(-1, 3, -1, -1).contiguous(), augment, uniform)
    assert color.min() == 0 and color.max() == 255
    mild = Augment(brightness=0.2, contrast=0.2, saturation=1.0, lighting=0.1)
    color = distort_colors(gray.expand(-1, 3, -1, -1).contiguous(), mild, uniform)
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(3, 1, 1)
    torch.testing.assert_close(distort_colors(gray, mild, uniform), (color * luma).sum(1, keepdim=True))


def test_flips_and_rotations_are_equally_frequent() -> None:
    image = torch.arange(9).view(1, 1, 3, 3)
    images, uniform = image.expand(2000, 1, 3, 3), image_uniform(torch.arange(2000), 0, 1, 1)
    for out, variants in (
        (vertical_flip(images, uniform), [image, image.flip(-2)]),
        (rotate90(images, uniform), [image.rot90(turns, (-2, -1)) for turns in range(4)]),
    ):
        counts = [(out == variant).flatten(1).all(1).sum().item() for variant in variants]
        assert sum(counts) == 2000
        expected = 2000 / len(variants)
        assert max(abs(count - expected) for count in counts) < 5 * math.sqrt(expected), "five standard deviations"


def test_a_batch_has_every_augmentation_by_image() -> None:
    """Flips, rotations and colors of an image depend on its index and the epoch, not on its position in the batch."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8, generator=generator)
    data = Split(images, torch.arange(12), [str(index) for index in range(12)])
    augment = Augment(vertical_flip=True, rotate90=True, brightness=0.4, hue=0.1)
    preprocess, by_index = Preprocess(8, 3, (0.0,) * 3, (1.0,) * 3), []
    for batch_size in (4, 12):
        shown = torch.empty(12, 3, 8, 8)
        for step in range(12 // batch_size):
            spec = full_batch_spec(12, batch_size, step=step, size=8, seed=1)
            batch = training_batch(data, preprocess, augment, spec)
            shown[batch.labels] = batch.images
        by_index.append(shown)
    torch.testing.assert_close(*by_index)
    assert not torch.equal(by_index[0], images / 255)
