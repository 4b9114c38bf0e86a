"""Weights files in the forms that training programs write, and what is refused."""

import argparse
import json
import shlex
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

import googlenet
from googlenet.checkpoint.format import write_checkpoint
from googlenet.checkpoint.interop.pretrained import convert_file
from googlenet.checkpoint.interop.weight_files import read_tensors, read_weights
from googlenet.cli import main

TENSORS = {"conv1.weight": torch.arange(6.0).view(2, 3), "fc.bias": torch.ones(4)}
OTHER = {key: value + 1 for key, value in TENSORS.items()}


def prefixed(prefix: str, tensors: Mapping[str, Tensor] = TENSORS) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in tensors.items()}


class Unpicklable:
    """A class of a user's program."""


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt"])
@pytest.mark.parametrize(
    ("content", "note"),
    [
        ({"model_state_dict": TENSORS, "epoch": 3, "loss": torch.tensor(0.1)}, "under model_state_dict"),
        ({"net": TENSORS, "acc": np.float64(90.5)}, "under net"),
        ({"model": {"state_dict": prefixed("_orig_mod.module.")}}, "under model / state_dict"),
        ({"state_dict": prefixed("model.net."), "hyper_parameters": {"lr": 0.1}, "callbacks": {}}, "the prefix model."),
        ({"model_ema": {"n_averaged": torch.tensor(3), **prefixed("module.")}}, "n_averaged"),
        ({"ema": {"decay": torch.tensor(0.9), "shadow": TENSORS}}, "under ema / shadow"),
        ({"model": TENSORS, "model_ema": OTHER, "optimizer": {"state": {0: {"exp": torch.ones(2)}}}}, "under model"),
        ({"arch": "x", "model": "x", "weights": TENSORS, "args": argparse.Namespace(lr=0.1)}, "under weights"),
        ({"generator": TENSORS, "step": 5}, "under generator"),
        ({"n_averaged": torch.tensor(3), **prefixed("module._orig_mod.backbone.")}, "the prefix backbone."),
        ({**TENSORS, "epoch": 5, "best": 0.5}, "not tensors: epoch, best"),
        ({"params": {key: nn.Parameter(value) for key, value in TENSORS.items()}, "path": Path("x")}, "under params"),
    ],
)
def test_wrappers_and_prefixes(
    content: dict[str, Any], note: str, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(content, path)
    tensors = read_tensors(path)
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[key], TENSORS[key]) for key in TENSORS)
    assert note in capsys.readouterr().err


def test_prefixes_of_some_keys_stay(tmp_path: Path) -> None:
    """A prefix that is not of all keys belongs to the names."""
    for content in ({**TENSORS, "module.extra": torch.ones(1)}, {**prefixed("model."), "loss.weight": torch.ones(1)}):
        torch.save({"state_dict": content}, tmp_path / "weights.pth")
        assert read_tensors(tmp_path / "weights.pth").keys() == content.keys()


@pytest.mark.parametrize("stem", ["model.safetensors", "pytorch_model.bin"])
def test_folders(stem: str, tmp_path: Path) -> None:
    """As accelerate and transformers write them, complete and in shards."""
    save = save_file if stem.endswith("safetensors") else torch.save
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    whole.mkdir()
    sharded.mkdir()
    save(prefixed("module."), whole / stem)
    (whole / "random_states_0.pkl").write_bytes(b"x")
    names = [stem.replace(".", f"-0000{number}-of-00002.") for number in (1, 2)]
    for name, (key, value) in zip(names, TENSORS.items(), strict=True):
        save({key: value}, sharded / name)
    index = {"metadata": {}, "weight_map": dict(zip(TENSORS, names, strict=True))}
    (sharded / f"{stem}.index.json").write_text(json.dumps(index))
    for path in (whole, whole / stem, sharded, sharded / f"{stem}.index.json"):
        tensors = read_tensors(path)
        assert tensors.keys() == TENSORS.keys()
        assert all(torch.equal(tensors[key], TENSORS[key]) for key in TENSORS)

    save({**TENSORS, "extra": torch.ones(1)}, sharded / names[0])
    with pytest.raises(ValueError, match="keys are not in both the index and its files, such as extra"):
        read_tensors(sharded)
    (sharded / names[1]).unlink()
    with pytest.raises(ValueError, match=f"{names[1]}: missing"):
        read_tensors(sharded)
    (sharded / f"{stem}.index.json").write_text("[]")
    with pytest.raises(ValueError, match="not the index of a sharded checkpoint"):
        read_tensors(sharded)
    for name in ("a.pth", "b.ckpt"):
        torch.save(TENSORS, tmp_path / name)
    with pytest.raises(ValueError, match=r"several weights files \(a.pth, b.ckpt\)"):
        read_tensors(tmp_path)


