"""The summary, against PyTorch's counter and against gradients."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import googlenet
from googlenet.models.summary import alexnet_parameters, summary


@pytest.mark.parametrize("aux", [False, True])
@pytest.mark.parametrize(("name", "size"), [("googlenet", 224), ("googlenet_bn", 97), ("googlenet_d2l", 96)])
def test_macs_of_the_googlenets(name: str, size: int, aux: bool) -> None:
    model = googlenet.create(name, aux=aux).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.forward_aux(torch.zeros(1, 3, size, size))
    result = summary(model, size)
    assert result.macs * 2 == counter.get_total_flops()
    assert sum(layer.macs for layer in result.layers) == result.macs
    assert sum(layer.parameters for layer in result.layers) == result.parameters


@pytest.mark.parametrize(
    "name",
    [
        "bn_inception",
        "inception_v3",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("inception_v2", "inception_v4", "inception_resnet_v2")
        ),
    ],
)
def test_macs_of_the_later_models(name: str) -> None:
    """Nested branches, rectangular kernels, residual blocks, the auxiliary head with convolutions."""
    model = googlenet.create(name, aux=name in ("inception_v2", "inception_v3")).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.forward_aux(torch.zeros(1, 3, 171, 171, device="meta"))
    assert summary(model, 171).macs * 2 == counter.get_total_flops()


def test_stages_of_blocks_with_strides() -> None:
    shapes = [(1, 64, 73, 73), (1, 192, 35, 35), (1, 768, 17, 17), (1, 1280, 8, 8), (1, 2048), (1, 1000)]
    assert [output for _, output in summary(googlenet.create("inception_v3"), 299).stages] == shapes


def test_stages_of_dive_into_deep_learning() -> None:
    result = summary(googlenet.create("googlenet_d2l", 10, 1), 96)
    shapes = [(1, 64, 24, 24), (1, 192, 12, 12), (1, 480, 6, 6), (1, 832, 3, 3), (1, 1024), (1, 10)]
    assert [output for _, output in result.stages] == shapes


@pytest.mark.parametrize("layer", ["pool1", "conv3", "pool2", "inception_3a", "inception_3b"])
def test_receptive_field_is_the_extent_of_the_gradient(layer: str) -> None:
    """With positive weights nothing cancels, so the gradient of one output pixel covers its receptive field."""
    model = googlenet.create("googlenet_d2l", 10, 1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    for name, child in model.trunk.named_modules():
        if isinstance(child, torch.nn.MaxPool2d):
            parent, _, leaf = name.rpartition(".")
            average = torch.nn.AvgPool2d(child.kernel_size, child.stride, child.padding)
            setattr(model.trunk.get_submodule(parent), leaf, average)
    x = torch.ones(1, 1, 256, 256, requires_grad=True)
    out = x
    for name, child in model.trunk.named_children():
        out = child(out)
        if name == layer:
            break
    out[0, :, out.shape[2] // 2, out.shape[3] // 2].sum().backward()
    columns = torch.nonzero(x.grad[0, 0].sum(0)).flatten()
    fields = {row.name: row.receptive_field for row in summary(googlenet.create("googlenet_d2l", 10, 1), 256).layers}
    assert fields[layer] == columns[-1] - columns[0] + 1


def test_alexnet_parameters() -> None:
    assert alexnet_parameters(1000) == 61_100_840


def test_size_below_the_minimum() -> None:
    with pytest.raises(ValueError, match="at least 31x31"):
        summary(googlenet.create("googlenet"), 16)
