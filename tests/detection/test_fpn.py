"""The feature pyramid: map sizes of every architecture, gradients, initial weights, locations."""

import pytest
import torch
from torch import nn

import googlenet
from googlenet.detection.fpn import FeatureLevel, build_fpn, fpn_stages, locations
from googlenet.models.layers import FeatureInfo


def test_locations_are_centered_on_the_image() -> None:
    points = locations(FeatureLevel(torch.zeros(1, 1, 2, 3), 8), 16, 24)
    assert points.tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]
    # Without a border (299 pixels, 35 columns of stride 8), the columns are in the middle.
    unpadded = locations(FeatureLevel(torch.zeros(1, 1, 35, 35), 8), 299, 299)
    assert (unpadded[0, 0] + unpadded[-1, 0]).item() == 299


@pytest.mark.parametrize(("name", "size"), [("googlenet", 96), ("bn_inception", 65), ("inception_v3", 139)])
def test_levels_have_the_sizes_of_the_feature_maps(name: str, size: int) -> None:
    with torch.device("meta"):
        network = googlenet.create_model(name, 3, 1)
        stages = fpn_stages(network)
        assert [stage.stride for stage in stages] == [8, 16, 32]
        maps = network.features(torch.zeros(2, 1, size, size + 7))
        levels = build_fpn(stages, 16)({stage.name: maps[stage.name] for stage in stages})
    for stage in stages:
        assert levels[stage.name].shape == (2, 16, *maps[stage.name].shape[-2:])


def test_coarse_maps_influence_fine_levels() -> None:
    stages = fpn_stages(googlenet.create_model("googlenet_bn", 3, 1, pool_mode="same"))
    sides = {stage.name: 64 // stage.stride for stage in stages}
    maps = {s.name: torch.rand(1, s.channels, sides[s.name], sides[s.name], requires_grad=True) for s in stages}
    build_fpn(stages, 8)(maps)[stages[0].name].sum().backward()
    assert all(features.grad is not None and features.grad.abs().sum() > 0 for features in maps.values())


def test_initial_weights_are_those_of_plain_convolutions() -> None:
    """The random numbers are those of three 1x1 and three 3x3 convolutions in this order, and no others."""
    stages = [FeatureInfo("a", 3, 8), FeatureInfo("b", 5, 16), FeatureInfo("c", 7, 32)]
    torch.manual_seed(0)
    fpn, after = build_fpn(stages, 4), torch.rand(1)
    torch.manual_seed(0)
    expected = [nn.Conv2d(stage.channels, 4, 1) for stage in stages] + [nn.Conv2d(4, 4, 3) for _ in stages]
    assert torch.equal(after, torch.rand(1))
    weights = [parameter for conv in expected for parameter in (conv.weight, conv.bias)]
    for actual, weight in zip(fpn.parameters(), weights, strict=True):
        assert torch.equal(actual, weight)
