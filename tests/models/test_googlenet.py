"""The GoogLeNets, against a reference by torch.nn.functional, layer by layer, from the copy of Table 1 below."""

import math
import pickle
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import googlenet
from googlenet.models.layers import LocalResponseNorm
from rounding import assert_rounding

# Copied from the paper, independently of the package: columns 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection.
TABLE = """
3a  64  96 128 16  32  32
3b 128 128 192 32  96  64
4a 192  96 208 16  48  64
4b 160 112 224 24  64  64
4c 128 128 256 24  64  64
4d 112 144 288 32  64  64
4e 256 160 320 32 128 128
5a 256 160 320 32 128 128
5b 384 192 384 48 128 128
"""
NAMES = ("googlenet", "googlenet_bn", "googlenet_d2l")


def conv(w: Mapping[str, Tensor], name: str, x: Tensor, kernel: int, stride: int = 1) -> Tensor:
    assert w[f"{name}.conv.weight"].shape[2:] == (kernel, kernel)
    x = F.conv2d(x, w[f"{name}.conv.weight"], w.get(f"{name}.conv.bias"), stride, kernel // 2)
    if f"{name}.norm.weight" in w:
        mean, var, weight, bias = (
            w[f"{name}.norm.{key}"].view(1, -1, 1, 1) for key in ("running_mean", "running_var", "weight", "bias")
        )
        x = (x - mean) / torch.sqrt(var + 1e-3) * weight + bias
    return F.relu(x)


def lrn(x: Tensor) -> Tensor:
    """Local response normalization by its formula, one channel at a time."""
    channels = x.shape[1]
    out = torch.empty_like(x)
    for c in range(channels):
        window = x[:, max(0, c - 2) : min(channels, c + 3)]
        out[:, c] = x[:, c] / (1 + 1e-4 / 5 * (window**2).sum(1)) ** 0.75
    return out


def reference(name: str, w: Mapping[str, Tensor], x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return logits and auxiliary logits."""

    def pool(x: Tensor) -> Tensor:
        if name == "googlenet_d2l":
            return F.max_pool2d(x, 3, 2, 1)
        return F.max_pool2d(x, 3, 2, ceil_mode=True)

    norm = lrn if name == "googlenet" else lambda x: x
    x = norm(pool(conv(w, "trunk.conv1", x, 7, 2)))
    x = norm(conv(w, "trunk.conv3", conv(w, "trunk.conv2", x, 1), 3))
    aux = []
    for line in TABLE.split("\n")[1:-1]:
        block, *widths = line.split()
        if block in ("3a", "4a", "5a"):
            x = pool(x)
        key = f"trunk.inception_{block}"
        branches = [
            conv(w, f"{key}.conv1x1", x, 1),
            conv(w, f"{key}.conv3x3", conv(w, f"{key}.reduce3x3", x, 1), 3),
            conv(w, f"{key}.conv5x5", conv(w, f"{key}.reduce5x5", x, 1), 5),
            conv(w, f"{key}.pool_proj", F.max_pool2d(x, 3, 1, 1), 1),
        ]
        conv1x1, _, conv3x3, _, conv5x5, proj = map(int, widths)
        assert [branch.shape[1] for branch in branches] == [conv1x1, conv3x3, conv5x5, proj]
        x = torch.cat(branches, 1)
        if block in ("4a", "4d"):
            key = f"aux_heads.inception_{block}"
            head = F.avg_pool2d(x, min(5, x.shape[-1]), 3)
            if head.shape[-1] != 4:
                head = F.adaptive_avg_pool2d(head, 4)
            head = conv(w, f"{key}.conv", head, 1).flatten(1)
            head = F.relu(F.linear(head, w[f"{key}.fc1.weight"], w[f"{key}.fc1.bias"]))
            aux.append(F.linear(head, w[f"{key}.fc2.weight"], w[f"{key}.fc2.bias"]))
    x = x.mean((2, 3))
    return F.linear(x, w["classifier.weight"], w["classifier.bias"]), aux


@pytest.mark.slow
@pytest.mark.cpu
@pytest.mark.parametrize("size", [224, 96, 57])
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_reference(name: str, size: int) -> None:
    model = googlenet.create(name, num_classes=10, aux=True, seed=3).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key.endswith(("running_mean", "bias")):
                value.normal_(std=0.1, generator=generator)
            elif key.endswith(("running_var", "norm.weight")):
                value.uniform_(0.5, 1.5, generator=generator)
        pixels = torch.randn(2, 3, size, size, generator=generator)
        single, single_aux = reference(name, model.state_dict(), pixels)
        outputs32 = model.forward_aux(pixels)
        outputs64 = model.double().forward_aux(pixels.double())
        exact, exact_aux = reference(name, model.state_dict(), pixels.double())
        assert len(outputs64.aux_logits) == len(exact_aux) == 2
        for output64, output32, reference32, expected in zip(
            (outputs64.logits, *outputs64.aux_logits),
            (outputs32.logits, *outputs32.aux_logits),
            (single, *single_aux),
            (exact, *exact_aux),
            strict=True,
        ):
            # Sums of a thousand products in float64 lose four digits less than 1e-12.
            torch.testing.assert_close(output64, expected, rtol=0, atol=1e-12 * max(1.0, expected.abs().max().item()))
            assert_rounding(output32, reference32, expected)
        assert torch.equal(model(pixels.double()), outputs64.logits)


def test_auxiliary_head_pools_5x5_stride_3_at_224() -> None:
    head = googlenet.create("googlenet", 10, aux=True).eval().aux_heads["inception_4a"]
    x = torch.randn(1, 512, 14, 14)
    pooled = []
    head.conv.register_forward_hook(lambda _, inputs, __: pooled.append(inputs[0]))
    head(x)
    expected = torch.stack([x[:, :, i : i + 5, j : j + 5].mean((2, 3)) for i in (0, 3, 6, 9) for j in (0, 3, 6, 9)], -1)
    torch.testing.assert_close(pooled[0].flatten(2), expected)


def test_local_response_norm_follows_its_formula() -> None:
    x = 20 * torch.randn(2, 9, 5, 4)
    torch.testing.assert_close(LocalResponseNorm()(x), lrn(x))


@pytest.mark.parametrize("name", NAMES)
def test_output_is_always_logits(name: str) -> None:
    model = googlenet.create(name, 7, 2, aux=True)
    x = torch.randn(3, 2, 64, 80)
    for mode in (True, False):
        out = model.train(mode)(x)
        assert isinstance(out, Tensor)
        assert out.shape == (3, 7)
        logits, aux_logits = model.forward_aux(x)
        assert logits.shape == (3, 7)
        assert [aux.shape for aux in aux_logits] == [(3, 7)] * 2
    assert googlenet.create(name, 7, 2)(x).shape == (3, 7)
    assert googlenet.create(name, 7, 2).forward_aux(x).aux_logits == ()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pool_mode", ["ceil", "same"])
@pytest.mark.parametrize("stem_stride", [4, 2, 1])
def test_minimum_size_by_pool_mode(name: str, pool_mode: str, stem_stride: int) -> None:
    model = googlenet.create(name, 3, pool_mode=pool_mode, stem_stride=stem_stride).eval()
    size = model.min_size
    assert model(torch.randn(1, 3, size, size + 2)).shape == (1, 3)
    with pytest.raises(ValueError, match=f"at least {size}x{size}"):
        model(torch.randn(1, 3, size + 9, size - 1))
    if size > 1:
        model.min_size = 0
        with pytest.raises(RuntimeError):
            model(torch.randn(1, 3, size - 1, size - 1))


@pytest.mark.parametrize("stem_stride", [4, 2, 1])
def test_smaller_stem_stride_gives_larger_maps(stem_stride: int) -> None:
    """The weights are the same ("Rethinking the Inception Architecture", section 8)."""
    model = googlenet.create("googlenet_d2l", 10, 1, stem_stride=stem_stride).eval()
    model.load_state_dict(googlenet.create("googlenet_d2l", 10, 1, seed=5).state_dict())
    maps = model.features(torch.randn(2, 1, 24 * stem_stride, 24 * stem_stride))
    assert [tuple(maps[info.name].shape[1:]) for info in model.feature_info][1:] == [
        (192, 24, 24), (480, 12, 12), (832, 6, 6), (1024, 3, 3)
    ]  # fmt: skip
    assert [info.stride for info in model.feature_info][1:] == [stem_stride * n for n in (1, 2, 4, 8)]


@settings(max_examples=12)
@given(
    height=st.integers(31, 90),
    width=st.integers(31, 90),
    batch=st.integers(1, 3),
    name=st.sampled_from(NAMES),
    channels=st.integers(1, 5),
)
def test_feature_shapes(height: int, width: int, batch: int, name: str, channels: int) -> None:
    model = googlenet.create(name, 4, channels).eval()
    with torch.no_grad():
        maps = model.features(torch.randn(batch, channels, height, width))
        assert model(torch.randn(batch, channels, height, width)).shape == (batch, 4)
    assert list(maps) == [info.name for info in model.feature_info]
    for info in model.feature_info:
        output = maps[info.name]
        assert output.shape[:2] == (batch, info.channels)
        for out_size, size in zip(output.shape[2:], (height, width), strict=True):
            assert abs(out_size - size / info.stride) <= 1


def test_invalid_inputs() -> None:
    model = googlenet.create("googlenet", 10).eval()
    for x, message in (
        (torch.randn(1, 1, 224, 224), r"\(n, 3, height, width\)"),
        (torch.randn(3, 224, 224), "shape"),
        (torch.zeros(1, 3, 224, 224, dtype=torch.uint8), "Preprocess"),
    ):
        with pytest.raises(ValueError, match=message):
            model(x)


@pytest.mark.parametrize("name", NAMES)
def test_reset_classifier(name: str) -> None:
    model = googlenet.create(name, 10, 1, aux=True).double()
    trunk = {k: v.clone() for k, v in model.trunk.state_dict().items()}
    model.reset_classifier(4)
    main, aux = model.forward_aux(torch.randn(2, 1, 64, 64, dtype=torch.double))
    assert main.shape == aux[0].shape == aux[1].shape == (2, 4)
    assert main.dtype == torch.double
    if name != "googlenet_bn":  # a forward pass in training updates its running statistics
        assert all(torch.equal(v, trunk[k]) for k, v in model.trunk.state_dict().items())
    for num_classes, global_pool in ((0, ""), (3, None)):
        model.reset_classifier(num_classes, global_pool)
    assert model(torch.randn(2, 1, 64, 64, dtype=torch.double)).shape == (2, 3)


@pytest.mark.parametrize("init", ["xavier", "truncated_normal", "kaiming"])
def test_init(init: str) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    model = googlenet.create("googlenet", 10, init=init, seed=2)
    assert torch.equal(torch.get_rng_state(), state), "the global random state is not used"
    same = googlenet.create("googlenet", 10, init=init, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    other = googlenet.create("googlenet", 10, init=init, seed=3)
    assert not torch.equal(model.classifier.weight, other.classifier.weight)
    weight = model.trunk.inception_5b.conv3x3.conv.weight
    out_channels, fan_in = weight.shape[0], weight[0].numel()
    expected = {"xavier": math.sqrt(2 / (fan_in + out_channels * 9))}.get(init, math.sqrt(2 / fan_in))
    assert weight.std().item() == pytest.approx(expected, rel=0.01)
    assert weight.mean().abs().item() < expected / 100
    if init == "truncated_normal":
        assert weight.abs().max().item() <= 2 * expected / 0.8796 * 1.0001
    bias = model.trunk.inception_5b.conv3x3.conv.bias
    if init == "xavier":
        assert 0.9 / math.sqrt(fan_in) < bias.abs().max().item() <= 1 / math.sqrt(fan_in)
    else:
        assert not bias.any()


@pytest.mark.slow
def test_pickle_and_export() -> None:
    model = googlenet.create("googlenet_bn", 10, 1).eval()
    x = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(x), model(x))
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x))


def test_every_parameter_has_a_gradient() -> None:
    model = googlenet.create("googlenet", 10, 1, aux=True)
    main, aux = model.forward_aux(torch.randn(2, 1, 64, 64))
    (main.sum() + sum(a.sum() for a in aux)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
