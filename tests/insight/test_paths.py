"""What a path contributes: against networks whose path really gives nothing."""

import pytest
import torch
from torch import nn

import googlenet
from googlenet.insight.paths import contributions, path_ends, path_widths, silenced
from googlenet.models.catalogue import MODELS


def batches(size: int, channels: int = 1, classes: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(12, channels, size, size, generator=generator)
    labels = torch.randint(classes, (12,), generator=generator)
    return [(pixels[:8], labels[:8]), (pixels[8:], labels[8:])]


def without(model: nn.Module, path: str) -> nn.Module:
    """The same network with a 4a path whose last layer is nothing but zeros: weight 0, bias 0."""
    end = {"conv1x1": "conv1x1", "conv3x3": "conv3x3", "conv5x5": "conv5x5", "pool": "pool_proj"}[path]
    unit = model.get_submodule(f"trunk.inception_4a.{end}")
    nn.init.zeros_(unit.conv.weight)
    nn.init.zeros_(unit.conv.bias)
    return model


@pytest.mark.parametrize("path", ["conv1x1", "conv3x3", "conv5x5", "pool"])
def test_a_silenced_path_is_a_network_without_it(path: str) -> None:
    made = [googlenet.create("googlenet", 4, 1, width=0.25, pools="padded").eval() for _ in range(2)]
    model, reference = made[0], without(made[1], path)
    found = contributions(model, batches(28))
    pixels, labels = (torch.cat(parts) for parts in zip(*batches(28), strict=True))
    with torch.no_grad():
        expected = reference(pixels)
        with silenced(path_ends(model.trunk.inception_4a)[path]):
            torch.testing.assert_close(model(pixels), expected)
        plain = model(pixels)
    row = next(row for row in found.rows if (row.block, row.path) == ("inception_4a", path))
    assert row.top1 == pytest.approx((expected.argmax(1) == labels).double().mean().item())
    assert found.top1 == pytest.approx((plain.argmax(1) == labels).double().mean().item())
    assert row.lost == pytest.approx(found.top1 - row.top1)
    torch.testing.assert_close(model(pixels), plain, msg="the network is as it was")


def test_shares_are_of_the_blocks_activation() -> None:
    model = googlenet.create("googlenet_bn", 4, 3, width=0.25, pools="padded").eval()
    given = batches(28, channels=3)
    found = contributions(model, given)
    assert found.images == 12
    out = torch.cat([dict(model.features(pixels))["inception_3b"] for pixels, _ in given]).detach()
    row = model.trunk.inception_3b.row
    parts = out.split([row.conv1x1, row.conv3x3, row.conv5x5, row.pool_proj], dim=1)
    rows = [each for each in found.rows if each.block == "inception_3b"]
    assert [each.share for each in rows] == pytest.approx(
        [(part.sum() / out.sum()).item() for part in parts], rel=1e-5
    )
    assert [each.channels for each in rows] == [part.shape[1] for part in parts]


@pytest.mark.parametrize("name", MODELS)
def test_every_member_has_paths(name: str) -> None:
    with torch.device("meta"):
        model = googlenet.create(name, 4, 1)
    blocks = {layer: path_ends(module) for layer, module in model.trunk.named_children()}
    counts = {layer: len(ends) for layer, ends in blocks.items() if ends}
    assert len(counts) >= 9
    assert set(counts.values()) <= {2, 3, 4}
    inception = [count for layer, count in counts.items() if layer.startswith(("inception", "mixed"))]
    assert max(inception) >= 3, "four, but for the paper's residual blocks"


def test_widths_are_those_of_the_table() -> None:
    model = googlenet.create("googlenet_bn", 4, 1).eval()
    pixels = torch.zeros(2, 1, 32, 32)
    wide = {"conv1x1": 192, "conv3x3": 208, "conv5x5": 48, "pool": 64}
    assert path_widths(model, "inception_4a", pixels) == wide
    assert path_widths(model, "conv1", pixels) == {}
    residual = googlenet.create("inception_resnet_v2", 4, 1).eval()
    assert path_widths(residual, "inception_c_1", torch.zeros(2, 1, 75, 75)) == {}, "its paths are summed, not joined"


def test_residual_blocks_and_inner_forks() -> None:
    model = googlenet.create("inception_v3", 4, 1).eval()
    given = [(torch.randn(2, 1, 75, 75), torch.tensor([0, 1]))]
    ends = path_ends(model.trunk.mixed_7b)
    assert list(ends) == ["conv1x1", "conv3x3", "double3x3", "pool"], "the expanded banks inside count as one path"
    rows = contributions(model, given).rows
    assert sum(row.share for row in rows if row.block == "mixed_7b") == pytest.approx(1)
