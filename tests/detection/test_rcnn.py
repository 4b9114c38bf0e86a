"""R-CNN: the regions and the loss of a training step, and detection."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

import googlenet
from conftest import SEED
from googlenet.config.schema import DetectionConfig, LossConfig, RegionsConfig
from googlenet.data.dataset import LoadOptions
from googlenet.data.preprocess import Preprocess
from googlenet.data.sources import load_dataset
from googlenet.detection.data.dataset import Detections, Sample
from googlenet.detection.data.scenes import Scenes, draw_scene
from googlenet.detection.heads import fcos
from googlenet.detection.rcnn.multibox import MultiBox
from googlenet.detection.rcnn.network import RCNN, FoldedRCNN, RCNNDetector
from googlenet.detection.rcnn.selective_search import SelectiveSearchConfig, selective_search
from googlenet.detection.rcnn.task import RegionBatch, RegionBatchConfig, region_batch, region_loss

pytestmark = pytest.mark.cpu

PREPROCESS = Preprocess(28, 1, (0.5,), (0.2,))
REGIONS = RegionsConfig(ss_scale=100, regions_per_image=8)
CONFIG = DetectionConfig(head="rcnn", nms_iou=0.3, score_threshold=0.0)


@pytest.fixture(scope="module")
def scenes() -> list[Sample]:
    garments = load_dataset("fashion-mnist", LoadOptions(validation=0)).test
    return [draw_scene(Scenes(), garments, 1, index) for index in range(4)]


@pytest.fixture(scope="module")
def proposals(scenes: list[Sample]) -> list[Tensor]:
    return [selective_search(scene.read(1), SelectiveSearchConfig(scale=100)) for scene in scenes]


def make_rcnn(seed: int = 0, multibox: bool = True) -> RCNN:
    backbone = googlenet.create_model("googlenet_bn", 11, 1, width_mult=0.125, pool_mode="same", dropout=0.0, seed=seed)
    trunk = googlenet.create_model("googlenet_bn", 1, 1, width_mult=0.125, pool_mode="same", seed=seed)
    return RCNN(backbone, MultiBox(trunk) if multibox else None, REGIONS, CONFIG)


def make_batch(
    scenes: Sequence[Sample], proposals: Sequence[Tensor], seed: int = 0, flip: bool = False, padding: float = 2
) -> RegionBatch:
    config = RegionBatchConfig(10, PREPROCESS, replace(REGIONS, context_padding=padding), 28, flip)
    return region_batch(scenes, proposals, config, torch.Generator().manual_seed(seed))


def test_batch_is_a_function_of_the_generator(scenes: list[Sample], proposals: list[Tensor]) -> None:
    batch, repeated, other = (make_batch(scenes, proposals, seed) for seed in (0, 0, 1))
    assert torch.equal(batch.regions, repeated.regions) and torch.equal(batch.labels, repeated.labels)
    assert not torch.equal(batch.boxes, other.boxes)
    assert batch.regions.shape == (32, 1, 28, 28)
    assert (batch.labels < 10).sum() == 8
    assert batch.full_images.shape == (4, 1, 160, 160)
    objects = torch.cat([scene.boxes for scene in scenes])
    assert all((objects == box).all(dim=1).any() for box in batch.gt_boxes[batch.labels < 10])


def test_flipped_regions_have_flipped_objects(scenes: list[Sample], proposals: list[Tensor]) -> None:
    original, batch = (make_batch(scenes, proposals, flip=flip, padding=0) for flip in (False, True))
    flipped = (original.gt_boxes != batch.gt_boxes).any(dim=1)
    assert 2 < flipped.sum() < len(flipped)
    assert torch.allclose(original.regions[flipped].flip(-1), batch.regions[flipped])
    # The distances of the object to the left and the right edge of the region are exchanged.
    left = original.gt_boxes[flipped, 0] - original.boxes[flipped, 0]
    right = original.boxes[flipped, 2] - original.gt_boxes[flipped, 2]
    assert torch.allclose(batch.gt_boxes[flipped, 0] - batch.boxes[flipped, 0], right, atol=1e-4)
    assert torch.allclose(batch.boxes[flipped, 2] - batch.gt_boxes[flipped, 2], left, atol=1e-4)


def test_images_without_objects_and_with_crowds(scenes: list[Sample], proposals: list[Tensor]) -> None:
    def with_boxes(boxes: list[list[float]], crowd: bool) -> Sample:
        count = len(boxes)
        return scenes[0]._replace(
            boxes=torch.tensor(boxes).view(-1, 4),
            labels=torch.zeros(count, dtype=torch.int64),
            crowd=torch.full((count,), crowd),
        )

    empty, tiny = with_boxes([], False), with_boxes([[3.0, 3, 4, 4]], False)
    crowded = with_boxes([[0.0, 0, scenes[0].width, scenes[0].height]], True)
    batch = make_batch([empty, empty], proposals[:1] * 2)
    assert (batch.labels == 10).all() and len(batch.labels) == 16
    for samples in ([empty, empty], [crowded, empty], [tiny, empty], [crowded, crowded]):
        assert region_loss(make_rcnn(), make_batch(samples, proposals[:1] * 2), LossConfig()).total.isfinite()
    assert len(make_batch([], []).labels) == 0


def test_box_regression_does_not_change_the_classifier(scenes: list[Sample], proposals: list[Tensor]) -> None:
    model = make_rcnn()
    region_loss(model, make_batch(scenes, proposals), LossConfig()).boxes.backward()
    assert model.bbox_pred.weight.grad is not None and model.bbox_pred.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.backbone.parameters())


@pytest.mark.accuracy
def test_classes_and_boxes_are_learned(scenes: list[Sample], proposals: list[Tensor]) -> None:
    torch.manual_seed(SEED)
    model, batch = make_rcnn(multibox=False), make_batch(scenes, proposals)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    first = region_loss(model, batch, LossConfig())
    for _ in range(30):
        optimizer.zero_grad()
        last = region_loss(model, batch, LossConfig())
        last.total.backward()
        optimizer.step()
    classes, boxes = last.classes / first.classes, last.boxes / first.boxes
    print(f"loss of classes {classes:.3f}, of boxes {boxes:.3f}, accuracy {last.accuracy:.3f}")
    # Over five seeds on four kinds of CPU (make test-margins): 0.003, 0.02 and 1.0.
    assert classes < 0.2 and last.accuracy > 0.95
    assert boxes < 0.7


@pytest.fixture(scope="module")
def detector() -> RCNNDetector:
    return RCNNDetector.from_networks([make_rcnn()], PREPROCESS)


def test_detections_do_not_depend_on_other_images(detector: RCNNDetector, scenes: list[Sample], cache: Path) -> None:
    images = [scene.read(1) for scene in scenes[:3]]
    batched = detector.predict(images)
    (single,) = detector.predict(images[1:2])
    assert torch.allclose(single.boxes, batched[1].boxes, atol=1e-3)
    assert torch.allclose(single.scores, batched[1].scores, atol=1e-5)
    assert torch.equal(single.labels, batched[1].labels)
    for detections, image in zip(batched, images, strict=True):
        assert len(detections.boxes) == 100 and (detections.scores.diff() <= 0).all()
        assert detections.boxes[:, 2].max() <= image.shape[2] and detections.boxes[:, 3].max() <= image.shape[1]
    assert detector.predict([]) == []


def test_folded_network_has_the_same_output(scenes: list[Sample], proposals: list[Tensor]) -> None:
    model, regions = make_rcnn().eval(), make_batch(scenes, proposals).regions
    torch.nn.init.normal_(model.bbox_pred.weight)
    with torch.inference_mode():
        expected, output = model(regions), FoldedRCNN(model.train())(regions)
    assert torch.allclose(expected.logits, output.logits, atol=1e-4)
    assert torch.allclose(expected.deltas, output.deltas, atol=1e-3)
    assert model.training and model.backbone.training


def test_networks_are_averaged_before_the_suppression(
    detector: RCNNDetector, scenes: list[Sample], proposals: list[Tensor]
) -> None:
    images, first, second = [scenes[0].read(1)], detector.networks[0], make_rcnn(seed=1)

    def classify(config: DetectionConfig, *networks: RCNN) -> tuple[Tensor, Tensor]:
        ensemble = replace(detector, networks=networks, config=config)
        detections = ensemble.classify(images, proposals[:1])[0]
        return detections.boxes, detections.scores

    boxes, scores = classify(CONFIG, first)
    same_boxes, same_scores = classify(CONFIG, first, first, first)
    assert torch.allclose(scores, same_scores, atol=1e-6) and torch.equal(boxes, same_boxes)
    unsuppressed = replace(CONFIG, nms_iou=1.0, max_detections=10**6)
    mean = sum(classify(unsuppressed, network)[1].sum().item() for network in (first, second)) / 2
    assert classify(unsuppressed, first, second)[1].sum().item() == pytest.approx(mean, rel=1e-4)


def test_box_voting_changes_the_boxes_only(
    detector: RCNNDetector, scenes: list[Sample], proposals: list[Tensor]
) -> None:
    images = [scenes[0].read(1)]
    voting = replace(detector, regions=replace(detector.regions, box_voting_iou=0.5))
    detections, averaged = (model.classify(images, proposals[:1])[0] for model in (detector, voting))
    assert torch.equal(detections.scores, averaged.scores) and torch.equal(detections.labels, averaged.labels)
    assert not torch.equal(detections.boxes, averaged.boxes)
    iou = box_iou(detections.boxes, averaged.boxes).diagonal()
    assert (iou > 0.3).all(), "each is a mean of boxes with an IoU of at least 0.5"


def test_proposals_of_each_method(detector: RCNNDetector, scenes: list[Sample], cache: Path) -> None:
    images = [scene.read(1) for scene in scenes[:2]]

    def with_methods(selective_search: bool, multibox: bool) -> RCNNDetector:
        regions = replace(
            detector.regions, selective_search=selective_search, multibox_width_mult=0.125 if multibox else 0
        )
        return replace(detector, regions=regions)

    both, searched, learned = (
        with_methods(*methods).proposals(images) for methods in ((True, True), (True, False), (False, True))
    )
    assert [len(boxes) for boxes in both] == [len(a) + len(b) for a, b in zip(searched, learned, strict=True)]
    assert all(len(boxes) == 200 for boxes in learned)
    with pytest.raises(ValueError, match="needs proposals"):
        with_methods(False, False)


def test_extreme_images(detector: RCNNDetector, cache: Path) -> None:
    images = [torch.zeros(1, *shape, dtype=torch.uint8) for shape in ((1, 1), (40, 400), (9, 200))]
    for detections in detector.predict(images):
        assert len(detections.boxes) > 0 and detections.boxes.isfinite().all()


@pytest.mark.parametrize("threshold", [0.25, 0.5, 0.0])
def test_a_score_equal_to_the_threshold_is_omitted(threshold: float) -> None:
    """As in `Detections.above`, in the one-stage head and in torchvision."""
    config = replace(CONFIG, score_threshold=threshold)
    detector = RCNNDetector([make_rcnn()], PREPROCESS, replace(REGIONS, box_regression=False), config)
    image, boxes = torch.zeros(1, 40, 60, dtype=torch.uint8), torch.tensor([[0.0, 0, 20, 20], [30, 0, 50, 20]])
    above = torch.nextafter(torch.tensor(threshold), torch.tensor(1.0)).item()
    scores = torch.zeros(2, 10)
    scores[0, 3], scores[1, 4] = threshold, above
    found = detector._select(image, boxes, scores, None)
    assert (found.labels.tolist(), found.scores.tolist()) == ([4], [above])
    one_stage = fcos.postprocess(boxes, scores, config)
    assert one_stage.labels.tolist() == [4]
    assert Detections(boxes, scores.amax(dim=1), torch.tensor([3, 4])).above(threshold).labels.tolist() == [4]
