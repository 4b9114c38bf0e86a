"""Recomputed running statistics, compared with PyTorch's `update_bn`."""

import copy
from pathlib import Path

import pytest
import torch
from torch.optim.swa_utils import update_bn

import googlenet
from googlenet.config.parse import read_recipe
from googlenet.config.schema import Recipe, SizeConfig
from googlenet.data.sources import LoadOptions, load_dataset
from googlenet.training.fit import fit
from googlenet.training.precise_bn import clean_batches, recompute_bn_stats

pytestmark = pytest.mark.cpu


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(count, 1, 16, 16, generator=generator) for count in (6, 6, 4)]


def model(aux: bool = False) -> googlenet.Network:
    return googlenet.create_model("googlenet_bn", 4, 1, aux, pool_mode="same", dropout=0.5)


def test_equals_update_bn() -> None:
    own = model()
    reference = copy.deepcopy(own)
    own.eval()
    recompute_bn_stats(own, batches())
    update_bn(batches(), reference)
    assert not own.training
    assert own.trunk.conv1.norm.momentum == 0.1
    for (key, a), b in zip(own.state_dict().items(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=key)


def test_images_are_copied_to_the_device() -> None:
    """For `evaluate --precise-bn` on a GPU, with the images in CPU memory."""
    seen = []

    class Elsewhere(torch.nn.Linear):
        def forward_aux(self, pixels: torch.Tensor) -> None:
            seen.append(pixels.device.type)

    recompute_bn_stats(Elsewhere(1, 1, device="meta"), batches())
    assert seen == ["meta"] * 3


def test_auxiliary_heads_are_counted_and_frozen_ones_left() -> None:
    net = model(aux=True).train()
    net.trunk.conv1.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    recompute_bn_stats(net, batches())
    assert net.training
    after = net.state_dict()
    assert torch.equal(after["trunk.conv1.norm.running_mean"], before["trunk.conv1.norm.running_mean"])
    for key in ("trunk.conv3.norm.running_var", "aux_heads.inception_4a.conv.norm.running_mean"):
        assert not torch.equal(after[key], before[key])
        assert torch.isfinite(after[key]).all()


def test_batches_are_unchanged_training_images_at_the_eval_size() -> None:
    train = load_dataset("fashion-mnist", LoadOptions(validation=5000, max_samples=50)).train
    from googlenet.data.preprocess import Preprocess

    preprocess = Preprocess(28, 1, (0.0,), (1.0,))
    recipe = Recipe(size=SizeConfig(train=16), batch_size=20, precise_bn_batches=0)
    images = torch.cat(list(clean_batches(recipe, train, preprocess)))
    sums = sorted((255 * images).round().long().flatten(1).sum(1).tolist())
    assert sums == sorted(train.images.long().flatten(1).sum(1).tolist())
    two = list(clean_batches(Recipe(size=SizeConfig(train=16), batch_size=20, precise_bn_batches=2), train, preprocess))
    assert [len(batch) for batch in two] == [20, 20]


@pytest.mark.parametrize("ema", ["0.9", "null"])
def test_delivered_weights_carry_the_statistics_of_the_eval_size(ema: str, tmp_path: Path) -> None:
    flags = ["--data.max_samples=200", "--epochs=1", "--size.train=[8,12]", "--size.schedule=random", "--size.eval=20"]
    recipe = read_recipe("fashion-mnist-smoke", [*flags, "--precise_bn_batches=0", f"--ema_decay={ema}"])
    fit(recipe, tmp_path / "run", progress=False)
    run = googlenet.load(tmp_path / "run")
    reference = copy.deepcopy(run.model)
    train = load_dataset("fashion-mnist", LoadOptions(validation=5000, max_samples=200)).train
    update_bn(clean_batches(run.recipe, train, run.preprocess), reference)
    for (key, a), b in zip(run.model.state_dict().items(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=key, rtol=1e-4, atol=1e-5)
