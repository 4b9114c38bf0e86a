"""``evaluate --crops`` and ``--with``: the paper's table, from one run and several, against the parts by hand."""

import json
import math
from functools import cache
from pathlib import Path

import pytest
import scipy.stats
import torch
from PIL import Image

import googlenet as package
from googlenet.cli import main
from googlenet.data.pictures import to_tensor
from googlenet.data.preprocess import Preprocess
from googlenet.evaluation.crops import answer
from googlenet.evaluation.protocol import combine
from googlenet.training.checkpoint import Checkpoint, save_weights
from googlenet.training.recipe import Data, Model, Recipe, Size

CLASSES = ("round", "square")
NAMES = ("googlenet_bn", "googlenet_d2l")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several shapes in two classes, and two networks of different kinds and sizes for them."""
    desk = tmp_path_factory.mktemp("protocol")
    generator = torch.Generator().manual_seed(3)
    for label in CLASSES:
        (desk / "photos" / label).mkdir(parents=True)
        for number, shape in enumerate([(70, 50), (33, 47)]):
            pixels = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(pixels.numpy()).save(desk / "photos" / label / f"{number}.png")
    for seed, (name, size, width) in enumerate([("googlenet_bn", 32, 0.25), ("googlenet_d2l", 24, 0.25)]):
        model = package.create(name, 2, seed=seed, **({"width": width} if width else {})).eval()
        preprocess = Preprocess(size, 3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
        recipe = Recipe(
            model=Model(name=name, width=width),
            data=Data(source=f"folder:{desk / 'photos'}", validation=0),
            size=Size(train=size),
        )
        save_weights(desk / f"{name}.safetensors", Checkpoint(model, preprocess, CLASSES, recipe, {}))
    return desk


@cache
def by_hand(desk: Path, name: str, crops: int) -> torch.Tensor:
    """Logarithms of probabilities, picture by picture."""
    kept = package.load(desk / f"{name}.safetensors")
    rows = []
    for path in sorted((desk / "photos").glob("*/*.png")):
        pixels = to_tensor(Image.open(path), 3).unsqueeze(0)
        with torch.no_grad():
            if crops == 1:
                rows.append(kept.model(kept.preprocess(pixels)).double().log_softmax(1))
            else:
                rows.append(answer(kept.model, pixels, kept.preprocess, kept.preprocess.size, crops))
    return torch.cat(rows)


def test_the_papers_table(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = desk / "googlenet_bn.safetensors", desk / "googlenet_d2l.safetensors"
    asked = ["evaluate", str(first), "--with", str(second), "--crops"]
    assert main([*asked, "1,10,144", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    labels = torch.tensor([0, 0, 1, 1])
    assert [(c["models"], c["crops"]) for c in found["table"]] == [
        (1, 1),
        (2, 1),
        (1, 10),
        (2, 10),
        (1, 144),
        (2, 144),
    ]
    for row in found["table"]:
        logits = by_hand(desk, "googlenet_bn", row["crops"])
        if row["models"] == 2:
            other = by_hand(desk, "googlenet_d2l", row["crops"])
            logits = torch.stack([logits, other]).logsumexp(0) - math.log(2)
        assert row["top1"] == (logits.argmax(1) == labels).double().mean().item()
        # The one crop is of pictures that were resized as bytes.
        assert row["loss"] == pytest.approx(
            torch.nn.functional.nll_loss(logits, labels).item(), abs=1e-5 if row["crops"] > 1 else 0.02
        )
        assert row["interval"][0] <= row["top1"] <= row["interval"][1]
    assert found["top1"] == found["table"][-1]["top1"]
    right = {name: {crops: by_hand(desk, name, crops).argmax(1) == labels for crops in (10, 144)} for name in NAMES}
    for row in found["mcnemar"][1:]:
        one, other = right["googlenet_bn"][row["crops"]], right["googlenet_d2l"][row["crops"]]
        pair = int((one & ~other).sum()), int((other & ~one).sum())
        assert (row["run"], row["only_first"], row["only_second"]) == (str(second), *pair)
        assert row["p"] == pytest.approx(scipy.stats.binomtest(pair[0], sum(pair)).pvalue if sum(pair) else 1.0)
    assert [row["crops"] for row in found["mcnemar"]] == [1, 10, 144]
    assert found["gain"]["top1"] == found["top1"] - found["table"][0]["top1"]
    assert found["images"] == 4
    assert main([*asked, "1,10"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["models", "1", "crop", "10", "crops"]
    assert [line.split()[0] for line in lines[2:4]] == ["1", "2"]
    assert lines[5].startswith("the first cell against the last: only the first is right on ")
    assert lines[6].startswith(f"{first} against {second}, 1 crop: ") and "McNemar" in lines[6]


@pytest.mark.parametrize("how", ["probability", "logit", "max"])
def test_combining(how: str) -> None:
    answers = [torch.randn(5, 3) for _ in range(3)]
    each = torch.stack(answers).double()
    expected = {
        "probability": each.softmax(-1).mean(0),
        "logit": each.mean(0).softmax(-1),
        "max": each.softmax(-1).amax(0) / each.softmax(-1).amax(0).sum(-1, keepdim=True),
    }[how]
    torch.testing.assert_close(combine(answers, how).exp(), expected)


def test_wrong_usage(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = desk / "googlenet_bn.safetensors"
    for flags, said in (
        (["--crops", "7"], "1, 10 and 144"),
        (["--crops", "10", "--flip"], "leave --sizes, --shift and --flip off"),
        (["--crops", "10", "--shift", "1"], "leave --sizes, --shift and --flip off"),
        (["--sizes", "32,40", "--with", str(run)], "--size or --crops"),
        (["--flip", "--with", str(run)], "--size or --crops"),
        (["--calibrate", "--crops", "10"], "leave --crops and --with off"),
        (["--calibrate", "--split", "validation"], "measure on another"),
    ):
        with pytest.raises(SystemExit) as left:
            main(["evaluate", str(run), *flags])
        err = capsys.readouterr().err
        assert left.value.code == 2 and said in err and err.count("\n") == 1
    for flags, said in (
        (["--with", str(desk / "nowhere")], "no such file"),
        (["--calibrate"], "has no validation part to fit a temperature to"),
    ):
        assert main(["evaluate", str(run), *flags]) == 1
        assert said in capsys.readouterr().err
