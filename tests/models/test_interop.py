"""The family inside other people's programs: timm, torchvision's extractor, fx, export, compile, the hub."""

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
from googlenet.models.catalogue import MODELS
from members import quickly
from rounding import assert_rounding

NAMES = googlenet.list_models()
# One of each structure: side heads with and without convolutions, forks in forks, residual blocks.
SOME = ("googlenet", "googlenet_bn", "bn_inception", "inception_v3", "inception_v4", "inception_resnet_v2")
OURS = [name for name in NAMES if name not in ("inception_v3", "inception_v4", "inception_resnet_v2")]


def picture(name: str, batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, MODELS[name].min_size + 2, MODELS[name].min_size + 9)


def test_timm_keeps_its_own_and_gets_the_rest() -> None:
    assert type(timm.create_model("inception_v3", num_classes=2)).__module__ == "timm.models.inception_v3"
    for name in OURS:
        assert timm.is_model(name)
        assert type(timm.create_model(name, num_classes=2)).__module__ == "googlenet.models.network"
    assert {"googlenet", "bn_inception"} <= set(timm.list_models("*inception*") + timm.list_models("googlenet*"))


@pytest.mark.parametrize("first", ["googlenet", pytest.param("timm", marks=pytest.mark.slow)])
def test_either_may_be_imported_first(first: str) -> None:
    second = {"googlenet": "timm", "timm": "googlenet"}[first]
    # A library that only looks whether timm is there must not use up the registration.
    look = "importlib.util.find_spec('timm')"
    ask = "timm.is_model('bn_inception'), timm.is_model('googlenet_d2l')"
    code = f"import {first}, importlib.util; {look}; import {second}, timm; print({ask})"
    said = subprocess.check_output([sys.executable, "-W", "error", "-c", code], text=True)
    assert said == "True True\n"


@pytest.mark.parametrize("name", quickly(OURS))
def test_timm_contract(name: str) -> None:
    model = timm.create_model(name, num_classes=4, in_chans=1, drop_rate=0.1).eval()
    assert model.num_classes == 4
    assert model.dropout.p == 0.1
    assert model.default_cfg["input_size"] == (3, MODELS[name].input_size, MODELS[name].input_size)
    x = picture(name)[:, :1]
    assert model(x).shape == (1, 4)
    modules = dict(model.named_modules())
    assert model.default_cfg["classifier"] in modules
    assert model.default_cfg["first_conv"] in modules
    assert all(info["module"] in modules for info in model.feature_info)
    bare = timm.create_model(name, num_classes=0).eval()
    assert bare(picture(name)).shape == (1, bare.num_features)

    features = timm.create_model(name, features_only=True, out_indices=(1, 2, 4)).eval()
    maps = features(picture(name))
    assert [m.shape[1] for m in maps] == features.feature_info.channels()
    assert features.feature_info.reduction() == [4, 8, 32]

    config = timm.data.resolve_model_data_config(model)
    assert config["mean"] == (0.5, 0.5, 0.5)
    # What timm's train and validate ask, with --in-chans 1.
    assert timm.data.model_config.resolve_input_data_config(model, {"in_chans": 1})["input_size"][0] == 1
    with pytest.raises(ValueError, match="global_pool"):
        timm.create_model(name, global_pool="max")
    unpooled = timm.create_model(name, num_classes=0, global_pool="").eval()
    assert unpooled(picture(name)).shape[:2] == (1, unpooled.num_features)
    assert unpooled(picture(name)).ndim == 4


def test_timms_optimiser_finds_layers_in_depth_order() -> None:
    model = timm.create_model("bn_inception", num_classes=4)
    optimiser = timm.optim.create_optimizer_v2(model, "sgd", lr=0.1, layer_decay=0.5)
    scales = {id(p): group["lr_scale"] for group in optimiser.param_groups for p in group["params"]}
    stem, middle, head = (
        scales[id(model.get_parameter(key))]
        for key in ("trunk.conv1.conv.weight", "trunk.inception_4a.conv1x1.0.conv.weight", "classifier.weight")
    )
    assert stem < middle < head == 1.0


@pytest.mark.parametrize("name", quickly(SOME))
def test_torchvisions_feature_extractor(name: str) -> None:
    model = googlenet.create(name, 3).eval()
    x = picture(name)
    stages = {f"trunk.{stage.name}": stage.name for stage in model.feature_info}
    # A block's last node is found by its module's name, as torchvision does for its own networks.
    extractor = create_feature_extractor(model, stages)
    with torch.no_grad():
        maps = extractor(x)
        for key, expected in model.features(x).items():
            torch.testing.assert_close(maps[key], expected)


@pytest.mark.parametrize("name", quickly(SOME))
def test_fx(name: str) -> None:
    model = googlenet.create(name, 3, aux=bool(MODELS[name].aux_heads)).eval()
    traced = torch.fx.symbolic_trace(model)
    x = picture(name, 2)
    with torch.no_grad():
        torch.testing.assert_close(traced(x), model(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_export_with_free_batch_and_size(name: str) -> None:
    model = googlenet.create(name, 3).eval()
    size, batch = torch.export.Dim.AUTO, torch.export.Dim.AUTO
    # Far from the least size, where the last maps are of one pixel and the program would be for those alone.
    example = torch.randn(2, 3, 180, 212)
    exact = copy.deepcopy(model).double()
    program = torch.export.export(model, (example,), dynamic_shapes=({0: batch, 2: size, 3: size},))
    with torch.no_grad():
        for x in (torch.randn(3, 3, 171, 240), torch.randn(1, 3, 200, 151)):
            assert_rounding(program.module()(x), model(x), exact(x.double()))


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_compile_finds_one_graph(name: str) -> None:
    """Traced whole and run as it stands: what a graph break would be is an error. (No compiler is started.)"""
    model = googlenet.create(name, 3, aux=bool(MODELS[name].aux_heads))
    x = picture(name, 2)
    deep = name in ("inception_v4", "inception_resnet_v2")
    for part in (model.forward_aux,) if deep else (model, model.forward_aux, model.features):
        torch.compiler.reset()
        torch.compile(part, fullgraph=True, backend="eager")(x)


@pytest.mark.parametrize(
    "name", ["googlenet", "bn_inception", pytest.param("inception_resnet_v2", marks=pytest.mark.slow)]
)
def test_the_hubs_folder(name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = googlenet.create(name, 5, 1, stem_stride=1, pyramid=(1, 2), seed=3).eval()
    model.reset_head(4, seed=9)
    model.save_pretrained(tmp_path / "kept")
    assert {file.name for file in (tmp_path / "kept").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert load_file(tmp_path / "kept" / "model.safetensors").keys() == model.state_dict().keys()
    again = googlenet.Network.from_pretrained(tmp_path / "kept")
    x = torch.randn(1, 1, 40, 44)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    assert again.arguments == model.arguments

    with pytest.raises(ValueError, match="takes no classes"):
        googlenet.Network.from_pretrained(tmp_path / "kept", classes=5)
    for headless in (lambda m: m.reset_classifier(0), lambda m: m.prune_intermediate_layers(1)):
        bare = googlenet.create(name, 5)
        headless(bare)
        with pytest.raises(ValueError, match="reset_head first"):
            bare.save_pretrained(tmp_path / "bare")
    (tmp_path / "kept" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="does not name a network"):
        googlenet.Network.from_pretrained(tmp_path / "kept")
