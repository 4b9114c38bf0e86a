"""Ensembles: differences between members, training, resuming, loading, predicting."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import googlenet as package
from googlenet.checkpoint.format import Checkpoint
from googlenet.cli.main import main
from googlenet.config.parse import read_recipe
from googlenet.config.schema import ModelConfig, Recipe
from googlenet.data.sources import LoadOptions, load_dataset
from googlenet.errors import InterruptedRunError
from googlenet.inference import loading
from googlenet.inference.loading import load_predictor
from googlenet.models.ensemble import Ensemble, get_networks
from googlenet.training import ensemble
from googlenet.training.ensemble import create_ensemble, member_recipes, train_ensemble

SHORT = ["--data.max_samples=200", "--epochs=1", "--model.width_mult=0.25", "--data.val_split=50"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, fashion_mnist_folder: Path) -> Path:
    """Two members, the second one wider."""
    out = tmp_path_factory.mktemp("ensemble") / "pair"
    create_ensemble(read_recipe("fashion-mnist-smoke", SHORT), out, num_models=2, last_width_mult=2.0)
    train_ensemble(out, progress=False)
    return out


def test_members_differ_as_in_the_paper() -> None:
    recipe = Recipe(model=ModelConfig(name="googlenet_bn"), seed=5)
    seven = member_recipes(recipe)
    assert [one.seed for one in seven] == [5, 6, 7, 8, 9, 10, 11]
    assert {one.model.seed for one in seven} == {5}, "the same initial weights"
    assert {one.split_seed for one in seven} == {5}, "the same validation images"
    assert [one.model.width_mult for one in seven] == [None] * 6 + [1.25]
    plain = member_recipes(recipe, 3, None)
    assert {replace(one, seed=0) for one in plain} == {replace(plain[0], seed=0)}
    narrow = replace(recipe, model=replace(recipe.model, width_mult=0.5, seed=9))
    assert [(one.model.width_mult, one.model.seed) for one in member_recipes(narrow, 2, 2.0)] == [(0.5, 9), (1.0, 9)]
    for arguments, message in (
        ((recipe, 1, None), "2 or more members"),
        ((recipe, 2, 1.0), "must be above 1"),
        (
            (replace(recipe, model=ModelConfig(name="inception_v3")), 2, 1.25),
            "not inception_v3; use --last-width-mult none",
        ),
        ((replace(recipe, model=ModelConfig(init_from="runs/x")), 2, 1.25), "--last-width-mult none"),
    ):
        with pytest.raises(ValueError, match=message):
            member_recipes(*arguments)


@pytest.mark.slow
def test_prediction_is_the_mean_of_the_members(pair: Path) -> None:
    average = package.load(pair)
    first, second = (package.load(pair / f"member-{number}") for number in (1, 2))
    assert isinstance(average.model, Ensemble) and not average.model.training
    assert [sum(p.numel() for p in one.parameters()) for one in get_networks(average.model)] == [
        sum(p.numel() for p in one.network.parameters()) for one in (first, second)
    ]
    assert first.recipe.model.width_mult == 0.25 and second.recipe.model.width_mult == 0.5
    x = torch.randn(5, 1, 16, 16)
    with torch.no_grad():
        mean = (first.model(x).softmax(1) + second.model(x).softmax(1)) / 2
        torch.testing.assert_close(average.model(x).exp(), mean)
    assert average.model.min_size == max(first.network.min_size, second.network.min_size)
    assert (average.preprocess, average.classes) == (first.preprocess, first.classes)
    with pytest.raises(ValueError, match="this is an ensemble: name one of its members, such as RUN/member-1"):
        _ = average.network
    with pytest.raises(ValueError, match="too small|at least"):
        average.model(torch.zeros(1, 1, 0, 16))
    # The metrics in the folder are those of the average on the test images.
    data = load_dataset("fashion-mnist", LoadOptions(max_samples=200))
    with torch.no_grad():
        right = average.model(average.preprocess(data.test.images)).argmax(1) == data.test.labels
    assert average.metrics["test"]["top1"] == pytest.approx(right.double().mean().item())


@pytest.mark.slow
def test_members_start_alike_and_see_other_batches(pair: Path) -> None:
    one, two = (package.load(pair / f"member-{number}").recipe for number in (1, 2))
    assert (one.model.seed, one.data.split_seed) == (two.model.seed, two.data.split_seed) == (0, 0)
    assert one.seed != two.seed


@pytest.mark.slow
def test_interrupted_ensemble_resumes(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "again"
    create_ensemble(read_recipe("fashion-mnist-smoke", SHORT), out, num_models=2, last_width_mult=2.0)
    shutil.copytree(pair / "member-1", out / "member-1")
    kept = (out / "member-1" / "model.safetensors").stat()
    fit = ensemble.fit

    def interrupted(*_: object, **__: object) -> None:
        raise InterruptedRunError("stopped at step 1 of 4")

    monkeypatch.setattr(ensemble, "fit", interrupted)
    with pytest.raises(InterruptedRunError, match=f"member 2 of 2.*ensemble train --resume {out}"):
        train_ensemble(out)
    with pytest.raises(ValueError, match=f"1 of 2 members are trained; continue with .*--resume {out}"):
        package.load(out)
    monkeypatch.setattr(ensemble, "fit", fit)
    assert main(["ensemble", "train", "--resume", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [Path(row["run"]).name for row in document["members"]] == ["member-1", "member-2"]
    assert [row["width_mult"] for row in document["members"]] == [0.25, 0.5]
    now = (out / "member-1" / "model.safetensors").stat()
    assert (now.st_mtime_ns, now.st_ino) == (kept.st_mtime_ns, kept.st_ino), "finished members are not changed"
    for here, there in zip(get_networks(package.load(out).model), get_networks(package.load(pair).model), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(here.parameters(), there.parameters(), strict=True))


@pytest.mark.slow
def test_predict_and_evaluate_with_the_folder(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "shoe.png"
    pixels = load_dataset("fashion-mnist", LoadOptions(max_samples=5)).test.images[0, 0]
    Image.fromarray(pixels.numpy()).save(image)
    assert main(["predict", str(pair), str(image), "--top-k", "10", "--json"]) == 0
    ((prediction,),) = [json.loads(capsys.readouterr().out)]
    average = package.load(pair)
    with torch.no_grad():
        expected = average.model(average.preprocess(pixels[None, None])).exp()[0]
    for guess in prediction["top"]:
        assert guess["probability"] == pytest.approx(expected[average.classes.index(guess["label"])].item(), abs=1e-5)
    assert main(["evaluate", str(pair), "--max-images", "100", "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    members = [str(pair / f"member-{number}") for number in (1, 2)]
    assert main(["evaluate", members[0], "--ensemble", members[1], "--max-images", "100", "--json"]) == 0
    together = json.loads(capsys.readouterr().out)
    assert alone["images"] == 100
    assert math.isclose(alone["loss"], together["loss"], rel_tol=1e-5)
    assert (
        main(["evaluate", str(pair), "--sizes", "16,20", "--max-images", "50", "--out", str(tmp_path), "--json"]) == 0
    )
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert rows[0]["macs"] > 0


def test_engines_are_compared_on_the_first_members_images(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[Path] = []

    def choose(checkpoint: Checkpoint, engine: str, threads: int | None, calibration: Path, size: int | None) -> object:
        compared.append(calibration)
        return object()

    monkeypatch.setattr(loading, "cached_engine", choose)
    load_predictor(str(pair), "auto")
    load_predictor(str(pair / "member-2"), "auto")
    assert compared == [pair / "member-1" / "calibration.npz", pair / "member-2" / "calibration.npz"]
    assert all(path.is_file() for path in compared)


def test_wrong_usage_leaves_nothing_behind(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x"
    recipe = ["fashion-mnist-smoke", "--out", str(out)]
    for arguments, code, message in (
        (["show"], 2, "ensemble train RECIPE"),
        (["train", *recipe, "--last-width-mult", "much"], 2, "a number such as 1.25, or none"),
        (["train", *recipe, "--epoch", "1"], 2, "did you mean epochs"),
        (["train", "--resume", str(pair), "--num-models", "3"], 2, "takes no other arguments"),
        (["train", *recipe, "--num-models", "1"], 1, "2 or more members"),
        (["train", *recipe, "--data.source", "folder:nowhere"], 1, "no such folder"),
        (["train", "fashion-mnist-smoke", "--out", str(pair)], 1, "exists already"),
        (["train", "--resume", str(tmp_path)], 1, "not an ensemble"),
    ):
        try:
            called = main(["ensemble", *arguments])
        except SystemExit as exit:
            called = int(str(exit.code))
        err = capsys.readouterr().err
        assert (called, message in err) == (code, True), err
        assert err.strip().count("\n") <= 1 and "Traceback" not in err
        assert not out.exists(), "nothing is left behind"
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "ensemble.json").write_text("{")
    with pytest.raises(ValueError, match="ensemble.json: damaged"):
        package.load(broken)


def test_flags_in_front_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ensemble", "train", "--num-models", "2", "no-such-recipe"]) == 1
    err = capsys.readouterr().err
    assert "unknown recipe 'no-such-recipe'" in err and err.count("\n") == 1
    assert main(["ensemble", "--help"]) == 0
    assert "--num-models" in capsys.readouterr().out
