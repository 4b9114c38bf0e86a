"""The losses against PyTorch, torchvision and timm."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.loss import AsymmetricLossMultiLabel
from torchvision.ops import sigmoid_focal_loss

from googlenet.config.schema import LossConfig
from googlenet.data.augment import Augment
from googlenet.data.loader import full_batch_spec, training_batch, weighted_order
from googlenet.data.preprocess import Preprocess
from googlenet.data.sources import LoadOptions, load_dataset
from googlenet.training.losses import (
    asymmetric_loss,
    balanced_positive_weights,
    balanced_sampling_weights,
    focal_loss,
    multilabel_loss,
    single_label_loss,
    smooth_labels,
)

# Sums of some tens of terms in float64.
TOLERANCE = 1e-12


def example() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logits = (3 * torch.randn(16, 5, dtype=torch.float64)).requires_grad_()
    return logits, torch.randint(5, (16,)), torch.rand(16, 5) < 0.4


def gradient(loss: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, logits)[0]


def test_focal_loss() -> None:
    logits, labels, _ = example()
    targets = smooth_labels(labels, 5, 0.0).double()
    expected = F.cross_entropy(logits, labels)
    assert focal_loss(logits, targets, 0.0).item() == pytest.approx(expected.item(), abs=TOLERANCE)
    for gamma in (0.5, 2.0):
        # The definition, by a loop over the images.
        rows = [
            -((1 - row.softmax(0)[label]) ** gamma) * row.log_softmax(0)[label]
            for row, label in zip(logits, labels.tolist(), strict=True)
        ]
        loss = single_label_loss(logits, labels, LossConfig("focal", gamma=gamma), None)
        # The targets of the recipe's losses are float32.
        assert loss.item() == pytest.approx(torch.stack(rows).mean().item(), rel=1e-6)
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0])
    weighted = focal_loss(logits, targets, 0.0, weights)
    plain = F.cross_entropy(logits, labels, weights.double(), reduction="none").mean()
    assert weighted.item() == pytest.approx(plain.item(), abs=TOLERANCE)


def test_focal_loss_with_smooth_labels_is_cross_entropy_without_exponent() -> None:
    logits, labels, _ = example()
    expected = F.cross_entropy(logits, labels, label_smoothing=0.1)
    loss = single_label_loss(logits, labels, LossConfig("focal", label_smoothing=0.1, gamma=0.0), None)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_asymmetric_loss_is_timms() -> None:
    logits, _, targets = example()
    for positive, negative, margin in ((1.0, 4.0, 0.05), (0.0, 2.0, 0.2), (0.0, 0.0, 0.0)):
        reference = AsymmetricLossMultiLabel(gamma_neg=negative, gamma_pos=positive, clip=margin)
        expected = reference(logits, targets.double()) / 5  # timm sums over the classes
        loss = asymmetric_loss(logits, targets.double(), (positive, negative), margin)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)  # timm bounds probabilities by 1e-8
        assert torch.allclose(gradient(loss, logits), gradient(expected, logits), rtol=1e-5, atol=1e-9)


def test_focal_loss_of_labels_is_torchvisions() -> None:
    logits, _, targets = example()
    expected = sigmoid_focal_loss(logits, targets.double(), alpha=-1, gamma=2.0, reduction="mean")
    loss = multilabel_loss(logits, targets, LossConfig("focal"), None)
    assert loss.item() == pytest.approx(expected.item(), abs=TOLERANCE)
    assert torch.allclose(gradient(loss, logits), gradient(expected, logits))


def test_binary_cross_entropy() -> None:
    logits, _, targets = example()
    weights = balanced_positive_weights(targets)
    assert torch.equal(weights, (~targets).sum(0) / targets.sum(0))
    for config, smooth, pos_weight in (
        (LossConfig(), targets.double(), None),
        (LossConfig("binary_cross_entropy", label_smoothing=0.2), targets.double() * 0.8 + 0.1, weights),
    ):
        expected = F.binary_cross_entropy_with_logits(logits, smooth, pos_weight=pos_weight)
        loss = multilabel_loss(logits, targets, config, pos_weight)
        assert loss.item() == pytest.approx(expected.item(), abs=TOLERANCE)


@pytest.mark.parametrize("exponents", [(0.0, 0.0), (0.5, 0.5), (1.0, 4.0)])
@pytest.mark.parametrize("margin", [0.0, 0.05])
def test_gradients_are_finite_for_extreme_logits(exponents: tuple[float, float], margin: float) -> None:
    logits = torch.tensor([[-80.0, 80.0, 0.0], [80.0, -80.0, -1e4]], requires_grad=True)
    targets = torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    loss = asymmetric_loss(logits, targets, exponents, margin)
    assert loss.isfinite()
    assert gradient(loss, logits).isfinite().all()
    focal = focal_loss(logits, torch.eye(3)[:2], exponents[0])
    assert gradient(focal, logits).isfinite().all()


def test_a_loss_of_another_task_is_an_error() -> None:
    from googlenet.config.parse import recipe_from_dict

    with pytest.raises(ValueError, match=r"loss\.name must be one of cross_entropy, focal, not asymmetric"):
        recipe_from_dict({"loss": {"name": "asymmetric"}})
    with pytest.raises(ValueError, match="one of binary_cross_entropy, focal, asymmetric, not cross_entropy"):
        recipe_from_dict({"task": "multilabel", "loss": {"name": "cross_entropy"}})
    with pytest.raises(ValueError, match="loss.name must be unset"):
        recipe_from_dict({"task": "detection", "loss": {"name": "focal"}})
    with pytest.raises(ValueError, match=r"mixup and augment\.cutmix need one label per image"):
        recipe_from_dict({"task": "multilabel", "augment": {"mixup": 0.2}})


def test_balanced_sampling_draws_all_classes_equally() -> None:
    labels = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)
    weights = balanced_sampling_weights(labels, 3)
    drawn = torch.bincount(labels[weighted_order(weights, 5, 2)])
    # A binomial count of 1,000 draws has a standard deviation of 15.
    assert (drawn - 1000 / 3).abs().max() < 75
    assert torch.equal(weighted_order(weights, 5, 2), weighted_order(weights.clone(), 5, 2))
    assert not torch.equal(weighted_order(weights, 5, 2), weighted_order(weights, 5, 3))
    several = torch.tensor([[1, 0], [1, 0], [1, 1], [0, 0], [0, 0]]).bool()
    assert balanced_sampling_weights(several, 2).tolist() == [1 / 3, 1 / 3, 1, 1 / 2, 1 / 2]


@pytest.mark.parametrize("in_memory", [True, False])
def test_balanced_batches_are_those_of_the_order(in_memory: bool, tmp_path: Path) -> None:
    """Of images in memory and on disk, with the later batches decoded ahead."""
    for name, count in (("a", 12), ("b", 4)):
        for number in range(count):
            (tmp_path / name).mkdir(exist_ok=True)
            value = (100 if name == "b" else 0) + number
            Image.new("L", (4, 4), value).save(tmp_path / name / f"{number:02}.png")
    options = LoadOptions(size=4, validation=0, in_memory=in_memory, num_workers=0)
    split = load_dataset(f"folder:{tmp_path}", options).train
    weights = balanced_sampling_weights(split.labels, 2)
    identity = Preprocess(4, 1, (0.0,), (1.0,))
    for step in range(3):
        spec = full_batch_spec(16, 8, step=step, size=4, seed=3)
        batch = training_batch(replace(split, weights=weights), identity, Augment(), spec)
        rows = weighted_order(weights, 3, step // 2)[(step % 2) * 8 : (step % 2) * 8 + 8]
        assert torch.equal(batch.labels, split.labels[rows])
        values = [int(value) for value in (batch.images[:, 0, 0, 0] * 255).round()]
        assert values == [(100 if row >= 12 else 0) + (row - 12 if row >= 12 else row) for row in rows.tolist()]
