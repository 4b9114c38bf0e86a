"""Class activation maps and Grad-CAM: the identities that make them what they are called."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import googlenet
from googlenet.insight.cam import cells, class_maps, enlarged, peaks
from googlenet.insight.gradcam import grad_cam, score_map
from googlenet.insight.stages import layer_of, outputs, stages
from googlenet.models.network import Network

pytestmark = pytest.mark.cpu

SMALL = {"width": 0.25, "stem_stride": 1, "pools": "padded"}


def small(name: str = "googlenet_bn", channels: int = 1, **variant: object) -> Network:
    return googlenet.create(name, 5, channels, **{**SMALL, **variant}).eval()


def pixels(channels: int = 1, size: int = 28, count: int = 2) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("pyramid", [(1,), (1, 2, 3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_maps_mean_and_the_bias_are_the_logit(pyramid: tuple[int, ...], channels: int) -> None:
    model = small(channels=channels, pyramid=pyramid)
    nn.init.normal_(model.classifier.bias)
    x = pixels(channels, size=33)
    maps, logits = class_maps(model, x, range(5))
    assert maps.shape == (2, 5, 5, 5)
    torch.testing.assert_close(logits, model(x).detach())
    torch.testing.assert_close(maps.mean((2, 3)) + model.classifier.bias, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "size"), [("bn_inception", 32), ("inception_v3", 107), ("inception_resnet_v2", 75)])
def test_the_same_holds_for_the_family(name: str, size: int) -> None:
    model = googlenet.create(name, 3, 1).eval()
    with torch.no_grad():
        maps, logits = class_maps(model, pixels(size=size, count=1), [2])
    torch.testing.assert_close(maps.mean((2, 3)), logits[:, 2:] - model.classifier.bias[2], rtol=1e-4, atol=1e-5)


def test_one_class_is_the_last_map_times_its_weights() -> None:
    model, x = small(), pixels()
    last = model.forward_features(x)
    expected = (last * model.classifier.weight[3].view(1, -1, 1, 1)).sum(1)
    torch.testing.assert_close(class_maps(model, x, [3]).maps[:, 0], expected)


@pytest.mark.parametrize(("length", "count"), [(5, 1), (5, 2), (7, 4), (2, 3), (1, 4)])
def test_cells_are_those_of_adaptive_pooling(length: int, count: int) -> None:
    x = torch.rand(1, 1, length)
    torch.testing.assert_close(x @ cells(length, count).T, F.adaptive_avg_pool1d(x, count))


def test_a_peak_is_where_a_spot_is() -> None:
    maps = torch.zeros(1, 2, 4, 4)
    maps[0, 0, 1, 3] = 1.0
    down, across = peaks(maps, 32, 32)[0, 0].tolist()
    assert 8 <= down < 16
    assert 24 <= across < 32
    assert peaks(maps, 32, 32)[0, 1].tolist() == [15.5, 15.5], "of a flat map, the middle"
    assert enlarged(maps, 32, 32).shape == (1, 2, 32, 32)


def test_at_the_last_map_grad_cam_is_the_class_map() -> None:
    model, x = small(), pixels()
    model.trunk.requires_grad_(False)  # a frozen trunk has maps too
    classes = torch.tensor([1, 4])
    maps = class_maps(model, x, range(5)).maps[torch.arange(2), classes] / 16
    last = stages(model)[-1]
    torch.testing.assert_close(score_map(model, x, last, classes), maps, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(grad_cam(model, x, last, classes), maps.clamp_min(0), rtol=1e-4, atol=1e-6)


def test_grad_cam_of_an_earlier_stage_by_hand() -> None:
    model, x = small(), pixels()
    found: dict[str, Tensor] = {}
    layer = layer_of(model, "inception_4a")
    handle = layer.register_forward_hook(lambda _, __, out: found.setdefault("map", out))
    score = model(x)[:, 2].sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(score, found["map"])
    expected = (gradient.mean((2, 3), keepdim=True) * found["map"]).sum(1).relu()
    classes = torch.tensor([2, 2])
    torch.testing.assert_close(grad_cam(model, x, "inception_4a", classes), expected.detach())
    assert grad_cam(model, x, "inception_4a", classes).shape == (2, 7, 7)


def test_layers_by_name() -> None:
    model = small()
    with pytest.raises(ValueError, match=r"no layer is called 'inception_9a' \(did you mean"):
        layer_of(model, "inception_9a")
    seen = dict(outputs(model, pixels(), upto="inception_3b"))
    assert list(seen)[-1] == "inception_3b"
    torch.testing.assert_close(seen["inception_3b"], model.features(pixels())["inception_3b"])


def test_a_network_without_classifier_has_no_class_maps() -> None:
    model = small()
    model.reset_classifier(0)
    with pytest.raises(ValueError, match="a classifier"):
        class_maps(model, pixels(), [0])
