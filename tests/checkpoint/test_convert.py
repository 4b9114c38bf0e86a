"""Key maps, against the networks of the libraries with the same weights; BN-Inception against a functional port."""

import copy
import itertools
from collections.abc import Callable, Mapping

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import googlenet
from googlenet.checkpoint.interop.convert import from_external_state_dict, key_map, to_external_state_dict
from googlenet.checkpoint.interop.key_maps import SOURCE_MODELS
from googlenet.models.registry import MODELS
from model_selection import mark_slow_models
from rounding import assert_rounding


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw weights, and statistics, weights and biases of normalizations that differ from the initial ones."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.running_mean.normal_(std=0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(std=0.1, generator=generator)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, generator=generator)
    return model


EXTERNAL: dict[str, Callable[[], nn.Module]] = {
    "torchvision:googlenet": lambda: torchvision.models.googlenet(
        weights=None, aux_logits=True, transform_input=False, init_weights=False, num_classes=11
    ),
    "torchvision:inception_v3": lambda: torchvision.models.inception_v3(
        weights=None, aux_logits=True, transform_input=False, init_weights=False, num_classes=11
    ),
    "timm:inception_v3": lambda: timm.create_model("inception_v3", num_classes=11),
    "timm:inception_v4": lambda: timm.create_model("inception_v4", num_classes=11),
    "timm:inception_resnet_v2": lambda: timm.create_model("inception_resnet_v2", num_classes=11),
}


# torchvision's 5x5 auxiliary convolution needs a map of about 17x17, as at 299 pixels.
TRAINING_SIZES: dict[str, list[tuple[int, int]]] = {
    "torchvision:googlenet": [(33, 33), (64, 90), (101, 77)],
    "torchvision:inception_v3": [(299, 299), (310, 299), (299, 331)],
    "timm:inception_v3": [(107, 107), (91, 122), (139, 107)],
    "timm:inception_v4": [(107, 107), (91, 122), (139, 107)],
    "timm:inception_resnet_v2": [(107, 107), (91, 122), (139, 107)],
}


