"""R-CNN: a step's regions and loss, and the way from pictures to objects."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import googlenet
from conftest import SEED
from googlenet.data.fashion_mnist import load_fashion_mnist
from googlenet.data.preprocess import Preprocess
from googlenet.detection.boxes import iou
from googlenet.detection.dataset import Picture
from googlenet.detection.multibox import MultiBox
from googlenet.detection.proposals import Search, selective_search
from googlenet.detection.rcnn import RegionClassifier, RegionDetector, RegionNetwork
from googlenet.detection.region_loss import RegionBatch, region_batch, region_loss
from googlenet.detection.scenes import Scenes, draw_scene
from googlenet.training.recipe import Detection, Loss, Regions

pytestmark = pytest.mark.cpu

PREPROCESS = Preprocess(28, 1, (0.5,), (0.2,))
SEARCH = Search(superpixel=100)
OPTIONS = Regions(superpixel=100, per_picture=8)
LIMITS = Detection(head="rcnn", overlap=0.3, threshold=0.0)


@pytest.fixture(scope="module")
def scenes() -> list[Picture]:
    garments = load_fashion_mnist(None, 0).test
    return [draw_scene(Scenes(), garments, 1, number) for number in range(4)]


@pytest.fixture(scope="module")
def proposals(scenes: list[Picture]) -> list[Tensor]:
    return [selective_search(scene.read(1), SEARCH) for scene in scenes]


def network(seed: int = 0, multibox: bool = True) -> RegionNetwork:
    small = googlenet.create("googlenet_bn", 11, 1, width=0.125, pools="padded", dropout=0.0, seed=seed)
    trunk = googlenet.create("googlenet_bn", 1, 1, width=0.125, pools="padded", seed=seed)
    return RegionNetwork(small, MultiBox(trunk) if multibox else None, OPTIONS, LIMITS)


def batch_of(
    scenes: Sequence[Picture], proposals: Sequence[Tensor], seed: int = 0, flip: bool = False, context: float = 2
) -> RegionBatch:
    options, dice = replace(OPTIONS, context=context), torch.Generator().manual_seed(seed)
    return region_batch(scenes, proposals, 10, PREPROCESS, options, 28, flip=flip, generator=dice)


def test_a_step_is_a_function_of_its_dice(scenes: list[Picture], proposals: list[Tensor]) -> None:
    batch, again, other = (batch_of(scenes, proposals, seed) for seed in (0, 0, 1))
    assert torch.equal(batch.regions, again.regions) and torch.equal(batch.labels, again.labels)
    assert not torch.equal(batch.boxes, other.boxes)
    assert batch.regions.shape == (32, 1, 28, 28)
    assert (batch.labels < 10).sum() == 8
    assert batch.wholes.shape == (4, 1, 160, 160)
    truths = torch.cat([scene.boxes for scene in scenes])
    assert all((truths == box).all(dim=1).any() for box in batch.truth[batch.labels < 10])


def test_mirrored_regions_have_mirrored_truth(scenes: list[Picture], proposals: list[Tensor]) -> None:
    plain, mirrored = (batch_of(scenes, proposals, flip=flip, context=0) for flip in (False, True))
    turned = (plain.truth != mirrored.truth).any(dim=1)
    assert 2 < turned.sum() < len(turned)
    assert torch.allclose(plain.regions[turned].flip(-1), mirrored.regions[turned])
    # The free space between box and truth is on the other side.
    left, right = plain.truth[turned, 0] - plain.boxes[turned, 0], plain.boxes[turned, 2] - plain.truth[turned, 2]
    assert torch.allclose(mirrored.truth[turned, 0] - mirrored.boxes[turned, 0], right, atol=1e-4)
    assert torch.allclose(mirrored.boxes[turned, 2] - mirrored.truth[turned, 2], left, atol=1e-4)


def test_a_step_of_empty_and_crowded_pictures(scenes: list[Picture], proposals: list[Tensor]) -> None:
    def with_boxes(boxes: list[list[float]], crowd: bool) -> Picture:
        count = len(boxes)
        return scenes[0]._replace(
            boxes=torch.tensor(boxes).view(-1, 4),
            labels=torch.zeros(count, dtype=torch.int64),
            crowd=torch.full((count,), crowd),
        )

    nothing, speck = with_boxes([], False), with_boxes([[3.0, 3, 4, 4]], False)
    crowded = with_boxes([[0.0, 0, scenes[0].width, scenes[0].height]], True)
    batch = batch_of([nothing, nothing], proposals[:1] * 2)
    assert (batch.labels == 10).all() and len(batch.labels) == 16
    for pictures in ([nothing, nothing], [crowded, nothing], [speck, nothing], [crowded, crowded]):
        assert region_loss(network(), batch_of(pictures, proposals[:1] * 2), Loss()).total.isfinite()
    assert len(batch_of([], []).labels) == 0


def test_the_boxes_do_not_change_the_classifier(scenes: list[Picture], proposals: list[Tensor]) -> None:
    model = network()
    region_loss(model, batch_of(scenes, proposals), Loss()).boxes.backward()
    assert model.regressor.weight.grad is not None and model.regressor.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.backbone.parameters())


@pytest.mark.accuracy
def test_every_part_learns(scenes: list[Picture], proposals: list[Tensor]) -> None:
    torch.manual_seed(SEED)
    model, batch = network(multibox=False), batch_of(scenes, proposals)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    first = region_loss(model, batch, Loss())
    for _ in range(30):
        optimiser.zero_grad()
        last = region_loss(model, batch, Loss())
        last.total.backward()
        optimiser.step()
    print(f"classes {last.classes / first.classes:.3f}, boxes {last.boxes / first.boxes:.3f}, right {last.right:.3f}")
    # Over five seeds on four kinds of CPU (make test-margins) 0.003, 1.0 and, of the boxes, 0.02.
    assert last.classes < 0.2 * first.classes and last.right > 0.95
    assert last.boxes < 0.7 * first.boxes


@pytest.fixture(scope="module")
def detector() -> RegionDetector:
    return RegionDetector.of([network()], PREPROCESS)


def test_pictures_answer_alone_as_together(detector: RegionDetector, scenes: list[Picture], cache: Path) -> None:
    pictures = [scene.read(1) for scene in scenes[:3]]
    together = detector(pictures)
    (alone,) = detector(pictures[1:2])
    assert torch.allclose(alone.boxes, together[1].boxes, atol=1e-3)
    assert torch.allclose(alone.scores, together[1].scores, atol=1e-5)
    assert torch.equal(alone.labels, together[1].labels)
    for found, picture in zip(together, pictures, strict=True):
        assert len(found.boxes) == 100 and (found.scores.diff() <= 0).all()
        assert found.boxes[:, 2].max() <= picture.shape[2] and found.boxes[:, 3].max() <= picture.shape[1]
    assert detector([]) == []


def test_the_classifier_in_use_answers_as_the_network_does(scenes: list[Picture], proposals: list[Tensor]) -> None:
    model, regions = network().eval(), batch_of(scenes, proposals).regions
    torch.nn.init.normal_(model.regressor.weight)
    with torch.inference_mode():
        slow, quick = model(regions), RegionClassifier(model.train())(regions)
    assert torch.allclose(slow.logits, quick.logits, atol=1e-4)
    assert torch.allclose(slow.changes, quick.changes, atol=1e-3)
    assert model.training and model.backbone.training


def test_networks_are_averaged_before_the_suppression(
    detector: RegionDetector, scenes: list[Picture], proposals: list[Tensor]
) -> None:
    pictures, other = [scenes[0].read(1)], network(seed=1)
    one = detector.classify(pictures, proposals[:1])[0]
    same = detector.with_networks([detector.networks[0]] * 3).classify(pictures, proposals[:1])[0]
    assert torch.allclose(one.scores, same.scores, atol=1e-6) and torch.equal(one.boxes, same.boxes)
    pair = replace(detector, networks=[detector.networks[0], other], overlap=1.0, most=10**6)
    both = pair.classify(pictures, proposals[:1])[0]
    each = [pair.with_networks([n]).classify(pictures, proposals[:1])[0] for n in pair.networks]
    mean = torch.cat([found.scores for found in each]).sum() / 2
    assert both.scores.sum().item() == pytest.approx(mean.item(), rel=1e-4)


def test_votes_move_boxes_and_leave_the_rest(
    detector: RegionDetector, scenes: list[Picture], proposals: list[Tensor]
) -> None:
    pictures = [scenes[0].read(1)]
    plain = detector.classify(pictures, proposals[:1])[0]
    moved = replace(detector, vote=0.5).classify(pictures, proposals[:1])[0]
    assert torch.equal(plain.scores, moved.scores) and torch.equal(plain.labels, moved.labels)
    assert not torch.equal(plain.boxes, moved.boxes)
    overlap = iou(plain.boxes, moved.boxes).diagonal()
    assert (overlap > 0.3).all(), "a mean of boxes that overlap it by half"


def test_proposals_of_either_source(detector: RegionDetector, scenes: list[Picture], cache: Path) -> None:
    pictures = [scene.read(1) for scene in scenes[:2]]
    both, searched, learned = (
        replace(detector, search=search, multibox=multibox).proposals(pictures)
        for search, multibox in ((SEARCH, True), (SEARCH, False), (None, True))
    )
    assert [len(boxes) for boxes in both] == [len(a) + len(b) for a, b in zip(searched, learned, strict=True)]
    assert all(len(boxes) == 200 for boxes in learned)
    with pytest.raises(ValueError, match="needs proposals"):
        replace(detector, search=None, multibox=False)


def test_odd_pictures(detector: RegionDetector, cache: Path) -> None:
    pictures = [torch.zeros(1, *shape, dtype=torch.uint8) for shape in ((1, 1), (40, 400), (9, 200))]
    found = detector(pictures)
    assert [len(one.boxes) > 0 for one in found] == [True] * 3
    assert all(one.boxes.isfinite().all() for one in found)
