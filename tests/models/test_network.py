"""The interface of every network: timm's contract, feature maps, minimum sizes, pooling, copies."""

import copy
import io
import pickle
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import googlenet
from googlenet.models.registry import MODELS
from model_selection import LARGEST, mark_slow_models

NAMES = googlenet.list_models()
WITH_AUX = [name for name in NAMES if MODELS[name].aux_heads]


def min_size(name: str) -> int:
    return MODELS[name].min_size


@pytest.mark.parametrize("name", mark_slow_models(NAMES, release=LARGEST))
def test_contract(name: str) -> None:
    """Forward, backward, heads, features, resets: what timm's tests check for its models."""
    size = min_size(name) + 4
    model = googlenet.create(name, 7, aux=bool(MODELS[name].aux_heads))
    assert model.num_classes == 7 and model.in_channels == 3
    x = torch.randn(2, 3, size, size + 3)

    out = model(x)
    assert out.shape == (2, 7)
    out.mean().backward()
    without_grad = {key for key, p in model.named_parameters() if p.grad is None}
    assert all(key.startswith("aux_heads.") for key in without_grad)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    outputs = model.forward_aux(x)
    assert len(outputs.aux_logits) == MODELS[name].aux_heads
    assert all(logits.shape == (2, 7) for logits in outputs.aux_logits)

    model.eval()
    with torch.no_grad():
        last = model.forward_features(x)
        assert last.shape[:2] == (2, model.feature_info[-1].channels)
        pooled = model.forward_head(last, pre_logits=True)
        assert pooled.shape == (2, model.num_features)
        torch.testing.assert_close(model.forward_head(last), model(x))
        torch.testing.assert_close(model.get_classifier()(pooled), model(x))
        # A batch of one is a row of a batch of two.
        torch.testing.assert_close(model(x[:1]), model(x)[:1], rtol=1e-4, atol=1e-5)
        for num_classes, shape in ((5, (2, 5)), (0, (2, model.num_features))):
            model.reset_classifier(num_classes)
            assert model(x).shape == shape
        model.reset_classifier(0, "")
        assert model(x).shape == last.shape
        model.reset_classifier(3)
        assert model(x).shape == (2, 3)
        with pytest.raises(ValueError, match="global_pool"):
            model.reset_classifier(3, "max")
        with pytest.raises(ValueError, match="num_classes"):
            model.reset_classifier(-1)


@pytest.mark.parametrize("name", mark_slow_models(NAMES, release=LARGEST))
def test_features_match_feature_info(name: str) -> None:
    model = googlenet.create(name, 7).eval()
    size = MODELS[name].input_size
    with torch.device("meta"):
        x = torch.empty(1, 3, size, size)
    model = model.to("meta")
    maps = model.features(x)
    assert [info.stride for info in model.feature_info] == [2, 4, 8, 16, 32]
    for info, (key, output) in zip(model.feature_info, maps.items(), strict=True):
        assert key == info.name
        assert output.shape[1] == info.channels
        # Convolutions without padding make a map smaller, by at most seven pixels.
        assert size / info.stride - 7 <= output.shape[2] == output.shape[3] <= size / info.stride + 1


@pytest.mark.parametrize("name", mark_slow_models(NAMES, release=LARGEST))
def test_forward_intermediates(name: str) -> None:
    model = googlenet.create(name, 7).eval()
    x = torch.randn(1, 3, min_size(name), min_size(name))
    with torch.no_grad():
        maps = list(model.features(x).values())
        last, intermediates = model.forward_intermediates(x)
        torch.testing.assert_close(last, model.forward_features(x))
        torch.testing.assert_close(intermediates, maps)
        selected = model.forward_intermediates(x, indices=[-4, 2], intermediates_only=True)
        torch.testing.assert_close(selected, [maps[1], maps[2]])
        assert len(model.forward_intermediates(x, indices=2, intermediates_only=True)) == 2
        for outside in ([5], [-6], 6, 0, []):
            with pytest.raises(ValueError, match="5 feature maps"):
                model.forward_intermediates(x, indices=outside)
        with pytest.raises(ValueError, match="NCHW"):
            model.forward_intermediates(x, output_fmt="NLC")
        model.prune_intermediate_layers([0, 2])
        torch.testing.assert_close(model.forward_intermediates(x, [0, 2], intermediates_only=True), [maps[0], maps[2]])
        assert model(x).shape == (1, model.num_features) == (1, maps[2].shape[1])
        assert len(model.forward_intermediates(x, intermediates_only=True)) == len(model.feature_info) == 3


