"""Weights of other libraries: files, published weights by name, and the command convert."""

import json
import os
import time
from pathlib import Path
from urllib.error import URLError

import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

import googlenet
from googlenet.checkpoint.interop.key_maps import SOURCE_MODELS
from googlenet.checkpoint.interop.pretrained import (
    PREPROCESS,
    default_class_names,
    export_tensors,
    is_pretrained_name,
)
from googlenet.checkpoint.interop.weight_files import read_tensors
from googlenet.cli import main
from googlenet.config.schema import ModelConfig, Recipe
from googlenet.models.registry import MODELS


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches of this package and of torchvision."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


def test_torchvision_weights_by_name(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, the error names the file and where to store it; with the file there, torchvision's network is loaded."""

    def unreachable(*_: object, **__: object) -> None:
        raise URLError("no connection")

    monkeypatch.setattr("torch.hub.urlopen", unreachable, raising=False)
    image = cache / "photo.png"
    Image.new("RGB", (300, 200), (200, 30, 90)).save(image)
    assert main.main(["predict", "torchvision:googlenet", str(image), "--json"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    path = cache / "torch" / "hub" / "checkpoints" / "googlenet-1378be20.pth"
    assert f"store it at {path}" in message
    assert "https://download.pytorch.org/models/googlenet-1378be20.pth" in message

    external = torchvision.models.googlenet(weights=None, aux_logits=True, transform_input=True, init_weights=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(external.state_dict(), path)
    assert main.main(["predict", "torchvision:googlenet", str(image), "--json", "--top-k", "1"]) == 0
    prediction = json.loads(capsys.readouterr().out)[0]["top"][0]
    assert prediction["label"] in default_class_names(1000)

    checkpoint = googlenet.load("torchvision:googlenet")
    assert not checkpoint.model.aux_heads  # the published ones are untrained
    external.eval()
    pixels = torch.randint(0, 256, (2, 3, 256, 256), dtype=torch.uint8)
    inputs = checkpoint.preprocess(pixels)
    transforms = torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1.transforms()
    torch.testing.assert_close(checkpoint.preprocess.center_crop(pixels), pixels[:, :, 16:240, 16:240])
    with torch.no_grad():
        logits = checkpoint.model(inputs)
        torch.testing.assert_close(logits, external(transforms(pixels)), rtol=0, atol=1e-5)

        # The converted file is used when the original is gone; a newer original is converted again.
        path.rename(path.with_suffix(".moved"))
        assert torch.equal(googlenet.load("torchvision:googlenet").model(inputs), logits)
        external.fc.bias += 1.0
        torch.save(external.state_dict(), path)
        later = time.time() + 60
        os.utime(path, (later, later))
        torch.testing.assert_close(googlenet.load("torchvision:googlenet").model(inputs), logits + 1.0)


def test_timm_weights_by_name(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("timm.create_model", lambda *_, **__: (_ for _ in ()).throw(OSError("no connection")))
        with pytest.raises(ValueError, match="cannot be downloaded.*store it at") as error:
            googlenet.load("timm:inception_v4.tf_in1k")
    path = Path(str(error.value).rsplit("store it at ", 1)[1])
    external = timm.create_model("inception_v4").eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(external.state_dict(), path)
    checkpoint = googlenet.load("timm:inception_v4.tf_in1k")
    assert checkpoint.recipe.model.name == "inception_v4"
    assert checkpoint.preprocess.interpolation == "bicubic"
    x = torch.randn(1, 3, 80, 90)
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.model(x), external(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:resnet18", "torchvision:googlenet, torchvision:inception_v3"),
        ("timm:inception_v9.tf_in1k", "timm:inception_v4"),
        ("timm:inception_v4.secret", "timm has no weights"),
        ("torchvision:googlenet.V9", "it has IMAGENET1K_V1"),
    ],
)
def test_unknown_names(cache: Path, name: str, message: str) -> None:
    assert is_pretrained_name(name)
    with pytest.raises(ValueError, match=message):
        googlenet.load(name)


def test_every_source_has_a_preprocessing() -> None:
    assert PREPROCESS.keys() == SOURCE_MODELS.keys()
    for name, source in SOURCE_MODELS.items():
        assert PREPROCESS[name].size == MODELS[source.model].input_size


def test_convert_in_both_directions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    external = torchvision.models.googlenet(weights=None, aux_logits=True, init_weights=False, num_classes=4)
    file, converted, exported = (str(tmp_path / name) for name in ("external.pth", "converted.safetensors", "out.pth"))
    torch.save({"state_dict": {f"module.{key}": value for key, value in external.state_dict().items()}}, file)
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\ncow\npig\n")
    command = ["convert", file, "--from", "torchvision", "--out", converted, "--classes", str(names), "--json"]
    assert main.main(command) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["keys"] == 364
    assert document["parameters"] == sum(p.numel() for p in external.parameters())
    assert document["model"] == "googlenet_torchvision"
    assert googlenet.load(converted).classes == ("cat", "dog", "cow", "pig")

    assert main.main(["convert", converted, "--to-library", "torchvision", "--out", exported]) == 0
    tensors, expected = torch.load(exported, weights_only=True), external.state_dict()
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[key], expected[key]) for key in expected)
    assert main.main(["convert", converted, "--to-library", "torchvision", "--out", exported, "--no-aux"]) == 0
    assert len(torch.load(exported, weights_only=True)) == 344


def test_convert_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = str(tmp_path / "external.pth"), str(tmp_path / "converted.safetensors")
    external = torchvision.models.googlenet(weights=None, aux_logits=False, init_weights=False, num_classes=4)
    torch.save(external.state_dict(), file)
    assert main.main(["convert", file, "--from", "torchvision", "--out", out]) == 0
    for arguments, message in (
        ([out, "--to-library", "timm"], "can be written for torchvision:googlenet"),
        ([file, "--from", "timm"], "not the weights of"),
        ([file, "--from", "mxnet"], "torchvision, timm, fid, keras, caffe, pretrainedmodels"),
        ([str(tmp_path / "missing.pth"), "--from", "timm"], "no such file"),
    ):
        assert main.main(["convert", *arguments, "--out", str(tmp_path / "other.safetensors")]) == 1
        assert message in capsys.readouterr().err
    for arguments in (
        ["--out", "x.onnx", "--from", "timm"],
        ["--out", out],
        ["--from", "timm"],
        ["--out", out, "--to-library", "timm", "--classes", "names.txt"],
    ):
        with pytest.raises(SystemExit) as stop:
            main.main(["convert", file, *arguments])
        assert stop.value.code == 2


@pytest.mark.parametrize(
    "options", [{"stem_stride": 2}, {"pool_mode": "same"}, {"spp_levels": (1, 2, 4)}, {"width_mult": 0.5}]
)
def test_other_options_cannot_be_exported(options: dict[str, object]) -> None:
    """The other library's network would compute something else, even if all shapes are the same."""
    model = googlenet.create("googlenet_torchvision", 3, **options)
    recipe = Recipe(model=ModelConfig(name="googlenet_torchvision", **options))
    checkpoint = googlenet.Checkpoint(model, PREPROCESS["torchvision:googlenet"], ("a", "b", "c"), recipe, {})
    with pytest.raises(ValueError, match=f"network has {next(iter(options))}"):
        export_tensors(checkpoint, "torchvision")


def test_unsafe_and_damaged_files_are_not_opened(tmp_path: Path) -> None:
    file = tmp_path / "model.pth"
    torch.save(torch.nn.Linear(2, 2), file)
    with pytest.raises(ValueError, match="could execute code"):
        read_tensors(file)
    for content, message in ((b"", "damaged"), (b"PK\3\4 no", "damaged"), (b"<html><body>404", "an HTML page")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_tensors(file)
    torch.save([1, 2], file)
    with pytest.raises(ValueError, match="no state dict"):
        read_tensors(file)
