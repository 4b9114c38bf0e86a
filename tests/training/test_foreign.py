"""Other people's files: published weights by name, and the verb that converts."""

import json
import os
import time
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from PIL import Image

import googlenet
from googlenet import cli
from googlenet.models.catalogue import MODELS
from googlenet.models.key_maps import ORIGINS
from googlenet.training.foreign import (
    PREPROCESS,
    class_names,
    export_tensors,
    is_published,
    read_tensors,
)
from googlenet.training.recipe import Model, Recipe


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


def test_torchvisions_published_weights_by_name(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, the line says which file to put where; with a file there, it is the network that torchvision has."""

    def unreachable(*_: object, **__: object) -> None:
        raise URLError("no connection")

    monkeypatch.setattr("torch.hub.urlopen", unreachable, raising=False)
    picture = cache / "photo.png"
    Image.new("RGB", (300, 200), (200, 30, 90)).save(picture)
    assert cli.main(["predict", "torchvision:googlenet", str(picture), "--json"]) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    place = cache / "torch" / "hub" / "checkpoints" / "googlenet-1378be20.pth"
    assert f"put it at {place}" in line and "https://download.pytorch.org/models/googlenet-1378be20.pth" in line

    theirs = torchvision.models.googlenet(weights=None, aux_logits=True, transform_input=True, init_weights=False)
    place.parent.mkdir(parents=True, exist_ok=True)
    torch.save(theirs.state_dict(), place)
    assert cli.main(["predict", "torchvision:googlenet", str(picture), "--json", "--top", "1"]) == 0
    answer = json.loads(capsys.readouterr().out)[0]["top"][0]
    assert answer["label"] in class_names(1000)

    checkpoint = googlenet.load("torchvision:googlenet")
    assert not checkpoint.model.aux_heads  # published untrained
    theirs.eval()
    pixels = torch.randint(0, 256, (2, 3, 256, 256), dtype=torch.uint8)
    transforms = torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1.transforms()
    crop = pixels[:, :, 16:240, 16:240]
    with torch.no_grad():
        wanted = theirs(transforms(pixels))
        mine = checkpoint.model(checkpoint.preprocess(pixels))
        torch.testing.assert_close(checkpoint.preprocess.square(pixels), crop)
    torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-5)

    # The converted copy answers when the file is gone; a newer file is converted again.
    inputs = checkpoint.preprocess(pixels)
    place.rename(place.with_suffix(".away"))
    with torch.no_grad():
        assert torch.equal(googlenet.load("torchvision:googlenet").model(inputs), mine)
        theirs.fc.bias += 1.0
        torch.save(theirs.state_dict(), place)
        later = time.time() + 60
        os.utime(place, (later, later))
        torch.testing.assert_close(googlenet.load("torchvision:googlenet").model(inputs), mine + 1.0)


def test_timms_published_weights_by_name(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm
    from safetensors.torch import save_file

    monkeypatch.setattr("timm.create_model", lambda *_, **__: (_ for _ in ()).throw(OSError("no connection")))
    with pytest.raises(ValueError, match="cannot be fetched.*put it at") as refused:
        googlenet.load("timm:inception_v4.tf_in1k")
    place = Path(str(refused.value).rsplit("put it at ", 1)[1])
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "cache"))
    theirs = timm.create_model("inception_v4").eval()
    place.parent.mkdir(parents=True, exist_ok=True)
    save_file(theirs.state_dict(), place)
    checkpoint = googlenet.load("timm:inception_v4.tf_in1k")
    assert checkpoint.recipe.model.name == "inception_v4"
    assert checkpoint.preprocess.interpolation == "bicubic"
    x = torch.randn(1, 3, 80, 90)
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.model(x), theirs(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("torchvision:resnet18", "torchvision:googlenet, torchvision:inception_v3"),
        ("timm:inception_v9.tf_in1k", "timm:inception_v4"),
        ("timm:inception_v4.secret", "timm has no weights"),
        ("torchvision:googlenet.V9", "it has IMAGENET1K_V1"),
    ],
)
def test_unknown_published_names(cache: Path, name: str, said: str) -> None:
    assert is_published(name)
    with pytest.raises(ValueError, match=said):
        googlenet.load(name)


def test_every_origin_has_its_pixels() -> None:
    assert PREPROCESS.keys() == ORIGINS.keys()
    for name, origin in ORIGINS.items():
        assert PREPROCESS[name].size == MODELS[origin.model].input_size


def test_convert_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = torchvision.models.googlenet(weights=None, aux_logits=True, init_weights=False, num_classes=4)
    file, ours, back = (str(tmp_path / name) for name in ("theirs.pth", "ours.safetensors", "back.pth"))
    torch.save({"state_dict": {f"module.{key}": value for key, value in theirs.state_dict().items()}}, file)
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\ncow\npig\n")
    command = ["convert", file, "--from", "torchvision", "--to", ours, "--classes", str(names), "--json"]
    assert cli.main(command) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["keys"] == 364
    assert document["parameters"] == sum(p.numel() for p in theirs.parameters())
    assert document["model"] == "googlenet_torchvision"
    checkpoint = googlenet.load(ours)
    assert checkpoint.classes == ("cat", "dog", "cow", "pig")

    assert cli.main(["convert", ours, "--as", "torchvision", "--to", back]) == 0
    returned = torch.load(back, weights_only=True)
    expected = theirs.state_dict()
    assert returned.keys() == expected.keys()
    assert all(torch.equal(returned[key], expected[key]) for key in expected)

    bare = str(tmp_path / "bare.pth")
    assert cli.main(["convert", ours, "--as", "torchvision", "--to", bare, "--no-aux"]) == 0
    assert len(torch.load(bare, weights_only=True)) == 344
    capsys.readouterr()
    assert cli.main(["convert", ours, "--as", "timm", "--to", back]) == 1
    assert "can be written for torchvision:googlenet" in capsys.readouterr().err
    assert cli.main(["convert", file, "--from", "timm", "--to", ours]) == 1
    assert "not the weights of a" in capsys.readouterr().err
    assert cli.main(["convert", file, "--from", "mxnet", "--to", ours]) == 1
    assert "torchvision, timm, fid, caffe, pretrainedmodels" in capsys.readouterr().err
    assert cli.main(["convert", str(tmp_path / "none.pth"), "--from", "timm", "--to", ours]) == 1
    assert "no such file" in capsys.readouterr().err
    for wrong in (
        ["--to", "x.onnx", "--from", "timm"],
        ["--to", ours],
        ["--from", "timm"],
        ["--to", ours, "--as", "timm", "--classes", str(names)],
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(["convert", file, *wrong])
        assert stop.value.code == 2


@pytest.mark.parametrize("variant", [{"stem_stride": 2}, {"pools": "padded"}, {"pyramid": (1, 2, 4)}, {"width": 0.5}])
def test_another_network_is_not_written_as_theirs(variant: dict[str, object]) -> None:
    """Of the same shapes or not, it would compute something else there."""
    model = googlenet.create("googlenet_torchvision", 3, **variant)
    recipe = Recipe(model=Model(name="googlenet_torchvision", **variant))
    kept = googlenet.Checkpoint(model, PREPROCESS["torchvision:googlenet"], ("a", "b", "c"), recipe, {})
    with pytest.raises(ValueError, match=f"network has {next(iter(variant))}"):
        export_tensors(kept, "torchvision")


def test_pickles_that_hold_code_are_not_opened(tmp_path: Path) -> None:
    file = tmp_path / "model.pth"
    torch.save(torch.nn.Linear(2, 2), file)
    with pytest.raises(ValueError, match="could run code"):
        read_tensors(file)
    for content, said in ((b"", "damaged"), (b"PK\3\4 no", "damaged"), (b"<html><body>404", "damaged, or not")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=said):
            read_tensors(file)
    torch.save([1, 2], file)
    with pytest.raises(ValueError, match="no state dict"):
        read_tensors(file)
