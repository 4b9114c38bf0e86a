"""Selective search on real garments: recall, determinism and the cache."""

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data
from torch import Tensor

from googlenet.data.dataset import LoadOptions
from googlenet.data.sources import load_dataset
from googlenet.detection.rcnn import selective_search as module
from googlenet.detection.rcnn.selective_search import SelectiveSearchConfig, cached_proposals, recall, selective_search

CONFIG = SelectiveSearchConfig()


@pytest.fixture(scope="module")
def scene() -> tuple[Tensor, Tensor]:
    """Four test garments at twice their size on a noisy gray background, and their boxes."""
    garments = load_dataset("fashion-mnist", LoadOptions(validation=0)).test.images[[0, 2, 3, 11], 0]
    image = torch.from_numpy(np.random.default_rng(0).normal(60, 6, (1, 160, 160))).float()
    boxes = []
    for garment, (top, left) in zip(garments, [(5, 8), (10, 95), (90, 20), (85, 90)], strict=True):
        large = garment.repeat_interleave(2, 0).repeat_interleave(2, 1)
        rows, columns = large.nonzero(as_tuple=True)
        image[0, top + rows, left + columns] = 120 + large[rows, columns] * 0.5
        boxes.append([left + columns.min(), top + rows.min(), left + columns.max() + 1, top + rows.max() + 1])
    return image.clamp(0, 255).byte(), torch.tensor(boxes).float()


def test_recall_of_garments(scene: tuple[Tensor, Tensor]) -> None:
    image, truth = scene
    boxes = selective_search(image, CONFIG)
    assert recall([boxes], [truth]) == 1.0
    assert recall([boxes], [truth], 0.8) >= 0.5
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= 160).all()
    assert len(torch.unique(boxes, dim=0)) == len(boxes)


def test_result_is_deterministic_and_does_not_depend_on_threads(scene: tuple[Tensor, Tensor], cache: Path) -> None:
    image, _ = scene
    expected = selective_search(image, CONFIG)
    assert torch.equal(selective_search(image, CONFIG), expected)
    parallel = cached_proposals([image, image.flip(-1), image], CONFIG, num_workers=3)
    assert torch.equal(parallel[0], expected) and torch.equal(parallel[2], expected)


def test_doubling_the_scale_halves_the_proposals() -> None:
    photograph = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[:, :256]
    single, doubled = (len(selective_search(photograph, SelectiveSearchConfig(scale))) for scale in (50, 100))
    assert 0.4 < doubled / single < 0.6


def test_cache_key_is_pixels_and_parameters(
    scene: tuple[Tensor, Tensor], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, _ = scene
    first = cached_proposals([image], CONFIG)
    (path,) = cache.rglob("*.npy")
    with monkeypatch.context() as patched:
        patched.setattr(module, "_search", lambda *_: pytest.fail("computed again"))
        assert torch.equal(cached_proposals([image], CONFIG)[0], first[0])
    cached_proposals([image], SelectiveSearchConfig(80))
    cached_proposals([255 - image], CONFIG)
    assert len(list(cache.rglob("*.npy"))) == 3
    path.write_bytes(path.read_bytes()[:50])  # a damaged file is replaced
    assert torch.equal(cached_proposals([image], CONFIG)[0], first[0])


def test_max_proposals_takes_a_fixed_sample(scene: tuple[Tensor, Tensor]) -> None:
    image, _ = scene
    limited = SelectiveSearchConfig(max_proposals=20)
    boxes, sample = selective_search(image, CONFIG), selective_search(image, limited)
    assert len(sample) == 20
    assert all((boxes == box).all(dim=1).any() for box in sample)
    assert torch.equal(sample, selective_search(image, limited))


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 300), (1, 8, 8), (3, 40, 4000), (1, 700, 900)])
def test_extreme_images(shape: tuple[int, int, int]) -> None:
    image = torch.zeros(shape, dtype=torch.uint8)
    image[..., shape[1] // 2 :, shape[2] // 2 :] = 200
    boxes = selective_search(image, CONFIG)
    assert len(boxes) >= 1
    assert boxes[:, 2].max() <= shape[2] and boxes[:, 3].max() <= shape[1]
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_boxes_of_a_reduced_image_are_in_its_original_pixels(scene: tuple[Tensor, Tensor]) -> None:
    image, truth = scene
    large = image.repeat_interleave(5, 1).repeat_interleave(5, 2)
    assert recall([selective_search(large, SelectiveSearchConfig(max_side=160))], [truth * 5]) == 1.0


def test_recall_counts_boxes_not_images() -> None:
    truth = [torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [40, 0, 50, 10]]), torch.zeros(0, 4)]
    proposals = [torch.tensor([[0.0, 0, 10, 6], [20, 20, 30, 24.9]]), torch.tensor([[0.0, 0, 5, 5]])]
    assert recall(proposals, truth) == pytest.approx(1 / 3)
    assert np.isnan(recall(proposals[1:], truth[1:]))


def test_error_without_opencv_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(ValueError, match=r"pip install 'googlenet\[detect\]'"):
        selective_search(torch.zeros(1, 20, 20, dtype=torch.uint8), CONFIG)
