"""Branch ablation against networks whose branch has zero weights."""

import pytest
import torch
from torch import nn

import googlenet
from googlenet.explain.branch_ablation import ablate_branches, branch_outputs, branch_widths, zero_output
from googlenet.models.registry import MODELS


def batches(size: int, channels: int = 1, classes: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(12, channels, size, size, generator=generator)
    labels = torch.randint(classes, (12,), generator=generator)
    return [(pixels[:8], labels[:8]), (pixels[8:], labels[8:])]


def zero_weights(model: nn.Module, branch: str) -> nn.Module:
    """Set the last layer of a branch of inception_4a to zero."""
    end = {"conv1x1": "conv1x1", "conv3x3": "conv3x3", "conv5x5": "conv5x5", "pool": "pool_proj"}[branch]
    unit = model.get_submodule(f"trunk.inception_4a.{end}")
    nn.init.zeros_(unit.conv.weight)
    nn.init.zeros_(unit.conv.bias)
    return model


@pytest.mark.parametrize("branch", ["conv1x1", "conv3x3", "conv5x5", "pool"])
def test_ablation_equals_zero_weights(branch: str) -> None:
    models = [googlenet.create_model("googlenet", 4, 1, width_mult=0.25, pool_mode="same").eval() for _ in range(2)]
    model, reference = models[0], zero_weights(models[1], branch)
    result = ablate_branches(model, batches(28))
    pixels, labels = (torch.cat(parts) for parts in zip(*batches(28), strict=True))
    with torch.no_grad():
        expected = reference(pixels)
        with zero_output(branch_outputs(model.trunk.inception_4a)[branch]):
            torch.testing.assert_close(model(pixels), expected)
        plain = model(pixels)
    row = next(row for row in result.rows if (row.block, row.branch) == ("inception_4a", branch))
    assert row.top1 == pytest.approx((expected.argmax(1) == labels).double().mean().item())
    assert result.top1 == pytest.approx((plain.argmax(1) == labels).double().mean().item())
    assert row.top1_drop == pytest.approx(result.top1 - row.top1)
    torch.testing.assert_close(model(pixels), plain, msg="the network is unchanged")


def test_shares_are_of_the_blocks_activation() -> None:
    model = googlenet.create_model("googlenet_bn", 4, 3, width_mult=0.25, pool_mode="same").eval()
    inputs = batches(28, channels=3)
    result = ablate_branches(model, inputs)
    assert result.images == 12
    out = torch.cat([dict(model.features(pixels))["inception_3b"] for pixels, _ in inputs]).detach()
    table = model.trunk.inception_3b.row
    parts = out.split([table.conv1x1, table.conv3x3, table.conv5x5, table.pool_proj], dim=1)
    rows = [row for row in result.rows if row.block == "inception_3b"]
    assert [row.share for row in rows] == pytest.approx([(part.sum() / out.sum()).item() for part in parts], rel=1e-5)
    assert [row.channels for row in rows] == [part.shape[1] for part in parts]


@pytest.mark.parametrize("name", MODELS)
def test_every_network_has_branches(name: str) -> None:
    with torch.device("meta"):
        model = googlenet.create_model(name, 4, 1)
    blocks = {layer: branch_outputs(module) for layer, module in model.trunk.named_children()}
    counts = {layer: len(branches) for layer, branches in blocks.items() if branches}
    assert len(counts) >= 9
    assert set(counts.values()) <= {2, 3, 4}
    inception = [count for layer, count in counts.items() if layer.startswith(("inception", "mixed"))]
    assert max(inception) >= 3, "only residual blocks have fewer"


def test_branch_widths() -> None:
    model = googlenet.create_model("googlenet_bn", 4, 1).eval()
    pixels = torch.zeros(2, 1, 32, 32)
    widths = {"conv1x1": 192, "conv3x3": 208, "conv5x5": 48, "pool": 64}
    assert branch_widths(model, "inception_4a", pixels) == widths
    assert branch_widths(model, "conv1", pixels) == {}
    residual = googlenet.create_model("inception_resnet_v2", 4, 1).eval()
    assert branch_widths(residual, "inception_c_1", torch.zeros(2, 1, 75, 75)) == {}, (
        "its branches are added, not concatenated"
    )


def test_nested_branches_count_as_one() -> None:
    model = googlenet.create_model("inception_v3", 4, 1).eval()
    inputs = [(torch.randn(2, 1, 75, 75), torch.tensor([0, 1]))]
    branches = branch_outputs(model.trunk.mixed_7b)
    assert list(branches) == ["conv1x1", "conv3x3", "double3x3", "pool"]
    rows = ablate_branches(model, inputs).rows
    assert sum(row.share for row in rows if row.block == "mixed_7b") == pytest.approx(1)