@pytest.mark.slow
@pytest.mark.parametrize("stem_stride", [4, 2, 1])
@pytest.mark.parametrize("name", mark_slow_models(NAMES, release=LARGEST))
def test_min_size_is_the_smallest_valid_size(name: str, stem_stride: int) -> None:
    model = googlenet.create(name, 3, stem_stride=stem_stride).to("meta").eval()
    size = model.min_size
    if stem_stride == 4:
        assert size == MODELS[name].min_size
    with torch.device("meta"):
        smallest, too_small = torch.empty(1, 3, size, size + 2), torch.empty(1, 3, size + 2, size - 1)
    assert model(smallest).shape == (1, 3)
    if size > 1:
        with pytest.raises(ValueError, match=f"at least {size}x{size}"):
            model(too_small)
        model.min_size = 1
        with pytest.raises(RuntimeError):
            model(too_small)


@pytest.mark.parametrize("name", mark_slow_models(NAMES, release=LARGEST))
def test_double_precision_and_rectangular_inputs(name: str) -> None:
    model = googlenet.create(name, 3, seed=1).double().eval()
    x = torch.randn(1, 3, min_size(name) + 6, min_size(name) + 1, dtype=torch.float64)
    with torch.no_grad():
        assert model(x).dtype == torch.float64
        # The same network in single precision keeps at least half of float32's 24 bits.
        exact = model(x)
        error = (model.float()(x.float()).double() - exact).abs().max()
        assert error <= 2**-12 * exact.abs().max()


@pytest.mark.parametrize("name", mark_slow_models(NAMES, release=LARGEST))
def test_spatial_pyramid_pooling(name: str) -> None:
    model = googlenet.create(name, 3, spp_levels=(1, 2, 4)).eval()
    channels = model.feature_info[-1].channels
    assert model.num_features == 21 * channels == model.classifier.in_features
    size = min_size(name)
    with torch.no_grad():
        for height, width in ((size, size), (size + 33, size + 70)):
            x = torch.randn(1, 3, height, width)
            last = model.forward_features(x)
            cells = [F.adaptive_avg_pool2d(last, level).flatten(1) for level in (1, 2, 4)]
            torch.testing.assert_close(model(x), model.classifier(torch.cat(cells, 1)))


def test_low_resolution_stems() -> None:
    """Rethinking, section 8: 299, 151 and 79 pixels give maps of about the same size."""
    for size, stem_stride in ((299, 4), (151, 2), (79, 1)):
        model = googlenet.create("inception_v3", 3, stem_stride=stem_stride).to("meta").eval()
        maps = model.features(torch.empty(1, 3, size, size, device="meta"))
        sizes = [maps[name].shape[-1] for name in ("mixed_5d", "mixed_6e", "mixed_7c")]
        assert all(abs(size - expected) <= 2 for size, expected in zip(sizes, (35, 17, 8), strict=True)), sizes