def external_outputs(name: str, model: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the logits, and the auxiliary logits in depth order if the network has them."""
    out = model(x)
    if isinstance(out, Tensor):
        return [out]
    if name == "torchvision:googlenet":
        return [out.logits, out.aux_logits1, out.aux_logits2]
    return [out.logits, out.aux_logits]


def disable_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", mark_slow_models(EXTERNAL, ("torchvision:googlenet", "torchvision:inception_v3")))
def test_same_outputs_in_evaluation(name: str, dtype: torch.dtype) -> None:
    """In float64 up to 1e-10; in float32 up to rounding. Converting back gives the same tensors."""
    source = SOURCE_MODELS[name]
    external = randomize(EXTERNAL[name]()).eval().to(dtype)
    converted = from_external_state_dict(source, external.state_dict(), name)
    model = googlenet.create(source.model, 11, 3, converted.aux).eval().to(dtype)
    model.load_state_dict(converted.tensors)
    exact = copy.deepcopy(external).double()
    size = MODELS[source.model].min_size
    with torch.no_grad():
        for height, width in ((size, size), (size + 25, size + 14), (size + 47, size + 60)):
            x = torch.randn(1, 3, height, width, dtype=dtype)
            if dtype is torch.float32:
                assert_rounding(model(x), external(x), exact(x.double()))
            else:
                assert (model(x) - external(x)).abs().max() <= 1e-10

    tensors = to_external_state_dict(source, model.state_dict(), name)
    expected = external.state_dict()
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[key], expected[key]) for key in tensors)


@pytest.mark.parametrize("index", [0, *(pytest.param(n, marks=pytest.mark.release) for n in (1, 2))])
@pytest.mark.parametrize("name", mark_slow_models(EXTERNAL, ("torchvision:googlenet",)))
def test_same_training_step(name: str, index: int) -> None:
    """Outputs with those of the auxiliary heads, gradients of every parameter, updated statistics.

    In float64: in float32 rounding that changes one ReLU changes single gradients by much more.
    """
    source, dtype, tolerance = SOURCE_MODELS[name], torch.float64, 1e-10
    external = disable_dropout(randomize(EXTERNAL[name]()).train().to(dtype))
    converted = from_external_state_dict(source, external.state_dict(), name)
    model = disable_dropout(googlenet.create(source.model, 11, 3, converted.aux).train().to(dtype))
    model.load_state_dict(converted.tensors)
    names = key_map(source, converted.aux)
    x = torch.randn(2, 3, *TRAINING_SIZES[name][index], dtype=dtype)
    expected = external_outputs(name, external, x)
    logits, aux_logits = model.forward_aux(x)
    outputs = (logits, *aux_logits)
    for output, expected_output in zip(outputs, expected, strict=True):
        assert (output - expected_output).abs().max() <= tolerance
    labels = torch.tensor([3, 8])
    sum(F.cross_entropy(output, labels) for output in expected).backward()
    sum(F.cross_entropy(output, labels) for output in outputs).backward()  # type: ignore[union-attr]
    gradients = {key: p.grad for key, p in external.named_parameters()}
    # Gradients have no natural scale: with normalization over two images they reach the thousands.
    scale = max(1.0, max(float(grad.abs().max()) for grad in gradients.values()))
    for key, parameter in model.named_parameters():
        assert (parameter.grad - gradients[names[key]]).abs().max() <= tolerance * scale, key
    updated = external.state_dict()
    for key, value in model.state_dict().items():
        assert (value - updated[names[key]]).abs().max() <= tolerance, key


def bninception(w: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The port as a function: convolutions with bias, normalization with eps 1e-5, ReLU; ceil-mode pools."""

    def unit(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = w[f"{name}.weight"]
        x = F.conv2d(x, weight, w[f"{name}.bias"], stride, weight.shape[-1] // 2)
        keys = (f"{name}_bn.{key}" for key in ("running_mean", "running_var", "weight", "bias"))
        return F.relu(F.batch_norm(x, *(w[key] for key in keys), eps=1e-5))

    def chain(x: Tensor, block: str, names: list[str], stride: int = 1) -> Tensor:
        for name in names[:-1]:
            x = unit(f"inception_{block}_{name}", x)
        return unit(f"inception_{block}_{names[-1]}", x, stride)

    x = F.max_pool2d(unit("conv1_7x7_s2", x, 2), 3, 2, ceil_mode=True)
    x = F.max_pool2d(unit("conv2_3x3", unit("conv2_3x3_reduce", x)), 3, 2, ceil_mode=True)
    double = ["double_3x3_reduce", "double_3x3_1", "double_3x3_2"]
    for block in "3a 3b 3c 4a 4b 4c 4d 4e 5a 5b".split():
        if block in ("3c", "4e"):
            branches = [
                chain(x, block, ["3x3_reduce", "3x3"], 2),
                chain(x, block, double, 2),
                F.max_pool2d(x, 3, 2, ceil_mode=True),
            ]
        else:
            pooled = F.max_pool2d(x, 3, 1, 1) if block == "5b" else F.avg_pool2d(x, 3, 1, 1, ceil_mode=True)
            branches = [
                chain(x, block, ["1x1"]),
                chain(x, block, ["3x3_reduce", "3x3"]),
                chain(x, block, double),
                chain(pooled, block, ["pool_proj"]),
            ]
        x = torch.cat(branches, 1)
    return F.linear(x.mean((2, 3)), w["last_linear.weight"], w["last_linear.bias"])


@pytest.mark.parametrize("size", [224, 160, 96])
def test_bn_inception_equals_its_port(size: int) -> None:
    """The port takes BGR and has biases in front of normalizations; the converted network takes RGB and has none."""
    model = randomize(googlenet.create("bn_inception", 11)).double().eval()
    external = to_external_state_dict(SOURCE_MODELS["pretrainedmodels:bninception"], model.state_dict(), "model")
    external = {key: value.clone() for key, value in external.items()}
    generator = torch.Generator().manual_seed(5)
    for key, value in external.items():
        if key.endswith(".bias") and not key.endswith("_bn.bias") and "last" not in key:
            value.normal_(generator=generator)
    del external["conv2_3x3_bn.num_batches_tracked"]  # the published file has no counters
    model.load_state_dict(
        from_external_state_dict(SOURCE_MODELS["pretrainedmodels:bninception"], external, "external").tensors
    )
    x = torch.randn(2, 3, size, size, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        expected = bninception(external, x.flip(1))
        assert (model(x) - expected).abs().max() <= 1e-10 * max(1.0, float(expected.abs().max()))


def test_fid_network() -> None:
    """Equal to torchvision's network with average pools that exclude the padding, and a max pool in the last block."""
    external = randomize(
        torchvision.models.inception_v3(
            weights=None, aux_logits=False, transform_input=False, init_weights=False, num_classes=1008
        )
    )
    external = external.eval().double()
    converted = from_external_state_dict(SOURCE_MODELS["fid:inception_v3"], external.state_dict(), "fid")
    model = googlenet.create("inception_v3_fid", 1008).eval().double()
    model.load_state_dict(converted.tensors)
    avg_pool2d, block = F.avg_pool2d, external.get_submodule("Mixed_7c")
    in_last_block: list[bool] = []
    block.register_forward_pre_hook(lambda *_: in_last_block.append(True))
    block.register_forward_hook(lambda *_: in_last_block.clear())

    def pool(x: Tensor, kernel_size: int, stride: int, padding: int) -> Tensor:
        if in_last_block:
            return F.max_pool2d(x, kernel_size, stride, padding)
        return avg_pool2d(x, kernel_size, stride, padding, count_include_pad=False)

    x = torch.randn(1, 3, 120, 120, dtype=torch.float64)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        unchanged = external(x)
        patch.setattr(F, "avg_pool2d", pool)
        expected = external(x)
    with torch.no_grad():
        assert (model(x) - expected).abs().max() <= 1e-10
        assert (model(x) - unchanged).abs().max() > 1e-3


@pytest.mark.parametrize("name", SOURCE_MODELS)
def test_key_maps_are_one_to_one_and_complete(name: str) -> None:
    source = SOURCE_MODELS[name]
    # The networks of Keras have no auxiliary heads.
    for aux in {False, bool(MODELS[source.model].aux_heads) and not name.startswith("keras")}:
        names = key_map(source, aux)
        with torch.device("meta"):
            model = googlenet.create(source.model, 5, 3, aux)
        assert names.keys() == model.state_dict().keys()
        assert len(set(names.values())) == len(names)


def test_number_of_tensors() -> None:
    """As in the published files: 364 and 344 tensors of torchvision's googlenet, 580 and 566 of inception_v3."""
    for name, counts in {"torchvision:googlenet": (364, 344), "timm:inception_v3": (580, 566)}.items():
        assert tuple(len(key_map(SOURCE_MODELS[name], aux)) for aux in (True, False)) == counts


def test_errors_name_keys_and_shapes() -> None:
    source = SOURCE_MODELS["torchvision:googlenet"]
    with torch.device("meta"):
        complete = torchvision.models.googlenet(weights=None, aux_logits=False, init_weights=False).state_dict()
    incomplete = {key: value for key, value in complete.items() if key != "conv2.bn.bias"}
    with pytest.raises(ValueError, match="file: does not fit the network: missing conv2.bn.bias"):
        from_external_state_dict(source, incomplete, "file")
    with pytest.raises(ValueError, match="unexpected stray"):
        from_external_state_dict(source, {**complete, "stray": torch.zeros(1)}, "file")
    # The paper's 5x5 where torchvision has a 3x3.
    with pytest.raises(ValueError, match=r"branch3.1.conv.weight is \(32, 16, 5, 5\), not \(32, 16, 3, 3\)"):
        from_external_state_dict(
            source, {**complete, "inception3a.branch3.1.conv.weight": torch.empty(32, 16, 5, 5)}, "file"
        )
    with pytest.raises(ValueError, match="missing conv1.conv.weight and fc.weight"):
        from_external_state_dict(source, {"weight": torch.zeros(1)}, "file")
    part = dict(itertools.islice(complete.items(), 40)) | {"fc.weight": complete["fc.weight"]}
    with pytest.raises(ValueError, match=r"and \d+ more"):
        from_external_state_dict(source, part, "file")
