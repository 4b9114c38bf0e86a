"""Key maps, against the libraries' own networks with the same weights; BN-Inception against its port by hand."""

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
from googlenet.models.catalogue import MODELS
from googlenet.models.key_maps import BNINCEPTION, INCEPTION_V3_FID, ORIGINS
from googlenet.models.weights import keys, to_ours, to_theirs
from members import quickly
from rounding import assert_rounding


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights as initialised; statistics, gains and shifts as no initialisation leaves them."""
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


THEIRS: dict[str, Callable[[], nn.Module]] = {
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


# torchvision's auxiliary convolution of 5x5 needs the 17x17 map of 299 px, or near it.
TRAINING_SIZES: dict[str, list[tuple[int, int]]] = {
    "torchvision:googlenet": [(33, 33), (64, 90), (101, 77)],
    "torchvision:inception_v3": [(299, 299), (310, 299), (299, 331)],
    "timm:inception_v3": [(107, 107), (91, 122), (139, 107)],
    "timm:inception_v4": [(107, 107), (91, 122), (139, 107)],
    "timm:inception_resnet_v2": [(107, 107), (91, 122), (139, 107)],
}


def their_outputs(name: str, model: nn.Module, x: Tensor) -> list[Tensor]:
    """Logits, and auxiliary logits in depth order where the network gives some."""
    out = model(x)
    if isinstance(out, Tensor):
        return [out]
    if name == "torchvision:googlenet":
        return [out.logits, out.aux_logits1, out.aux_logits2]
    return [out.logits, out.aux_logits]


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", quickly(THEIRS, ("torchvision:googlenet", "torchvision:inception_v3")))
def test_the_same_network_in_evaluation(name: str, dtype: torch.dtype) -> None:
    """In float64 to 1e-10, that is to 1e6 roundings of 1e-16; in float32 to what float32 loses itself."""
    origin = ORIGINS[name]
    theirs = randomise(THEIRS[name]()).eval().to(dtype)
    fitting = to_ours(origin, theirs.state_dict(), name)
    ours = googlenet.create(origin.model, 11, 3, fitting.aux).eval().to(dtype)
    ours.load_state_dict(fitting.tensors)
    exact = copy.deepcopy(theirs).double()
    least = MODELS[origin.model].min_size
    with torch.no_grad():
        for height, width in ((least, least), (least + 25, least + 14), (least + 47, least + 60)):
            x = torch.randn(1, 3, height, width, dtype=dtype)
            if dtype is torch.float32:
                assert_rounding(ours(x), theirs(x), exact(x.double()))
            else:
                assert (ours(x) - theirs(x)).abs().max() <= 1e-10

    # And back: every key and every number.
    back = to_theirs(origin, ours.state_dict(), name)
    expected = theirs.state_dict()
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[key], expected[key]) for key in back)


@pytest.mark.parametrize("size", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
@pytest.mark.parametrize("name", quickly(THEIRS, ("torchvision:googlenet",)))
def test_the_same_network_in_training(name: str, size: int) -> None:
    """Outputs with the auxiliary heads', gradients of every parameter, moved statistics.

    In float64: in float32 a rounding that tips one ReLU moves single gradients by far more than rounding.
    """
    origin, dtype, tolerance = ORIGINS[name], torch.float64, 1e-10
    theirs = without_dropout(randomise(THEIRS[name]()).train().to(dtype))
    fitting = to_ours(origin, theirs.state_dict(), name)
    ours = without_dropout(googlenet.create(origin.model, 11, 3, fitting.aux).train().to(dtype))
    ours.load_state_dict(fitting.tensors)
    names = keys(origin, fitting.aux)
    for height, width in TRAINING_SIZES[name][size : size + 1]:
        x = torch.randn(2, 3, height, width, dtype=dtype)
        wanted = their_outputs(name, theirs, x)
        main, aux = ours.forward_aux(x)
        for mine, other in zip((main, *aux), wanted, strict=True):
            assert (mine - other).abs().max() <= tolerance
        theirs.zero_grad()
        ours.zero_grad()
        labels = torch.tensor([3, 8])
        sum(F.cross_entropy(out, labels) for out in wanted).backward()
        sum(F.cross_entropy(out, labels) for out in (main, *aux)).backward()  # type: ignore[union-attr]
        gradients = {key: p.grad for key, p in theirs.named_parameters()}
        # Gradients have no scale of their own: behind two pictures' normalisations they reach the thousands.
        scale = max(1.0, max(float(grad.abs().max()) for grad in gradients.values()))
        for key, parameter in ours.named_parameters():
            assert (parameter.grad - gradients[names[key]]).abs().max() <= tolerance * scale, key
        moved = theirs.state_dict()
        for key, value in ours.state_dict().items():
            assert (value - moved[names[key]]).abs().max() <= tolerance, key


def bninception(w: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The port, by its layers' names: convolution with bias, normalisation with eps 1e-5, ReLU; ceil-mode pools."""

    def unit(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = w[f"{name}.weight"]
        x = F.conv2d(x, weight, w[f"{name}.bias"], stride, weight.shape[-1] // 2)
        at = f"{name}_bn"
        x = F.batch_norm(
            x, w[f"{at}.running_mean"], w[f"{at}.running_var"], w[f"{at}.weight"], w[f"{at}.bias"], eps=1e-5
        )
        return F.relu(x)

    def chain(x: Tensor, at: str, names: list[str], stride: int = 1) -> Tensor:
        for name in names[:-1]:
            x = unit(f"inception_{at}_{name}", x)
        return unit(f"inception_{at}_{names[-1]}", x, stride)

    x = F.max_pool2d(unit("conv1_7x7_s2", x, 2), 3, 2, ceil_mode=True)
    x = F.max_pool2d(unit("conv2_3x3", unit("conv2_3x3_reduce", x)), 3, 2, ceil_mode=True)
    double = ["double_3x3_reduce", "double_3x3_1", "double_3x3_2"]
    for at in "3a 3b 3c 4a 4b 4c 4d 4e 5a 5b".split():
        if at in ("3c", "4e"):
            paths = [
                chain(x, at, ["3x3_reduce", "3x3"], 2),
                chain(x, at, double, 2),
                F.max_pool2d(x, 3, 2, ceil_mode=True),
            ]
        else:
            pooled = F.max_pool2d(x, 3, 1, 1) if at == "5b" else F.avg_pool2d(x, 3, 1, 1, ceil_mode=True)
            paths = [
                chain(x, at, ["1x1"]),
                chain(x, at, ["3x3_reduce", "3x3"]),
                chain(x, at, double),
                chain(pooled, at, ["pool_proj"]),
            ]
        x = torch.cat(paths, 1)
    return F.linear(x.mean((2, 3)), w["last_linear.weight"], w["last_linear.bias"])


@pytest.mark.parametrize("size", [224, 160, 96])
def test_bn_inception_is_its_public_port(size: int) -> None:
    """Blue first and biases in front of the normalisations there; red first and none here: the same function."""
    ours = randomise(googlenet.create("bn_inception", 11)).double().eval()
    theirs = {key: value.clone() for key, value in to_theirs(BNINCEPTION, ours.state_dict(), "ours").items()}
    generator = torch.Generator().manual_seed(5)
    for key, value in theirs.items():
        if key.endswith(".bias") and not key.endswith("_bn.bias") and "last" not in key:
            value.normal_(generator=generator)
    del theirs["conv2_3x3_bn.num_batches_tracked"]  # the published file has no counters
    ours.load_state_dict(to_ours(BNINCEPTION, theirs, "theirs").tensors)
    x = torch.randn(2, 3, size, size, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        expected = bninception(theirs, x.flip(1))
        assert (ours(x) - expected).abs().max() <= 1e-10 * max(1.0, float(expected.abs().max()))


def test_the_fid_network_excludes_the_padding_and_ends_with_a_max_pool() -> None:
    """torchvision's network with its pools exchanged by hand, as the FID's is described."""
    theirs = randomise(
        torchvision.models.inception_v3(
            weights=None, aux_logits=False, transform_input=False, init_weights=False, num_classes=1008
        )
    )
    theirs = theirs.eval().double()
    fitting = to_ours(INCEPTION_V3_FID, theirs.state_dict(), "fid")
    ours = googlenet.create("inception_v3_fid", 1008).eval().double()
    ours.load_state_dict(fitting.tensors)
    average, blocks = F.avg_pool2d, theirs._modules
    last = blocks["Mixed_7c"]
    inside = {"last": False}
    last.register_forward_pre_hook(lambda *_: inside.__setitem__("last", True))
    last.register_forward_hook(lambda *_: inside.__setitem__("last", False))

    def pool(x: Tensor, kernel_size: int, stride: int, padding: int) -> Tensor:
        if inside["last"]:
            return F.max_pool2d(x, kernel_size, stride, padding)
        return average(x, kernel_size, stride, padding, count_include_pad=False)

    x = torch.randn(1, 3, 120, 120, dtype=torch.float64)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        plain = theirs(x)
        patch.setattr(F, "avg_pool2d", pool)
        expected = theirs(x)
    with torch.no_grad():
        assert (ours(x) - expected).abs().max() <= 1e-10
        assert (ours(x) - plain).abs().max() > 1e-3


@pytest.mark.parametrize("name", ORIGINS)
def test_maps_are_one_to_one_and_complete(name: str) -> None:
    origin = ORIGINS[name]
    for aux in {False, bool(MODELS[origin.model].aux_heads)}:
        names = keys(origin, aux)
        with torch.device("meta"):
            model = googlenet.create(origin.model, 5, 3, aux)
        assert names.keys() == model.state_dict().keys()
        assert len(set(names.values())) == len(names)


def test_counts_of_tensors() -> None:
    """Facts of the public files: 364 and 344 tensors of torchvision's googlenet, 580 and 566 of inception_v3."""
    for name, counts in {"torchvision:googlenet": (364, 344), "timm:inception_v3": (580, 566)}.items():
        assert tuple(len(keys(ORIGINS[name], aux)) for aux in (True, False)) == counts


def test_a_file_that_does_not_fit_says_which_keys_and_shapes_differ() -> None:
    origin = ORIGINS["torchvision:googlenet"]
    with torch.device("meta"):
        whole = torchvision.models.googlenet(weights=None, aux_logits=False, init_weights=False).state_dict()
    lacking = {key: value for key, value in whole.items() if key != "conv2.bn.bias"}
    with pytest.raises(ValueError, match="file: does not fit the network: missing conv2.bn.bias"):
        to_ours(origin, lacking, "file")
    with pytest.raises(ValueError, match="unexpected stray"):
        to_ours(origin, {**whole, "stray": torch.zeros(1)}, "file")
    # The paper's 5x5 where torchvision has a 3x3.
    with pytest.raises(ValueError, match=r"branch3.1.conv.weight is \(32, 16, 5, 5\), not \(32, 16, 3, 3\)"):
        to_ours(origin, {**whole, "inception3a.branch3.1.conv.weight": torch.empty(32, 16, 5, 5)}, "file")
    with pytest.raises(ValueError, match="has no conv1.conv.weight and no fc.weight"):
        to_ours(origin, {"weight": torch.zeros(1)}, "file")
    many = dict(itertools.islice(whole.items(), 40)) | {"fc.weight": whole["fc.weight"]}
    with pytest.raises(ValueError, match=r"and \d+ more"):
        to_ours(origin, many, "file")
