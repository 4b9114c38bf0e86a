"""Selective search on real garments: what it covers, and that it answers the same again."""

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data
from torch import Tensor

from googlenet.data.fashion_mnist import load_fashion_mnist
from googlenet.detection import proposals
from googlenet.detection.proposals import Search, coverage, propose, selective_search


@pytest.fixture(scope="module")
def scene() -> tuple[Tensor, Tensor]:
    """Four test garments, enlarged twice, on a grey ground with some noise; and their boxes."""
    garments = load_fashion_mnist(None, 0).test.images[[0, 2, 3, 11], 0]
    picture = torch.from_numpy(np.random.default_rng(0).normal(60, 6, (1, 160, 160))).float()
    boxes = []
    for garment, (top, left) in zip(garments, [(5, 8), (10, 95), (90, 20), (85, 90)], strict=True):
        large = garment.repeat_interleave(2, 0).repeat_interleave(2, 1)
        rows, columns = large.nonzero(as_tuple=True)
        picture[0, top + rows, left + columns] = 120 + large[rows, columns] * 0.5
        boxes.append([left + columns.min(), top + rows.min(), left + columns.max() + 1, top + rows.max() + 1])
    return picture.clamp(0, 255).byte(), torch.tensor(boxes).float()


def test_covers_the_garments(scene: tuple[Tensor, Tensor]) -> None:
    picture, truth = scene
    found = selective_search(picture, Search())
    assert coverage([found], [truth]) == 1.0
    assert coverage([found], [truth], 0.8) >= 0.5
    assert (found[:, :2] >= 0).all() and (found[:, 2:] <= 160).all()
    assert len(torch.unique(found, dim=0)) == len(found)


def test_same_again_and_in_any_number_of_threads(scene: tuple[Tensor, Tensor], cache: Path) -> None:
    picture, _ = scene
    once = selective_search(picture, Search())
    assert torch.equal(selective_search(picture, Search()), once)
    many = propose([picture, picture.flip(-1), picture], Search(), workers=3)
    assert torch.equal(many[0], once) and torch.equal(many[2], once)


def test_doubling_the_superpixels_halves_the_proposals() -> None:
    photograph = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[:, :256]
    single, doubled = (len(selective_search(photograph, search)) for search in (Search(), Search().doubled()))
    assert 0.4 < doubled / single < 0.6


def test_remembers_by_pixels_and_parameters(
    scene: tuple[Tensor, Tensor], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, _ = scene
    first = propose([picture], Search())
    (record,) = cache.rglob("*.npy")
    with monkeypatch.context() as patched:
        patched.setattr(proposals, "_search", lambda *_: pytest.fail("computed again"))
        assert torch.equal(propose([picture], Search())[0], first[0])
    propose([picture], Search(80))
    propose([255 - picture], Search())
    assert len(list(cache.rglob("*.npy"))) == 3
    record.write_bytes(record.read_bytes()[:50])
    assert torch.equal(propose([picture], Search())[0], first[0])


def test_most_takes_a_fixed_sample(scene: tuple[Tensor, Tensor]) -> None:
    picture, _ = scene
    every, some = selective_search(picture, Search()), selective_search(picture, Search(most=20))
    assert len(some) == 20
    assert all((every == box).all(dim=1).any() for box in some)
    assert torch.equal(some, selective_search(picture, Search(most=20)))


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 300), (1, 8, 8), (3, 40, 4000), (1, 700, 900)])
def test_odd_pictures(shape: tuple[int, int, int]) -> None:
    picture = torch.zeros(shape, dtype=torch.uint8)
    picture[..., shape[1] // 2 :, shape[2] // 2 :] = 200
    found = selective_search(picture, Search())
    assert len(found) >= 1
    assert found[:, 2].max() <= shape[2] and found[:, 3].max() <= shape[1]
    assert (found[:, 2:] > found[:, :2]).all()


def test_searched_smaller_the_boxes_are_of_the_picture(scene: tuple[Tensor, Tensor]) -> None:
    picture, truth = scene
    large = picture.repeat_interleave(5, 1).repeat_interleave(5, 2)
    assert coverage([selective_search(large, Search(longest=160))], [truth * 5]) == 1.0


def test_coverage_counts_boxes_not_pictures() -> None:
    truth = [torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [40, 0, 50, 10]]), torch.zeros(0, 4)]
    found = [torch.tensor([[0.0, 0, 10, 6], [20, 20, 30, 24.9]]), torch.tensor([[0.0, 0, 5, 5]])]
    assert coverage(found, truth) == pytest.approx(1 / 3)
    assert np.isnan(coverage(found[1:], truth[1:]))


def test_without_opencv_the_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(ValueError, match=r"pip install 'googlenet\[detect\]'"):
        selective_search(torch.zeros(1, 20, 20, dtype=torch.uint8), Search())
