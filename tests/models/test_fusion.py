"""``googlenet.fuse``: raw pixels through fewer layers, against ``Preprocess`` and the network as it was trained."""

import copy

import pytest
import torch
from torch import nn

import googlenet
from googlenet.data.preprocess import Preprocess
from googlenet.models.catalogue import MODELS
from googlenet.models.fusion import Fused
from googlenet.models.network import Network
from members import quickly
from rounding import assert_rounding

pytestmark = pytest.mark.cpu

COLOUR = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Caffe's pixels: bytes, less a mean.
BYTES = ((123 / 255, 117 / 255, 104 / 255), (1 / 255,) * 3)
GREY = ((0.2860,), (0.3530,))


def trained(name: str, channels: int = 3, **more: object) -> Network:
    """A network whose normalisation has seen pictures: statistics and scales that are not the initial ones."""
    model = googlenet.create(name, 7, channels, **more).eval()
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


def pictures(channels: int, height: int, width: int, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def check(model: Network, fused: Fused, preprocess: Preprocess, pixels: torch.Tensor) -> None:
    """The fused network errs from float64 as far as float32 does at most."""
    with torch.inference_mode():
        plain = model(preprocess.normalise(pixels.float()))
        exact = copy.deepcopy(model).double()(preprocess.normalise(pixels.double()))
        assert exact.abs().max() > 0.01, "logits that say nothing would agree with anything"
        assert_rounding(fused(pixels), plain, exact)


@pytest.mark.parametrize("name", quickly(MODELS))
def test_every_member(name: str) -> None:
    model = trained(name, aux=bool(MODELS[name].aux_heads))
    before = copy.deepcopy(model.state_dict())
    preprocess = Preprocess(MODELS[name].input_size, 3, *COLOUR)
    fused = googlenet.fuse(model, preprocess)
    check(model, fused, preprocess, pictures(3, model.min_size, model.min_size + 13))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())


@pytest.mark.parametrize(("channels", "statistics"), [(1, GREY), (3, BYTES)])
@pytest.mark.parametrize("name", ["googlenet", "googlenet_d2l", "googlenet_bn"])
def test_grey_bytes_and_variants(name: str, channels: int, statistics: tuple[tuple[float, ...], ...]) -> None:
    model = trained(name, channels, stem_stride=2, pyramid=(1, 2))
    preprocess = Preprocess(32, channels, *statistics)
    check(model, googlenet.fuse(model, preprocess), preprocess, pictures(channels, 33, 40))


def test_the_border_is_the_mean_pixel() -> None:
    """A picture of the mean is zeros to the network; padded with black instead, its rim would not be."""
    model = trained("googlenet_bn")
    preprocess = Preprocess(32, 3, (0.2, 0.4, 0.8), (0.5, 0.25, 0.125))
    grey = torch.tensor([51, 102, 204], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    first = googlenet.fuse(model, preprocess).trunk[0]
    at_rest = first(torch.zeros(1, 3, 32, 32))
    torch.testing.assert_close(at_rest, at_rest[..., :1, :1].expand_as(at_rest))
    check(model, googlenet.fuse(model, preprocess), preprocess, grey)


def test_siblings_are_one_convolution() -> None:
    fused = googlenet.fuse(trained("googlenet_bn"), Preprocess(32, 3, *COLOUR))
    convolutions = [module for module in fused.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 3 + 9 * 4  # of six in a block, three were siblings
    assert fused.trunk.get_submodule("inception_3a.shared").out_channels == 64 + 96 + 16


def test_what_cannot_be_fused() -> None:
    model = trained("googlenet_bn")
    with pytest.raises(ValueError, match="3 channels, its pixels have 1"):
        googlenet.fuse(model, Preprocess(32, 1, *GREY))
    fused = googlenet.fuse(model, Preprocess(32, 3, *COLOUR))
    with pytest.raises(ValueError, match="at least 31x31"):
        fused(pictures(3, 30, 40))
    model.reset_classifier(0)
    with pytest.raises(ValueError, match="reset_head"):
        googlenet.fuse(model, Preprocess(32, 3, *COLOUR))
