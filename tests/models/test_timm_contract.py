"""The contract that timm's own tests require of every registered model, for the networks that are registered with timm.

At the default size where the contract is about it (`pool_size`), otherwise at the smallest size.
"""

import math

import pytest
import timm
import torch
from timm.models._features import FeatureGetterNet, FeatureInfo
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

import googlenet
from googlenet.models.registry import MODELS
from model_selection import LARGEST, mark_slow_models

REGISTERED = [name for name in MODELS if name not in ("inception_v3", "inception_v4", "inception_resnet_v2")]
MODELS_TO_TEST = mark_slow_models(REGISTERED, release=LARGEST)


@pytest.fixture(autouse=True, scope="module")
def _register() -> None:
    googlenet.register_timm_models()


def small_input(model: nn.Module, batch: int = 1) -> Tensor:
    """Return an input of `min_input_size`, which timm's tests use for sizes above theirs, plus a few pixels."""
    channels, height, width = model.default_cfg["min_input_size"]
    return torch.randn(batch, channels, height + 5, width + 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", MODELS_TO_TEST)
def test_default_cfg(name: str) -> None:
    """The names and sizes of the configuration are those of the model; forward_features is never pooled."""
    model = timm.create_model(name).eval()
    cfg, keys = model.default_cfg, model.state_dict().keys()
    assert {f"{cfg['classifier']}.weight", f"{cfg['first_conv']}.weight"} <= keys
    assert model.get_parameter(f"{cfg['first_conv']}.weight") is next(model.parameters())
    assert (model.num_classes, model.in_chans) == (cfg["num_classes"], cfg["input_size"][0]) == (1000, 3)
    assert model.num_features == model.head_hidden_size == model.get_classifier().in_features
    x = torch.randn(1, *cfg["input_size"])
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape == (1, model.num_features, *cfg["pool_size"])
        pre_logits = model.forward_head(features, pre_logits=True)
        assert pre_logits.shape == (1, model.head_hidden_size)
        torch.testing.assert_close(model(x), model.forward_head(features))
        model.reset_classifier(0)
        assert model.num_classes == 0
        torch.testing.assert_close(model(x), pre_logits)
        model.reset_classifier(0, "")
        assert torch.equal(model(x), features)
        model.reset_classifier(6, "avg")
        assert model(x).shape == (1, 6)
        assert isinstance(model.get_classifier(), nn.Linear)


@pytest.mark.parametrize("name", MODELS_TO_TEST)
def test_creation_without_classifier(name: str) -> None:
    for global_pool, dims in (("avg", 2), ("", 4)):
        model = timm.create_model(name, num_classes=0, global_pool=global_pool).eval()
        with torch.no_grad():
            output = model(small_input(model))
        assert output.ndim == dims
        assert output.shape[1] == model.num_features
    for pooling in ("max", "catavgmax"):
        with pytest.raises(ValueError, match="global_pool must be avg"):
            timm.create_model(name, global_pool=pooling)


@pytest.mark.parametrize("name", MODELS_TO_TEST)
def test_every_parameter_has_a_gradient(name: str) -> None:
    model = timm.create_model(name, num_classes=42).train()
    output = model(small_input(model, 2))
    assert output.shape == (2, 42)
    output.mean().backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", MODELS_TO_TEST)
def test_feature_maps(name: str) -> None:
    """forward_intermediates, features_only and a graph extraction return the same maps, as feature_info says."""
    model = timm.create_model(name).eval()
    x = small_input(model)
    info = FeatureInfo(model.feature_info, out_indices=tuple(range(len(model.feature_info))))
    features = timm.create_model(name, features_only=True).eval()
    assert isinstance(features, FeatureGetterNet)
    features.model.load_state_dict(model.state_dict(), strict=False)
    graph = create_feature_extractor(model, {key: key for key in info.module_name()})
    with torch.no_grad():
        last, maps = model.forward_intermediates(x)
        assert torch.equal(last, model.forward_features(x))
        for maps_only in (
            model.forward_intermediates(x, intermediates_only=True),
            features(x),
            list(graph(x).values()),
        ):
            for actual, expected in zip(maps_only, maps, strict=True):
                torch.testing.assert_close(actual, expected)
        chosen = model.forward_intermediates(x, [0, -2], intermediates_only=True)
    assert torch.equal(chosen[0], maps[0])
    assert torch.equal(chosen[1], maps[-2])
    assert [item.shape[1] for item in maps] == info.channels() == features.feature_info.channels()
    for item, reduction in zip(maps, info.reduction(), strict=True):
        assert item.shape[2] <= math.ceil(x.shape[2] / reduction) + 1
        assert item.shape[3] <= math.ceil(x.shape[3] / reduction) + 1


@pytest.mark.parametrize("name", MODELS_TO_TEST)
def test_graph_has_the_same_output(name: str) -> None:
    model = timm.create_model(name, num_classes=3).eval()
    x = small_input(model)
    with torch.no_grad():
        assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))
