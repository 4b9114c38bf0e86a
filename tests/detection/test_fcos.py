"""The one-stage head: which position answers for which object, its losses, and sane answers to odd pictures."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

import googlenet
from conftest import SEED
from googlenet.detection.batch import DetectionBatch, Target
from googlenet.detection.boxes import iou
from googlenet.detection.detector import Detector
from googlenet.detection.fcos import FCOSHead, assign, suppressed
from googlenet.detection.pyramid import Level, Pyramid, centres, fused_stages
from googlenet.training.recipe import Detection

pytestmark = pytest.mark.cpu

OPTIONS = {"reach": 4.0, "threshold": 0.05, "overlap": 0.5, "most": 100}


def target(boxes: list[list[float]], labels: list[int] | None = None, crowd: list[bool] | None = None) -> Target:
    return Target(
        torch.tensor(boxes).view(-1, 4),
        torch.tensor(labels or [0] * len(boxes), dtype=torch.int64),
        torch.tensor(crowd or [False] * len(boxes), dtype=torch.bool),
    )


def levels_of(height: int, width: int, channels: int = 32) -> list[Level]:
    return [Level(torch.zeros(1, channels, height // stride, width // stride), stride) for stride in (8, 16, 32)]


def places_of(height: int, width: int) -> tuple[Tensor, Tensor]:
    where = [centres(level, height, width) for level in levels_of(height, width)]
    strides = [torch.full((len(one),), float(stride)) for one, stride in zip(where, (8, 16, 32), strict=True)]
    return torch.cat(where), torch.cat(strides)


def test_centres_lie_over_the_picture() -> None:
    where = centres(Level(torch.zeros(1, 1, 2, 3), 8), 16, 24)
    assert where.tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]
    # Where a rim is missing (299 pixels, 35 columns of 8), the columns are in the middle.
    rim = centres(Level(torch.zeros(1, 1, 35, 35), 8), 299, 299)
    assert (rim[0, 0] + rim[-1, 0]).item() == 299


def test_assignment_by_hand() -> None:
    places, strides = places_of(128, 128)
    boxes = [[16.0, 16, 48, 48], [0, 0, 120, 120], [70, 70, 86, 86], [64.2, 64.2, 64.8, 64.8]]
    assigned = assign(places, strides, target(boxes), reach=4.0)
    for place, stride, one in zip(places.tolist(), strides.tolist(), assigned.objects.tolist(), strict=True):
        fitting = []
        for number, (left, top, right, bottom) in enumerate(boxes):
            sides = (place[0] - left, place[1] - top, right - place[0], bottom - place[1])
            near = max(abs(place[0] - (left + right) / 2), abs(place[1] - (top + bottom) / 2)) < 1.5 * stride
            low, high = (0 if stride == 8 else 2 * stride), (math.inf if stride == 32 else 4 * stride)
            if min(sides) > 0 and near and low <= max(sides) <= high:
                fitting.append(((right - left) * (bottom - top), number))
        assert one == (min(fitting)[1] if fitting else -1)
    assert {0, 1, 2} <= set(assigned.objects.tolist())
    assert assigned.asked.all()


def test_every_object_of_some_size_has_a_position() -> None:
    places, strides = places_of(160, 160)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        side = 12 + 130 * torch.rand(1, generator=generator).item()
        x, y = ((160 - side) * torch.rand(2, generator=generator)).tolist()
        assigned = assign(places, strides, target([[x, y, x + side, y + side]]), reach=4.0)
        assert (assigned.objects == 0).any(), f"a box of {side:.0f} pixels"


def test_crowds_are_not_asked_for() -> None:
    places, strides = places_of(64, 64)
    assigned = assign(places, strides, target([[0.0, 0, 64, 64], [8, 8, 40, 40]], crowd=[True, False]), 4.0)
    assert set(assigned.objects.tolist()) == {-1, 1}
    assert (assigned.asked == (assigned.objects == 1)).all()


def test_losses_of_pictures_with_nothing_on_them() -> None:
    torch.manual_seed(0)
    head = FCOSHead(32, 5, 3, depth=1, **OPTIONS)
    levels = levels_of(64, 64)
    nothing = head.losses(levels, DetectionBatch(torch.zeros(1, 1, 64, 64), ((64, 64),), (target([]),)))
    said = head(levels, 64, 64)
    by_hand = sigmoid_focal_loss(said.logits, torch.zeros_like(said.logits), 0.25, 2.0, reduction="sum")
    torch.testing.assert_close(nothing.total, by_hand)
    assert nothing.hits == 1
    nothing.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


def test_perfect_answers_have_little_loss() -> None:
    """Logits made from the truth: no loss but that of the centreness, which is never certain."""
    head = FCOSHead(32, 2, 3, depth=0, **OPTIONS)
    levels = levels_of(64, 64)
    truth = target([[8.0, 8, 40, 40], [30, 20, 60, 62]], [0, 1])
    batch = DetectionBatch(torch.zeros(1, 1, 64, 64), ((64, 64),), (truth,))
    said = head(levels, 64, 64)
    objects = assign(said.places, said.strides, truth, 4.0).objects
    has = objects >= 0
    boxes, logits = said.boxes.clone(), torch.full_like(said.logits, -12.0)
    boxes[0, has] = truth.boxes[objects[has]]
    logits[0, has.nonzero().flatten(), truth.labels[objects[has]]] = 12.0
    head.forward = lambda *_: said._replace(boxes=boxes, logits=logits, centreness=said.centreness)  # type: ignore
    perfect = head.losses(levels, batch)
    centre = torch.nn.functional.binary_cross_entropy_with_logits
    assert perfect.hits == 1
    assert perfect.total < centre(said.centreness[0, has], torch.full((int(has.sum()),), 0.5)) + 0.1
    wrong = logits.flip(2)
    head.forward = lambda *_: said._replace(boxes=boxes, logits=wrong)  # type: ignore
    assert head.losses(levels, batch).total > 5 * perfect.total
    assert head.losses(levels, batch).hits == 0


def test_suppression_keeps_the_best_of_each_class() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60], [5, 5, 5, 9]])
    scores = torch.tensor([[0.9, 0.0], [0.8, 0.7], [0.04, 0.6], [0.99, 0.0]])
    found = suppressed(boxes, scores, threshold=0.05, overlap=0.5, most=10)
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0.6])
    assert found.labels.tolist() == [0, 1, 1]
    assert len(suppressed(boxes, scores, 0.05, 0.5, most=1).boxes) == 1
    assert len(suppressed(boxes, scores * 0, 0.05, 0.5, most=1).boxes) == 0


@pytest.mark.parametrize(("name", "size"), [("googlenet", 96), ("bn_inception", 65), ("inception_v3", 139)])
def test_pyramid_fits_every_member(name: str, size: int) -> None:
    with torch.device("meta"):
        network = googlenet.create(name, 3, 1)
        stages = fused_stages(network)
        assert [stage.stride for stage in stages] == [8, 16, 32]
        maps = network.features(torch.zeros(2, 1, size, size + 7))
        levels = Pyramid(stages, 16)(maps)
    for level, stage in zip(levels, stages, strict=True):
        assert level.features.shape == (2, 16, *maps[stage.name].shape[-2:])


def test_coarse_maps_reach_fine_levels() -> None:
    stages = fused_stages(googlenet.create("googlenet_bn", 3, 1, pools="padded"))
    pyramid = Pyramid(stages, 8)
    sides = {stage.name: 64 // stage.stride for stage in stages}
    maps = {s.name: torch.rand(1, s.channels, sides[s.name], sides[s.name], requires_grad=True) for s in stages}
    pyramid(maps)[0].features.sum().backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in maps.values())


def detector(**options: object) -> Detector:
    torch.manual_seed(0)
    backbone = googlenet.create("googlenet_bn", 3, 1, pools="padded", width=0.25)
    return Detector(backbone, 3, Detection(channels=16, depth=1, **options))  # type: ignore[arg-type]


ODD: dict[str, list[tuple[tuple[int, int], list[list[float]]]]] = {
    "empty pictures": [((64, 64), []), ((64, 64), [])],
    "200 objects": [((160, 160), [[float(n % 20) * 8, float(n // 20) * 16, n % 20 * 8 + 7, n // 20 * 16 + 15]
                                  for n in range(200)]), ((64, 64), [])],
    "boxes of one pixel": [((64, 64), [[10.0, 10, 11, 11], [63, 63, 64, 64]]), ((64, 64), [[5.0, 5, 5.5, 5.5]])],
    "40x4000": [((2, 160), [[10.0, 0, 40, 2]]), ((160, 2), [])],
    "mixed sizes": [((33, 97), [[2.0, 3, 30, 30]]), ((128, 64), [[2.0, 3, 60, 120]]), ((1, 1), [[0.0, 0, 1, 1]])],
    "one class of three": [((64, 64), [[8.0, 8, 40, 40]]), ((64, 64), [[20.0, 8, 60, 40]])],
}  # fmt: skip


@pytest.mark.parametrize("head", ["fcos", "faster_rcnn"])
@pytest.mark.parametrize("case", ODD)
def test_odd_pictures_give_sane_losses_and_boxes(case: str, head: str) -> None:
    model = detector(head=head)
    pictures = ODD[case]
    images = torch.randn(len(pictures), 1, 160, 160)
    batch = DetectionBatch(images, tuple(size for size, _ in pictures), tuple(target(b) for _, b in pictures))
    loss, hits = model.losses(batch)
    assert loss.isfinite() and 0 <= loss < 100
    assert 0 <= hits <= len(pictures)
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    with torch.inference_mode():
        for found, (height, width) in zip(model.detect(batch), batch.sizes, strict=True):
            assert found.boxes.isfinite().all() and len(found.boxes) <= 100
            assert (found.boxes >= 0).all() and (found.boxes[:, [0, 2]] <= width).all()
            assert (found.boxes[:, [1, 3]] <= height).all()


def test_the_deepest_map_alone() -> None:
    levels, _ = detector(maps="deepest").levels(torch.zeros(2, 1, 64, 64))
    assert [(level.stride, level.features.shape) for level in levels] == [(32, (2, 16, 2, 2))]


@pytest.mark.accuracy
@pytest.mark.parametrize("head", ["fcos", pytest.param("faster_rcnn", marks=pytest.mark.slow)])
def test_learns_a_picture_by_heart(head: str) -> None:
    model = detector(head=head)
    torch.manual_seed(1 + SEED)
    image = torch.randn(2, 1, 64, 64) * 0.3
    image[0, :, 16:48, 10:60] += 2
    image[1, :, 4:60, 10:40] -= 2
    truth = (target([[10.0, 16, 60, 48]], [1]), target([[10.0, 4, 40, 60]], [2]))
    batch = DetectionBatch(image, ((64, 64),) * 2, truth)
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(80):
        optimiser.zero_grad()
        model.losses(batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
    for module in model.modules():  # the statistics of 80 changing steps are not those of the last weights
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train().losses(batch)
        found = model.eval().detect(batch)
    for mine, wanted in zip(found, truth, strict=True):
        assert mine.labels[0] == wanted.labels[0]
        print(f"overlap {iou(mine.boxes[:1], wanted.boxes).item():.3f}")
        # Over five seeds, as is and limited to AVX2 (make test-margins): 0.68 to 0.99.
        assert iou(mine.boxes[:1], wanted.boxes).item() > 0.5


def test_auxiliary_heads_learn_what_is_there() -> None:
    backbone = googlenet.create("googlenet_bn", 3, 1, aux=True, pools="padded", width=0.25)
    model = Detector(backbone, 3, Detection(channels=16, depth=1)).eval()
    truth = (target([[8.0, 8, 40, 40]], [1]), target([], []))
    batch = DetectionBatch(torch.randn(2, 1, 64, 64), ((64, 64),) * 2, truth)
    _, aux = model.levels(batch.images)
    wanted = torch.tensor([[0.0, 1, 0], [0, 0, 0]])
    sides = sum(torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted) for logits in aux)
    assert len(aux) == 2
    torch.testing.assert_close(model.losses(batch, 0.3).loss, model.losses(batch).loss + 0.3 * sides)
