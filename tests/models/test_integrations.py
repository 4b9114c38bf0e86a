"""Integration with timm, torchvision's feature extraction, torch.fx, export, compile and the Hugging Face Hub."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import timm.data.model_config
import timm.optim
import torch
from torch import Tensor
from torchvision.models.feature_extraction import create_feature_extractor

import googlenet
from googlenet.models.registry import MODELS
from model_selection import LARGEST, mark_slow_models
from rounding import assert_rounding

NAMES = googlenet.list_models()
# One of each structure: both kinds of auxiliary heads, nested branches, residual blocks.
SOME = ("googlenet", "bn_inception", "inception_v3", "inception_v4", "inception_resnet_v2")
# timm has networks of these names.
TIMM_NAMES = ("inception_v3", "inception_v4", "inception_resnet_v2")
REGISTERED = [name for name in NAMES if name not in TIMM_NAMES]


@pytest.fixture(autouse=True, scope="module")
def _register() -> None:
    googlenet.register_timm_models()


def image(name: str, batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, MODELS[name].min_size + 2, MODELS[name].min_size + 9)


def test_registered_names() -> None:
    assert type(timm.create_model("inception_v3", num_classes=2)).__module__ == "timm.models.inception_v3"
    for name in REGISTERED:
        assert timm.is_model(name)
        assert type(timm.create_model(name, num_classes=2)).__module__ == "googlenet.models.network"
    assert {"googlenet", "bn_inception"} <= set(timm.list_models("*inception*") + timm.list_models("googlenet*"))


@pytest.mark.slow
def test_registration_is_explicit() -> None:
    """Importing googlenet leaves timm alone; registration adds the names that timm does not have, once."""
    code = (
        "import googlenet, timm; print(timm.is_model('bn_inception'))\n"
        "names = googlenet.register_timm_models(); print(len(names), 'inception_v3' in names)\n"
        "print(timm.is_model('bn_inception'), googlenet.register_timm_models())"
    )
    out = subprocess.check_output([sys.executable, "-W", "error", "-c", code], text=True)
    assert out.split("\n")[:3] == ["False", f"{len(REGISTERED)} False", "True []"]


@pytest.mark.parametrize("name", mark_slow_models(REGISTERED))
def test_timm_contract(name: str) -> None:
    model = timm.create_model(name, num_classes=4, in_chans=1, drop_rate=0.1).eval()
    assert model.num_classes == 4
    assert model.dropout.p == 0.1
    assert model.default_cfg["input_size"] == (3, MODELS[name].input_size, MODELS[name].input_size)
    x = image(name)[:, :1]
    assert model(x).shape == (1, 4)
    modules = dict(model.named_modules())
    assert model.default_cfg["classifier"] in modules
    assert model.default_cfg["first_conv"] in modules
    assert all(info["module"] in modules for info in model.feature_info)
    bare = timm.create_model(name, num_classes=0).eval()
    assert bare(image(name)).shape == (1, bare.num_features)

    features = timm.create_model(name, features_only=True, out_indices=(1, 2, 4)).eval()
    maps = features(image(name))
    assert [m.shape[1] for m in maps] == features.feature_info.channels()
    assert features.feature_info.reduction() == [4, 8, 32]

    config = timm.data.resolve_model_data_config(model)
    assert config["mean"] == (0.5, 0.5, 0.5)
    # As timm's train.py and validate.py with --in-chans 1.
    assert timm.data.model_config.resolve_input_data_config(model, {"in_chans": 1})["input_size"][0] == 1
    with pytest.raises(ValueError, match="global_pool"):
        timm.create_model(name, global_pool="max")
    unpooled = timm.create_model(name, num_classes=0, global_pool="").eval()
    assert unpooled(image(name)).shape[:2] == (1, unpooled.num_features)
    assert unpooled(image(name)).ndim == 4


def test_layer_decay_in_timms_optimizer() -> None:
    model = timm.create_model("bn_inception", num_classes=4)
    optimizer = timm.optim.create_optimizer_v2(model, "sgd", lr=0.1, layer_decay=0.5)
    scales = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    first, middle, last = (
        scales[id(model.get_parameter(key))]
        for key in ("trunk.conv1.conv.weight", "trunk.inception_4a.conv1x1.0.conv.weight", "classifier.weight")
    )
    assert first < middle < last == 1.0


@pytest.mark.parametrize("name", mark_slow_models(SOME))
def test_torchvision_feature_extractor(name: str) -> None:
    model = googlenet.create(name, 3).eval()
    x = image(name)
    extractor = create_feature_extractor(model, {f"trunk.{info.name}": info.name for info in model.feature_info})
    with torch.no_grad():
        maps = extractor(x)
        for key, expected in model.features(x).items():
            torch.testing.assert_close(maps[key], expected)


@pytest.mark.parametrize("name", mark_slow_models(SOME))
def test_fx(name: str) -> None:
    model = googlenet.create(name, 3, aux=bool(MODELS[name].aux_heads)).eval()
    traced = torch.fx.symbolic_trace(model)
    x = image(name, 2)
    with torch.no_grad():
        torch.testing.assert_close(traced(x), model(x))


@pytest.mark.parametrize("name", mark_slow_models(SOME, (), release=SOME))
def test_export_with_dynamic_shapes(name: str) -> None:
    model = googlenet.create(name, 3).eval()
    size, batch = torch.export.Dim.AUTO, torch.export.Dim.AUTO
    # At the minimum size the last maps have one pixel, and the program would be specialized to that.
    example = torch.randn(2, 3, 180, 212)
    exact = copy.deepcopy(model).double()
    program = torch.export.export(model, (example,), dynamic_shapes=({0: batch, 2: size, 3: size},))
    with torch.no_grad():
        for x in (torch.randn(3, 3, 171, 240), torch.randn(1, 3, 200, 151)):
            assert_rounding(program.module()(x), model(x), exact(x.double()))


@pytest.mark.parametrize("name", mark_slow_models(SOME, (), release=(*LARGEST, "inception_v3")))
def test_compile_without_graph_breaks(name: str) -> None:
    """With the backend eager: graph breaks are errors, but no code is generated."""
    model = googlenet.create(name, 3, aux=bool(MODELS[name].aux_heads))
    x = image(name, 2)
    # The functions share their layers, so one network of each kind of class is enough for the other two functions.
    all_functions = name in ("googlenet", "inception_v3")
    for function in (model, model.forward_aux, model.features) if all_functions else (model.forward_aux,):
        torch.compiler.reset()
        torch.compile(function, fullgraph=True, backend="eager")(x)


@pytest.mark.parametrize(
    "name", ["googlenet", "bn_inception", pytest.param("inception_resnet_v2", marks=pytest.mark.slow)]
)
def test_save_and_load_pretrained(name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = googlenet.create(name, 5, 1, stem_stride=1, spp_levels=(1, 2), seed=3).eval()
    model.reset_classifier(4, seed=9)
    model.save_pretrained(tmp_path / "saved")
    assert {file.name for file in (tmp_path / "saved").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert load_file(tmp_path / "saved" / "model.safetensors").keys() == model.state_dict().keys()
    loaded = googlenet.Network.from_pretrained(tmp_path / "saved")
    x = torch.randn(1, 1, 40, 44)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    assert loaded.config == model.config

    with pytest.raises(ValueError, match="has no option classes"):
        googlenet.Network.from_pretrained(tmp_path / "saved", classes=5)
    headless, pruned = googlenet.create(name, 5), googlenet.create(name, 5)
    headless.reset_classifier(0)
    pruned.prune_intermediate_layers(1)
    pruned.reset_classifier(3)
    for network in (headless, pruned):
        with pytest.raises(ValueError, match="cannot be saved"):
            network.save_pretrained(tmp_path / "unsaved")
    (tmp_path / "saved" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="does not name a network"):
        googlenet.Network.from_pretrained(tmp_path / "saved")
