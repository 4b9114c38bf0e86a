"""Running statistics estimated anew, against PyTorch's own `update_bn`."""

import copy
from pathlib import Path

import pytest
import torch
from torch.optim.swa_utils import update_bn

import googlenet
from googlenet.data.sources import load_dataset
from googlenet.training.loop import fit
from googlenet.training.norms import plain_batches, reestimate
from googlenet.training.recipe import Recipe, Size
from googlenet.training.recipe_file import read_recipe

pytestmark = pytest.mark.cpu


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(count, 1, 16, 16, generator=generator) for count in (6, 6, 4)]


def model(aux: bool = False) -> googlenet.Network:
    return googlenet.create("googlenet_bn", 4, 1, aux, pools="padded", dropout=0.5)


def test_equals_update_bn() -> None:
    ours = model()
    theirs = copy.deepcopy(ours)
    ours.eval()
    reestimate(ours, batches())
    update_bn(batches(), theirs)
    assert not ours.training
    assert ours.trunk.conv1.norm.momentum == 0.1
    for (key, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=key)


def test_pictures_are_taken_to_the_network() -> None:
    """As `evaluate --reestimate` needs it on a GPU, where the pictures lie in the processor's memory."""
    seen = []

    class Elsewhere(torch.nn.Linear):
        def forward_aux(self, pixels: torch.Tensor) -> None:
            seen.append(pixels.device.type)

    reestimate(Elsewhere(1, 1, device="meta"), batches())
    assert seen == ["meta"] * 3


def test_auxiliary_heads_are_counted_and_frozen_ones_left() -> None:
    net = model(aux=True).train()
    net.trunk.conv1.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    reestimate(net, batches())
    assert net.training
    after = net.state_dict()
    assert torch.equal(after["trunk.conv1.norm.running_mean"], before["trunk.conv1.norm.running_mean"])
    for key in ("trunk.conv3.norm.running_var", "aux_heads.inception_4a.conv.norm.running_mean"):
        assert not torch.equal(after[key], before[key])
        assert torch.isfinite(after[key]).all()


def test_batches_are_unchanged_training_pictures_at_the_test_size() -> None:
    train = load_dataset("fashion-mnist", validation=5000, limit=50).train
    from googlenet.data.preprocess import Preprocess

    preprocess = Preprocess(28, 1, (0.0,), (1.0,))
    recipe = Recipe(size=Size(train=16), batch_size=20, reestimate_norm=0)
    found = torch.cat(list(plain_batches(recipe, train, preprocess)))
    asked = sorted((255 * found).round().long().flatten(1).sum(1).tolist())
    assert asked == sorted(train.images.long().flatten(1).sum(1).tolist())
    two = list(plain_batches(Recipe(size=Size(train=16), batch_size=20, reestimate_norm=2), train, preprocess))
    assert [len(batch) for batch in two] == [20, 20]


@pytest.mark.parametrize("ema", ["0.9", "null"])
def test_delivered_weights_carry_the_statistics_of_the_test_size(ema: str, tmp_path: Path) -> None:
    flags = ["--data.limit=200", "--epochs=1", "--size.train=[8,12]", "--size.kind=random", "--size.test=20"]
    recipe = read_recipe("fashion-mnist-smoke", [*flags, "--reestimate_norm=0", f"--ema={ema}"])
    fit(recipe, tmp_path / "run", progress=False)
    run = googlenet.load(tmp_path / "run")
    reference = copy.deepcopy(run.model)
    train = load_dataset("fashion-mnist", validation=5000, limit=200).train
    update_bn(plain_batches(run.recipe, train, run.preprocess), reference)
    for (key, a), b in zip(run.model.state_dict().items(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=key, rtol=1e-4, atol=1e-5)
