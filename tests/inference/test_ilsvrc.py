"""``evaluate --crops`` and ``--ensemble``: the table of ILSVRC14, against predictions image by image."""

import json
import math
from functools import cache
from pathlib import Path

import pytest
import scipy.stats
import torch
from PIL import Image

import googlenet as package
from googlenet.checkpoint.format import Checkpoint, write_checkpoint
from googlenet.cli.main import main
from googlenet.config.schema import DataConfig, ModelConfig, Recipe, SizeConfig
from googlenet.data.decode import to_tensor
from googlenet.data.preprocess import Preprocess
from googlenet.evaluation.predictor import NetworkPredictor
from googlenet.inference.multi_crop import predict_multi_crop

CLASSES = ("circle", "square")
SIZES = {"googlenet_bn": 32, "googlenet_d2l": 24}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create images of several shapes in two classes, and two networks with different input sizes."""
    folder = tmp_path_factory.mktemp("ilsvrc")
    generator = torch.Generator().manual_seed(3)
    for label in CLASSES:
        (folder / "photos" / label).mkdir(parents=True)
        for number, shape in enumerate([(70, 50), (33, 47)]):
            pixels = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(pixels.numpy()).save(folder / "photos" / label / f"{number}.png")
    for seed, (name, size) in enumerate(SIZES.items()):
        model = package.create_model(name, 2, seed=seed, width_mult=0.25).eval()
        preprocess = Preprocess(size, 3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
        recipe = Recipe(
            model=ModelConfig(name=name, width_mult=0.25),
            data=DataConfig(source=f"folder:{folder / 'photos'}", val_split=0),
            size=SizeConfig(train=size),
        )
        write_checkpoint(folder / f"{name}.safetensors", Checkpoint(model, preprocess, CLASSES, recipe, {}))
    return folder


@cache
def predict(workspace: Path, name: str, num_crops: int) -> torch.Tensor:
    """Return logarithms of probabilities, computed image by image."""
    checkpoint = package.load(workspace / f"{name}.safetensors")
    preprocess = checkpoint.preprocess
    predictor = NetworkPredictor(checkpoint.model, preprocess, CLASSES)
    rows = []
    for path in sorted((workspace / "photos").glob("*/*.png")):
        pixels = to_tensor(Image.open(path), 3).unsqueeze(0)
        with torch.no_grad():
            if num_crops == 1:
                rows.append(checkpoint.model(preprocess(pixels)).double().log_softmax(1))
            else:
                rows.append(predict_multi_crop(predictor, pixels, preprocess.size, num_crops))
    return torch.cat(rows)


@pytest.mark.slow
def test_table(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = workspace / "googlenet_bn.safetensors", workspace / "googlenet_d2l.safetensors"
    command = ["evaluate", str(first), "--ensemble", str(second), "--crops"]
    assert main([*command, "1,10,144", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    labels = torch.tensor([0, 0, 1, 1])
    assert [(cell["models"], cell["crops"]) for cell in document["table"]] == [
        (models, crops) for crops in (1, 10, 144) for models in (1, 2)
    ]
    for cell in document["table"]:
        logits = predict(workspace, "googlenet_bn", cell["crops"])
        if cell["models"] == 2:
            other = predict(workspace, "googlenet_d2l", cell["crops"])
            logits = torch.stack([logits, other]).logsumexp(0) - math.log(2)
        assert cell["top1"] == (logits.argmax(1) == labels).double().mean().item()
        # The single crop is resized as uint8.
        assert cell["loss"] == pytest.approx(
            torch.nn.functional.nll_loss(logits, labels).item(), abs=1e-5 if cell["crops"] > 1 else 0.02
        )
        assert cell["interval"][0] <= cell["top1"] <= cell["interval"][1]
    assert document["top1"] == document["table"][-1]["top1"]
    assert document["gain"]["top1"] == document["top1"] - document["table"][0]["top1"]
    assert document["images"] == 4
    assert [row["crops"] for row in document["mcnemar"]] == [1, 10, 144]
    for row in document["mcnemar"][1:]:
        a, b = (predict(workspace, name, row["crops"]).argmax(1) == labels for name in SIZES)
        counts = int((a & ~b).sum()), int((b & ~a).sum())
        assert (row["run"], row["only_first"], row["only_second"]) == (str(second), *counts)
        expected = scipy.stats.binomtest(counts[0], sum(counts)).pvalue if sum(counts) else 1.0
        assert row["p"] == pytest.approx(expected)
    assert main([*command, "1,10"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["models", "1", "crop", "10", "crops"]
    assert [line.split()[0] for line in lines[2:4]] == ["1", "2"]
    assert lines[5].startswith("first and last cell: ")
    assert "images correct only by the first" in lines[5]
    assert lines[6].startswith(f"{first} and {second}, 1 crop: ")
    assert "McNemar" in lines[6]


def test_error_messages(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = workspace / "googlenet_bn.safetensors"
    for flags, message in (
        (["--crops", "7"], "1, 10 and 144"),
        (["--crops", "10", "--tta-flip"], "--crops cannot be combined with"),
        (["--crops", "10", "--tta-shift", "1"], "--crops cannot be combined with"),
        (["--sizes", "32,40", "--ensemble", str(run)], "--ensemble cannot be combined with"),
        (["--tta-flip", "--ensemble", str(run)], "--ensemble cannot be combined with"),
        (["--calibrate", "--crops", "10"], "--calibrate cannot be combined with"),
        (["--calibrate", "--split", "validation"], "evaluate another one"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(["evaluate", str(run), *flags])
        err = capsys.readouterr().err
        assert exit_.value.code == 2
        assert message in err
        assert err.count("\n") == 1
    for flags, message in (
        (["--ensemble", str(workspace / "missing")], "no such file"),
        (["--calibrate"], "has no validation split: --calibrate fits"),
    ):
        assert main(["evaluate", str(run), *flags]) == 1
        assert message in capsys.readouterr().err
