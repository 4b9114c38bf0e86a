"""The networks against the same weights run through torch.nn.functional, layer by layer, from Table 1 below."""

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

# Copied from the paper, independently of the package: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection.
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
        mean, var, gain, shift = (
            w[f"{name}.norm.{part}"].view(1, -1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        x = (x - mean) / torch.sqrt(var + 1e-3) * gain + shift
    return F.relu(x)


def lrn(x: Tensor) -> Tensor:
    """The formula, a channel at a time."""
    channels = x.shape[1]
    out = torch.empty_like(x)
    for c in range(channels):
        window = x[:, max(0, c - 2) : min(channels, c + 3)]
        out[:, c] = x[:, c] / (1 + 1e-4 / 5 * (window**2).sum(1)) ** 0.75
    return out


def reference(name: str, w: Mapping[str, Tensor], x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and auxiliary logits."""

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
        at = f"trunk.inception_{block}"
        paths = [
            conv(w, f"{at}.conv1x1", x, 1),
            conv(w, f"{at}.conv3x3", conv(w, f"{at}.reduce3x3", x, 1), 3),
            conv(w, f"{at}.conv5x5", conv(w, f"{at}.reduce5x5", x, 1), 5),
            conv(w, f"{at}.pool_proj", F.max_pool2d(x, 3, 1, 1), 1),
        ]
        one, _, three, _, five, proj = map(int, widths)
        assert [p.shape[1] for p in paths] == [one, three, five, proj]
        x = torch.cat(paths, 1)
        if block in ("4a", "4d"):
            at = f"aux_heads.inception_{block}"
            height = x.shape[-1]
            side = F.avg_pool2d(x, min(5, height), 3)
            if side.shape[-1] != 4:
                side = F.adaptive_avg_pool2d(side, 4)
            side = conv(w, f"{at}.conv", side, 1).flatten(1)
            side = F.relu(F.linear(side, w[f"{at}.fc1.weight"], w[f"{at}.fc1.bias"]))
            aux.append(F.linear(side, w[f"{at}.fc2.weight"], w[f"{at}.fc2.bias"]))
    x = x.mean((2, 3))
    return F.linear(x, w["classifier.weight"], w["classifier.bias"]), aux


@pytest.mark.cpu
@pytest.mark.parametrize("size", [224, 96, 57])
@pytest.mark.parametrize("name", NAMES)
def test_equals_table_1_run_by_hand(name: str, size: int) -> None:
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
        in_single = model.forward_aux(pixels)
        in_double = model.double().forward_aux(pixels.double())
        exact, exact_aux = reference(name, model.state_dict(), pixels.double())
        assert len(in_double.aux) == len(exact_aux) == 2
        for ours, ours32, theirs32, theirs in zip(
            (in_double.main, *in_double.aux),
            (in_single.main, *in_single.aux),
            (single, *single_aux),
            (exact, *exact_aux),
            strict=True,
        ):
            # 1e-12: four digits more than float64 loses in sums of a thousand products.
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12 * max(1.0, theirs.abs().max().item()))
            assert_rounding(ours32, theirs32, theirs)
        assert torch.equal(model(pixels.double()), in_double.main)


def test_auxiliary_head_pools_5x5_stride_3_at_224() -> None:
    head = googlenet.create("googlenet", 10, aux=True).eval().aux_heads["inception_4a"]
    x = torch.randn(1, 512, 14, 14)
    seen = []
    head.conv.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    head(x)
    by_hand = torch.stack(
        [x[:, :, i : i + 5, j : j + 5].mean((2, 3)) for i in (0, 3, 6, 9) for j in (0, 3, 6, 9)], -1
    )
    torch.testing.assert_close(seen[0].flatten(2), by_hand)


def test_local_response_norm_follows_its_formula() -> None:
    x = 20 * torch.randn(2, 9, 5, 4)
    torch.testing.assert_close(LocalResponseNorm()(x), lrn(x))


@pytest.mark.parametrize("name", NAMES)
def test_logits_always(name: str) -> None:
    model = googlenet.create(name, 7, 2, aux=True)
    x = torch.randn(3, 2, 64, 80)
    for mode in (True, False):
        out = model.train(mode)(x)
        assert isinstance(out, Tensor)
        assert out.shape == (3, 7)
        main, aux = model.forward_aux(x)
        assert main.shape == (3, 7)
        assert [a.shape for a in aux] == [(3, 7)] * 2
    assert googlenet.create(name, 7, 2)(x).shape == (3, 7)
    assert googlenet.create(name, 7, 2).forward_aux(x).aux == ()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pools", ["ceil", "padded"])
@pytest.mark.parametrize("stem_stride", [4, 2, 1])
def test_minimum_size_is_the_least_that_works(name: str, pools: str, stem_stride: int) -> None:
    model = googlenet.create(name, 3, pools=pools, stem_stride=stem_stride).eval()
    least = model.min_size
    assert model(torch.randn(1, 3, least, least + 2)).shape == (1, 3)
    with pytest.raises(ValueError, match=f"at least {least}x{least}"):
        model(torch.randn(1, 3, least + 9, least - 1))
    if least > 1:
        model.min_size = 0
        with pytest.raises(RuntimeError):
            model(torch.randn(1, 3, least - 1, least - 1))


@pytest.mark.parametrize("stem_stride", [4, 2, 1])
def test_a_finer_stem_gives_finer_maps_from_the_same_weights(stem_stride: int) -> None:
    """As "Rethinking the Inception Architecture", section 8: the same cost for a smaller picture."""
    model = googlenet.create("googlenet_d2l", 10, 1, stem_stride=stem_stride).eval()
    model.load_state_dict(googlenet.create("googlenet_d2l", 10, 1, seed=5).state_dict())
    maps = model.features(torch.randn(2, 1, 24 * stem_stride, 24 * stem_stride))
    assert [tuple(maps[stage.name].shape[1:]) for stage in model.feature_info][1:] == [
        (192, 24, 24), (480, 12, 12), (832, 6, 6), (1024, 3, 3)
    ]  # fmt: skip
    assert [stage.stride for stage in model.feature_info][1:] == [stem_stride * n for n in (1, 2, 4, 8)]


@settings(max_examples=12)
@given(
    height=st.integers(31, 90),
    width=st.integers(31, 90),
    batch=st.integers(1, 3),
    name=st.sampled_from(NAMES),
    channels=st.integers(1, 5),
)
def test_features_have_the_promised_shapes(height: int, width: int, batch: int, name: str, channels: int) -> None:
    model = googlenet.create(name, 4, channels).eval()
    with torch.no_grad():
        maps = model.features(torch.randn(batch, channels, height, width))
        assert model(torch.randn(batch, channels, height, width)).shape == (batch, 4)
    assert list(maps) == [stage.name for stage in model.feature_info]
    for stage in model.feature_info:
        found = maps[stage.name]
        assert found.shape[:2] == (batch, stage.channels)
        for side, full in zip(found.shape[2:], (height, width), strict=True):
            assert abs(side - full / stage.stride) <= 1


def test_wrong_inputs_are_told_before_computing() -> None:
    model = googlenet.create("googlenet", 10).eval()
    for x, said in (
        (torch.randn(1, 1, 224, 224), r"\(n, 3, height, width\)"),
        (torch.randn(3, 224, 224), "shape"),
        (torch.zeros(1, 3, 224, 224, dtype=torch.uint8), "Preprocess"),
    ):
        with pytest.raises(ValueError, match=said):
            model(x)


@pytest.mark.parametrize("name", NAMES)
def test_reset_head(name: str) -> None:
    model = googlenet.create(name, 10, 1, aux=True).double()
    body = {k: v.clone() for k, v in model.trunk.state_dict().items()}
    model.reset_head(4)
    main, aux = model.forward_aux(torch.randn(2, 1, 64, 64, dtype=torch.double))
    assert main.shape == aux[0].shape == aux[1].shape == (2, 4)
    assert main.dtype == torch.double
    if name != "googlenet_bn":  # a training step moves its running statistics
        assert all(torch.equal(v, body[k]) for k, v in model.trunk.state_dict().items())
    with pytest.raises(ValueError, match="num_classes"):
        model.reset_head(0)


@pytest.mark.parametrize("init", ["xavier", "truncated_normal", "kaiming"])
def test_initialisation(init: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    model = googlenet.create("googlenet", 10, init=init, seed=2)
    assert torch.equal(torch.get_rng_state(), before), "the global random state is the caller's"
    other = googlenet.create("googlenet", 10, init=init, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    third = googlenet.create("googlenet", 10, init=init, seed=3)
    assert not torch.equal(model.classifier.weight, third.classifier.weight)
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


def test_pickles_and_compiles_to_the_same_function() -> None:
    model = googlenet.create("googlenet_bn", 10, 1).eval()
    x = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(x), model(x))
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x))


def test_gradients_reach_every_parameter() -> None:
    model = googlenet.create("googlenet", 10, 1, aux=True)
    main, aux = model.forward_aux(torch.randn(2, 1, 64, 64))
    (main.sum() + sum(a.sum() for a in aux)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