@pytest.mark.parametrize(
    ("name", "size", "maps"),
    [
        # Rethinking, Table 1: "input size" of each line, from the paper.
        (
            "inception_v2",
            299,
            {
                "conv1": (32, 149), "conv2": (32, 147), "conv3": (64, 147), "pool1": (64, 73), "conv4": (80, 71),
                "conv5": (192, 35), "conv6": (288, 35), "mixed_5d": (288, 35), "mixed_6a": (768, 17),
                "mixed_6f": (768, 17), "mixed_7a": (1280, 8), "mixed_7c": (2048, 8),
            },
        ),
        (
            "inception_v4",  # figs. 3 and 9
            299,
            {
                "conv1": (32, 149), "conv2": (32, 147), "conv3": (64, 147), "stem_3a": (160, 73),
                "stem_4a": (192, 71), "stem_5a": (384, 35), "inception_a_4": (384, 35), "reduction_a": (1024, 17),
                "inception_b_7": (1024, 17), "reduction_b": (1536, 8), "inception_c_3": (1536, 8),
            },
        ),
        (
            "inception_resnet_v2_paper",
            299,
            {"stem_5a": (384, 35), "reduction_a": (1152, 17), "reduction_b": (2144, 8)},
        ),
        (
            "bn_inception",  # figure 5
            224,
            {
                "conv1": (64, 112), "pool1": (64, 56), "conv3": (192, 56), "pool2": (192, 28),
                "inception_3a": (256, 28), "inception_3b": (320, 28), "inception_3c": (576, 14),
                "inception_4a": (576, 14), "inception_4b": (576, 14), "inception_4c": (608, 14),
                "inception_4d": (608, 14), "inception_4e": (1056, 7), "inception_5a": (1024, 7),
                "inception_5b": (1024, 7),
            },
        ),
    ],
)  # fmt: skip
def test_map_shapes_are_those_of_the_paper(name: str, size: int, maps: dict[str, tuple[int, int]]) -> None:
    model = googlenet.create(name).to("meta").eval()
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, module in model.trunk.named_children():
        module.register_forward_hook(lambda _, __, out, layer=layer: shapes.update({layer: tuple(out.shape[1:])}))
    model(torch.empty(1, 3, size, size, device="meta"))
    assert {layer: shapes[layer] for layer in maps} == {layer: (c, s, s) for layer, (c, s) in maps.items()}


def test_residual_block() -> None:
    """Figure 16 by hand: three branches, concatenated, projected without ReLU, scaled by 0.17, added, ReLU."""
    block = googlenet.create("inception_resnet_v2", 3).eval().trunk.inception_a_1
    w = {key: value + 0.01 for key, value in block.state_dict().items()}
    block.load_state_dict(w)

    def unit(name: str, x: Tensor, kernel: int) -> Tensor:
        x = F.conv2d(x, w[f"{name}.conv.weight"], padding=kernel // 2)
        mean, var, weight, bias = (
            w[f"{name}.norm.{key}"].view(1, -1, 1, 1) for key in ("running_mean", "running_var", "weight", "bias")
        )
        return F.relu((x - mean) / (var + 1e-3).sqrt() * weight + bias)

    x = torch.randn(1, 320, 5, 6)
    conv1x1 = unit("paths.conv1x1.0", x, 1)
    conv3x3 = unit("paths.conv3x3.1", unit("paths.conv3x3.0", x, 1), 3)
    double3x3 = unit("paths.double3x3.2", unit("paths.double3x3.1", unit("paths.double3x3.0", x, 1), 3), 3)
    concatenated = torch.cat([conv1x1, conv3x3, double3x3], 1)
    expected = F.relu(x + 0.17 * F.conv2d(concatenated, w["expand.weight"], w["expand.bias"]))
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", mark_slow_models(NAMES, release=LARGEST))
def test_copies_and_pickles(name: str) -> None:
    model = googlenet.create(name, 2, seed=4).eval()
    x = torch.randn(1, 3, min_size(name), min_size(name))
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(copy.deepcopy(model)(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        assert torch.equal(torch.load(buffer, weights_only=False)(x), expected)


def test_models_without_auxiliary_heads() -> None:
    for name in set(NAMES) - set(WITH_AUX):
        with pytest.raises(ValueError, match="no auxiliary heads"):
            googlenet.create(name, aux=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"stem_stride": 3}, "stem_stride"), ({"spp_levels": ()}, "spp_levels"), ({"spp_levels": (0,)}, "spp_levels")],
)
def test_invalid_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        googlenet.create("inception_v3", **options)
    with pytest.raises(TypeError, match="pool_mode"):
        googlenet.create("inception_v3", pool_mode="same")


@pytest.mark.parametrize("name", mark_slow_models(NAMES, release=LARGEST))
def test_building_does_not_need_scipy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In other libraries SciPy's truncated normal makes building take minutes; `make bench-overheads` measures it."""
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    model = googlenet.create(name, init="truncated_normal")
    assert all(p.std() > 0 for p in model.parameters() if p.ndim > 1)
