"""``googlenet.fold``: the folded network on raw pixels, against ``Preprocess`` and the trained network."""

import copy

import pytest
import torch
from torch import nn

import googlenet
from googlenet.data.preprocess import Preprocess
from googlenet.models.folding import FoldedNetwork
from googlenet.models.network import Network
from googlenet.models.registry import MODELS
from model_selection import mark_slow_models
from rounding import assert_rounding

pytestmark = pytest.mark.cpu

COLOR = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Caffe's normalization: bytes minus a mean.
CAFFE = ((123 / 255, 117 / 255, 104 / 255), (1 / 255,) * 3)
GRAY = ((0.2860,), (0.3530,))


def trained(name: str, channels: int = 3, **options: object) -> Network:
    """Return a network whose normalization has other statistics and weights than the initial ones."""
    model = googlenet.create(name, 7, channels, **options).eval()
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            size = module.running_mean.shape
            module.running_mean.copy_(torch.rand(size, generator=generator) * 0.4 - 0.2)
            module.running_var.copy_(torch.rand(size, generator=generator) + 0.5)
            with torch.no_grad():
                module.weight.copy_(torch.rand(size, generator=generator) * 0.6 + 0.4)
                module.bias.copy_(torch.rand(size, generator=generator) * 0.4 - 0.2)
    return model


def images(channels: int, height: int, width: int, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def check(model: Network, folded: FoldedNetwork, preprocess: Preprocess, pixels: torch.Tensor) -> None:
    """Compare the folded network with float64: it may differ as much as float32 does."""
    with torch.inference_mode():
        reference = model(preprocess.normalize(pixels.float()))
        exact = copy.deepcopy(model).double()(preprocess.normalize(pixels.double()))
        assert exact.abs().max() > 0.01, "any result would agree with logits near zero"
        assert_rounding(folded(pixels), reference, exact)


@pytest.mark.parametrize("name", mark_slow_models(MODELS))
def test_every_model(name: str) -> None:
    model = trained(name, aux=bool(MODELS[name].aux_heads))
    before = copy.deepcopy(model.state_dict())
    preprocess = Preprocess(MODELS[name].input_size, 3, *COLOR)
    folded = googlenet.fold(model, preprocess)
    check(model, folded, preprocess, images(3, model.min_size, model.min_size + 13))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())


@pytest.mark.parametrize(("channels", "statistics"), [(1, GRAY), (3, CAFFE)])
@pytest.mark.parametrize("name", ["googlenet", "googlenet_d2l", "googlenet_bn"])
def test_gray_images_and_variants(name: str, channels: int, statistics: tuple[tuple[float, ...], ...]) -> None:
    model = trained(name, channels, stem_stride=2, spp_levels=(1, 2))
    preprocess = Preprocess(32, channels, *statistics)
    check(model, googlenet.fold(model, preprocess), preprocess, images(channels, 33, 40))


def test_padding_is_the_mean_pixel() -> None:
    """An image of the mean color is zeros after normalization; with black padding the border would differ."""
    model = trained("googlenet_bn")
    preprocess = Preprocess(32, 3, (0.2, 0.4, 0.8), (0.5, 0.25, 0.125))
    gray = torch.tensor([51, 102, 204], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    first = googlenet.fold(model, preprocess).trunk[0]
    out = first(torch.zeros(1, 3, 32, 32))
    torch.testing.assert_close(out, out[..., :1, :1].expand_as(out))
    check(model, googlenet.fold(model, preprocess), preprocess, gray)


def test_parallel_1x1_convolutions_are_merged() -> None:
    folded = googlenet.fold(trained("googlenet_bn"), Preprocess(32, 3, *COLOR))
    convolutions = [module for module in folded.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 3 + 9 * 4  # of the six in a block, three are merged
    assert folded.trunk.get_submodule("inception_3a.shared").out_channels == 64 + 96 + 16


def test_errors() -> None:
    model = trained("googlenet_bn")
    with pytest.raises(ValueError, match="3 channels, the normalization 1"):
        googlenet.fold(model, Preprocess(32, 1, *GRAY))
    folded = googlenet.fold(model, Preprocess(32, 3, *COLOR))
    with pytest.raises(ValueError, match="at least 31x31"):
        folded(images(3, 30, 40))
    model.reset_classifier(0)
    with pytest.raises(ValueError, match="reset_classifier"):
        googlenet.fold(model, Preprocess(32, 3, *COLOR))
