"""Class activation maps and Grad-CAM: the identities that define them."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import googlenet
from googlenet.explain.cam import class_maps, pooling_matrix
from googlenet.explain.context import get_layer, iter_layer_outputs, stage_names
from googlenet.explain.gradcam import grad_cam, gradient_x_activation
from googlenet.explain.plotting import peak_positions, upsample_maps
from googlenet.models.network import Network

pytestmark = pytest.mark.cpu

SMALL = {"width_mult": 0.25, "stem_stride": 1, "pool_mode": "same"}


def small(name: str = "googlenet_bn", channels: int = 1, **variant: object) -> Network:
    return googlenet.create_model(name, 5, channels, **{**SMALL, **variant}).eval()


def pixels(channels: int = 1, size: int = 28, count: int = 2) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("spp_levels", [(1,), (1, 2, 3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_mean_of_a_map_plus_the_bias_is_the_logit(spp_levels: tuple[int, ...], channels: int) -> None:
    model = small(channels=channels, spp_levels=spp_levels)
    nn.init.normal_(model.classifier.bias)
    x = pixels(channels, size=33)
    maps, logits = class_maps(model, x, range(5))
    assert maps.shape == (2, 5, 5, 5)
    torch.testing.assert_close(logits, model(x).detach())
    torch.testing.assert_close(maps.mean((2, 3)) + model.classifier.bias, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "size"), [("bn_inception", 32), ("inception_v3", 107), ("inception_resnet_v2", 75)])
def test_the_identity_holds_for_other_networks(name: str, size: int) -> None:
    model = googlenet.create_model(name, 3, 1).eval()
    with torch.no_grad():
        maps, logits = class_maps(model, pixels(size=size, count=1), [2])
    torch.testing.assert_close(maps.mean((2, 3)), logits[:, 2:] - model.classifier.bias[2], rtol=1e-4, atol=1e-5)


def test_a_map_is_the_weighted_sum_of_the_features() -> None:
    model, x = small(), pixels()
    features = model.forward_features(x)
    expected = (features * model.classifier.weight[3].view(1, -1, 1, 1)).sum(1)
    torch.testing.assert_close(class_maps(model, x, [3]).maps[:, 0], expected)


@pytest.mark.parametrize(("length", "count"), [(5, 1), (5, 2), (7, 4), (2, 3), (1, 4)])
def test_pooling_matrix_is_adaptive_average_pooling(length: int, count: int) -> None:
    x = torch.rand(1, 1, length)
    torch.testing.assert_close(x @ pooling_matrix(length, count).T, F.adaptive_avg_pool1d(x, count))


def test_the_peak_is_at_the_maximum() -> None:
    maps = torch.zeros(1, 2, 4, 4)
    maps[0, 0, 1, 3] = 1.0
    row, column = peak_positions(maps, 32, 32)[0, 0].tolist()
    assert 8 <= row < 16
    assert 24 <= column < 32
    assert peak_positions(maps, 32, 32)[0, 1].tolist() == [15.5, 15.5], "a constant map has its peak in the middle"
    assert upsample_maps(maps, 32, 32).shape == (1, 2, 32, 32)


def test_grad_cam_of_the_last_stage_is_the_class_map() -> None:
    model, x = small(), pixels()
    model.trunk.requires_grad_(False)  # frozen layers have maps too
    classes = torch.tensor([1, 4])
    maps = class_maps(model, x, range(5)).maps[torch.arange(2), classes] / 16
    last = stage_names(model)[-1]
    torch.testing.assert_close(gradient_x_activation(model, x, last, classes), maps, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(grad_cam(model, x, last, classes), maps.clamp_min(0), rtol=1e-4, atol=1e-6)


def test_grad_cam_of_an_earlier_stage() -> None:
    model, x = small(), pixels()
    outputs: dict[str, Tensor] = {}
    layer = get_layer(model, "inception_4a")
    handle = layer.register_forward_hook(lambda _, __, out: outputs.setdefault("map", out))
    score = model(x)[:, 2].sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(score, outputs["map"])
    expected = (gradient.mean((2, 3), keepdim=True) * outputs["map"]).sum(1).relu()
    classes = torch.tensor([2, 2])
    torch.testing.assert_close(grad_cam(model, x, "inception_4a", classes), expected.detach())
    assert grad_cam(model, x, "inception_4a", classes).shape == (2, 7, 7)


def test_layers_by_name() -> None:
    model = small()
    with pytest.raises(ValueError, match=r"unknown layer 'inception_9a' \(did you mean"):
        get_layer(model, "inception_9a")
    features = dict(iter_layer_outputs(model, pixels(), until="inception_3b"))
    assert list(features)[-1] == "inception_3b"
    torch.testing.assert_close(features["inception_3b"], model.features(pixels())["inception_3b"])


def test_a_network_without_classifier_has_no_class_maps() -> None:
    model = small()
    model.reset_classifier(0)
    with pytest.raises(ValueError, match="a classifier"):
        class_maps(model, pixels(), [0])