def test_code_is_not_executed(tmp_path: Path) -> None:
    lightning = {"pytorch-lightning_version": "2.5", "state_dict": TENSORS, "hyper_parameters": {"x": Unpicklable()}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "program.pt")
    with pytest.raises(ValueError, match="a TorchScript program"):
        read_tensors(tmp_path / "program.pt")
    for content, message in (
        (nn.Linear(2, 2), r"\(torch.nn.modules.linear.Linear\), so opening it could execute code; save its state_dict"),
        ({"model": TENSORS, "config": Unpicklable()}, r"\(test_weight_files.Unpicklable\)"),
        (lightning, r'torch.save\(torch.load\("weights.ckpt", weights_only=False\)\["state_dict"\], "weights.pth"\)'),
        ({"student": TENSORS, "teacher": OTHER}, "several state dicts, student, teacher"),
        ({"optimizer": {"state": {0: torch.ones(1)}}}, "no state dict"),
        ({}, "no state dict"),
    ):
        torch.save(content, tmp_path / "weights.ckpt")
        with pytest.raises(ValueError, match=message) as error:
            read_tensors(tmp_path / "weights.ckpt")
        assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def external(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of torchvision's GoogLeNet with 7 classes, without auxiliary heads."""
    path = tmp_path_factory.mktemp("external") / "my weights.pth"
    model = torchvision.models.googlenet(weights=None, num_classes=7, aux_logits=False, init_weights=False)
    torch.save(model.state_dict(), path)
    return path


def test_other_programs_weights_name_the_command(
    external: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every command; and the command that the message names works."""
    tensors = torch.load(external, weights_only=True)
    files = {"wrapped.ckpt": {"state_dict": prefixed("model.", tensors)}, "weights.bin": tensors}
    for name, content in files.items():
        torch.save(content, tmp_path / name)
    save_file(tensors, tmp_path / "plain.safetensors")
    (tmp_path / "folder").mkdir()
    save_file(tensors, tmp_path / "folder" / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    for path in (external, *(tmp_path / name for name in (*files, "plain.safetensors", "folder"))):
        with pytest.raises(ValueError, match="weights of another program") as error:
            googlenet.load(path)
        command = str(error.value).split("convert them first: ")[1]
        words = shlex.split(command)
        assert words[:2] == ["googlenet", "convert"]
        assert words[3:5] == ["--from", "torchvision"]
        assert main.main(words[1:]) == 0
        assert googlenet.load(words[-1]).recipe.model.name == "googlenet_torchvision"
    capsys.readouterr()
    for arguments in (
        ["predict", str(external), "x.png"],
        ["evaluate", str(external)],
        ["serve", str(external), "--port", "0"],
        ["explain", str(external), "x.png", "--out", "out"],
        ["export", str(external), "--format", "onnx", "--out", "out"],
        ["train", "fashion-mnist-fast", "--model.init_from", str(external), "--out", "run"],
    ):
        assert main.main(arguments) == 1, arguments
        error = capsys.readouterr().err
        assert f"googlenet convert '{external}' --from torchvision --out 'my weights.safetensors'" in error
        assert error.count("\n") == 1


def test_what_is_no_checkpoint_says_what_it_is(tmp_path: Path) -> None:
    torch.save({"stem.weight": torch.ones(2), "head.weight": torch.ones(2)}, tmp_path / "vit.pth")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    exported, run = tmp_path / "exported", tmp_path / "run"
    for folder, name in ((exported, "model.json"), (run, "recipe.yaml")):
        folder.mkdir()
        (folder / name).write_text("{}")
    (run / "state.pt").write_bytes(b"")
    (tmp_path / "x.caffemodel").write_bytes(b"\n\0")
    for path, message in (
        (tmp_path / "vit.pth", r"no network that googlenet convert knows \(head.weight, stem.weight"),
        (tmp_path / "module.pt", "could execute code"),
        (exported, "an exported folder; this needs the run"),
        (run / "state.pt", f"a training state; name the run: {run}"),
        (tmp_path / "x.caffemodel", "--from caffe --out x.safetensors"),
        (tmp_path / "missing.pth", "no such file"),
    ):
        with pytest.raises(ValueError, match=message):
            googlenet.load(path)


@pytest.mark.slow
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["fc.weight", "conv1.bn.running_var", "inception4a.branch1.conv.weight"])
def test_values_that_are_not_finite(external: Path, key: str, value: float, tmp_path: Path) -> None:
    """Conversion, loading and export refuse them, and name the tensor and the number of values."""
    tensors = torch.load(external, weights_only=True)
    checkpoint = convert_file(external, "torchvision")
    tensors[key].view(-1)[:3] = value
    torch.save(tensors, tmp_path / "weights.pth")
    count = f"3 of {tensors[key].numel():,} values of"
    with pytest.raises(ValueError, match=f"{count} {key} are not finite"):
        convert_file(tmp_path / "weights.pth", "torchvision")
    own = next(name for name, tensor in checkpoint.model.state_dict().items() if name.endswith(".conv.weight"))
    checkpoint.model.state_dict()[own].view(-1)[0] = value
    write_checkpoint(tmp_path / "own.safetensors", checkpoint)
    with pytest.raises(ValueError, match=f"1 of 9,408 values of {own} are not finite"):
        googlenet.load(tmp_path / "own.safetensors")
    from googlenet.export.exporter import ExportData, export

    with pytest.raises(ValueError, match="cannot be exported: 1 of 9,408"):
        export(checkpoint, ExportData(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)), tmp_path / "out", ["torch"])


def test_transform_input(external: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """torchvision's network has the same outputs with transform_input as its own, and without as the flag says."""
    theirs = torchvision.models.googlenet(
        weights=None, num_classes=7, aux_logits=False, init_weights=False, transform_input=True
    ).eval()
    theirs.load_state_dict(torch.load(external, weights_only=True))
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    out = str(tmp_path / "out.safetensors")
    for flags, transform in (([], True), (["--transform-input"], True), (["--no-transform-input"], False)):
        assert main.main(["convert", str(external), "--from", "torchvision", "--out", out, *flags]) == 0
        assert ("assumed transform_input=True" in capsys.readouterr().err) == (not flags)
        theirs.transform_input = transform
        checkpoint = googlenet.load(out)
        with torch.no_grad():
            expected = theirs((pixels / 255 - mean) / std)
            torch.testing.assert_close(
                checkpoint.model(checkpoint.preprocess.normalize(pixels.float())), expected, rtol=1e-4, atol=1e-4
            )


def test_options_of_preprocessing(external: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out.safetensors")
    command = ["convert", str(external), "--from", "torchvision", "--out", out]
    flags = "--mean 0.1,0.2,0.3 --std 0.4 --size 192 --crop-pct 0.75 --interpolation bicubic"
    assert main.main([*command, *flags.split()]) == 0
    expected = googlenet.Preprocess(192, 3, (0.1, 0.2, 0.3), (0.4,) * 3, crop_pct=0.75, interpolation="bicubic")
    checkpoint = googlenet.load(out)
    assert checkpoint.preprocess == expected
    assert checkpoint.recipe.size.train == 192
    capsys.readouterr()
    for flags, message, code in (
        ("--mean 123.7,116.3,103.5", "divide values of the range 0 to 255 by 255", 1),
        ("--std 58,57,57", "divide values of the range 0 to 255 by 255", 1),
        ("--mean 0.5,0.5", "mean needs 3 numbers, one per channel, not 2", 1),
        ("--std 0,0.5,0.5", "std positive", 1),
        ("--mean nan", "in [0, 1], not nan", 1),
        ("--crop-pct 1.5", "crop_pct must be in (0, 1]", 1),
        ("--size 9", "size must be 15 or more pixels", 1),
        ("--mean red", "expected numbers separated by commas", 2),
        ("--interpolation nearest", "bilinear", 2),
        ("--transform-input --mean 0.5", "leave out --mean", 2),
    ):
        try:
            result = main.main([*command, *flags.split()])
        except SystemExit as stop:
            result = int(str(stop.code))
        error = capsys.readouterr().err
        assert (result, error.count("\n")) == (code, 1), flags
        assert message in error
    for arguments in (["--from", "timm", "--transform-input"], ["--to-library", "torchvision", "--mean", "0.5"]):
        with pytest.raises(SystemExit):
            main.main(["convert", str(external), "--out", out, *arguments])


def test_gray_networks(tmp_path: Path) -> None:
    """A network of one channel gets the preprocessing of one channel; other numbers are refused."""
    for channels in (1, 4):
        model = torchvision.models.googlenet(weights=None, num_classes=3, aux_logits=False, init_weights=False)
        model.conv1.conv = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        torch.save(model.state_dict(), tmp_path / f"{channels}.pth")
    checkpoint = convert_file(tmp_path / "1.pth", "torchvision")
    assert (checkpoint.preprocess.channels, checkpoint.preprocess.mean) == (1, (0.5,))
    assert checkpoint.model(checkpoint.preprocess(torch.zeros(1, 1, 40, 40, dtype=torch.uint8))).shape == (1, 3)
    with pytest.raises(ValueError, match="takes 4 channels; images have 1 or 3"):
        convert_file(tmp_path / "4.pth", "torchvision")


def test_read_weights_returns_notes(external: Path) -> None:
    assert read_weights(external).notes == []


@pytest.mark.parametrize("name", ["m.safetensors", "m.pth", "m.bin", "m.h5", "m.keras", "m.caffemodel"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a Git LFS pointer .* git lfs pull"),
        (b"<!doctype html><title>Google Drive - Quota exceeded</title>", "an HTML page .* download it again"),
        (b"", "an empty file.* download it again"),
    ],
)
def test_weights_that_were_not_downloaded(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    for load in (googlenet.load, read_weights):
        with pytest.raises(ValueError, match=rf"^{tmp_path / name}: .*{reason}$"):
            load(tmp_path / name)


def test_shards_that_were_not_downloaded(tmp_path: Path) -> None:
    (tmp_path / "m.index.json").write_text('{"weight_map": {"a": "1.safetensors"}}')
    (tmp_path / "1.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"1.safetensors: a Git LFS pointer"):
        read_weights(tmp_path / "m.index.json")
