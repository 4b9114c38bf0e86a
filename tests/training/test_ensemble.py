"""Ensembles: what their members differ in, how they are trained, taken up again, loaded and asked."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import googlenet as package
from googlenet.cli import main
from googlenet.data.sources import load_dataset
from googlenet.errors import InterruptedRunError
from googlenet.models.ensemble import Ensemble, networks_of
from googlenet.training import ensemble
from googlenet.training.ensemble import member_recipes, start_ensemble, train_ensemble
from googlenet.training.recipe import Model, Recipe
from googlenet.training.recipe_file import read_recipe

SHORT = ["--data.limit=200", "--epochs=1", "--model.width=0.25", "--data.validation=50"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, fashion_mnist_folder: Path) -> Path:
    """Two members, the second wider, trained in a moment."""
    out = tmp_path_factory.mktemp("ensemble") / "pair"
    start_ensemble(read_recipe("fashion-mnist-smoke", SHORT), out, members=2, wider=2.0)
    train_ensemble(out, progress=False)
    return out


def test_members_differ_as_in_the_paper() -> None:
    recipe = Recipe(model=Model(name="googlenet_bn"), seed=5)
    seven = member_recipes(recipe)
    assert [one.seed for one in seven] == [5, 6, 7, 8, 9, 10, 11]
    assert {one.model.seed for one in seven} == {5}, "the same initial weights"
    assert {one.split_seed for one in seven} == {5}, "the same validation pictures"
    assert [one.model.width for one in seven] == [None] * 6 + [1.25]
    plain = member_recipes(recipe, 3, None)
    assert {replace(one, seed=0) for one in plain} == {replace(plain[0], seed=0)}
    narrow = replace(recipe, model=replace(recipe.model, width=0.5, seed=9))
    assert [(one.model.width, one.model.seed) for one in member_recipes(narrow, 2, 2.0)] == [(0.5, 9), (1.0, 9)]
    for wrong, said in (
        ((recipe, 1, None), "2 members or more"),
        ((recipe, 2, 1.0), "more than 1 times"),
        ((replace(recipe, model=Model(name="inception_v3")), 2, 1.25), "inception_v3 is none: .*--wider none"),
        ((replace(recipe, model=Model(weights="runs/x")), 2, 1.25), "--wider none"),
    ):
        with pytest.raises(ValueError, match=said):
            member_recipes(*wrong)


def test_the_folder_answers_as_the_mean_of_its_members(pair: Path) -> None:
    whole = package.load(pair)
    first, second = (package.load(pair / f"member-{number}") for number in (1, 2))
    assert isinstance(whole.model, Ensemble) and not whole.model.training
    assert [sum(p.numel() for p in one.parameters()) for one in networks_of(whole.model)] == [
        sum(p.numel() for p in one.network.parameters()) for one in (first, second)
    ]
    assert first.recipe.model.width == 0.25 and second.recipe.model.width == 0.5
    x = torch.randn(5, 1, 16, 16)
    with torch.no_grad():
        mean = (first.model(x).softmax(1) + second.model(x).softmax(1)) / 2
        torch.testing.assert_close(whole.model(x).exp(), mean)
    assert whole.model.min_size == max(first.network.min_size, second.network.min_size)
    assert (whole.preprocess, whole.classes) == (first.preprocess, first.classes)
    with pytest.raises(ValueError, match="this is an ensemble: name one of its members, such as RUN/member-1"):
        _ = whole.network
    with pytest.raises(ValueError, match="too small|at least"):
        whole.model(torch.zeros(1, 1, 0, 16))
    # The figures in the folder are those of the mean, on the test pictures.
    data = load_dataset("fashion-mnist", limit=200)
    with torch.no_grad():
        right = whole.model(whole.preprocess(data.test.images)).argmax(1) == data.test.labels
    assert whole.metrics["test"]["top1"] == pytest.approx(right.double().mean().item())


def test_members_start_alike_and_see_other_batches(pair: Path) -> None:
    one, two = (package.load(pair / f"member-{number}").recipe for number in (1, 2))
    assert (one.model.seed, one.data.seed) == (two.model.seed, two.data.seed) == (0, 0)
    assert one.seed != two.seed


def test_an_interrupted_ensemble_goes_on(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "again"
    start_ensemble(read_recipe("fashion-mnist-smoke", SHORT), out, members=2, wider=2.0)
    shutil.copytree(pair / "member-1", out / "member-1")
    kept = (out / "member-1" / "model.safetensors").stat()
    fit = ensemble.fit

    def interrupted(*_: object, **__: object) -> None:
        raise InterruptedRunError("stopped at step 1 of 4")

    monkeypatch.setattr(ensemble, "fit", interrupted)
    with pytest.raises(InterruptedRunError, match=f"member 2 of 2.*ensemble train --resume {out}"):
        train_ensemble(out)
    with pytest.raises(ValueError, match=f"1 of 2 members are trained; go on with .*--resume {out}"):
        package.load(out)
    monkeypatch.setattr(ensemble, "fit", fit)
    assert main(["ensemble", "train", "--resume", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [Path(row["run"]).name for row in document["members"]] == ["member-1", "member-2"]
    assert [row["width"] for row in document["members"]] == [0.25, 0.5]
    now = (out / "member-1" / "model.safetensors").stat()
    assert (now.st_mtime_ns, now.st_ino) == (kept.st_mtime_ns, kept.st_ino), "what is finished is not touched"
    for here, there in zip(networks_of(package.load(out).model), networks_of(package.load(pair).model), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(here.parameters(), there.parameters(), strict=True))


def test_predict_and_evaluate_take_the_folder(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "shoe.png"
    pixels = load_dataset("fashion-mnist", limit=5).test.images[0, 0]
    Image.fromarray(pixels.numpy()).save(picture)
    assert main(["predict", str(pair), str(picture), "--top", "10", "--json"]) == 0
    ((answer,),) = [json.loads(capsys.readouterr().out)]
    whole = package.load(pair)
    with torch.no_grad():
        expected = whole.model(whole.preprocess(pixels[None, None])).exp()[0]
    for guess in answer["top"]:
        assert guess["probability"] == pytest.approx(expected[whole.classes.index(guess["label"])].item(), abs=1e-5)
    assert main(["evaluate", str(pair), "--limit", "100", "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    members = [str(pair / f"member-{number}") for number in (1, 2)]
    assert main(["evaluate", members[0], "--with", members[1], "--limit", "100", "--json"]) == 0
    together = json.loads(capsys.readouterr().out)
    assert alone["images"] == 100
    assert math.isclose(alone["loss"], together["loss"], rel_tol=1e-5)
    assert main(["evaluate", str(pair), "--sizes", "16,20", "--limit", "50", "--out", str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert rows[0]["macs"] > 0


def test_wrong_usage_leaves_nothing_behind(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x"
    recipe = ["fashion-mnist-smoke", "--out", str(out)]
    for arguments, code, said in (
        (["show"], 2, "ensemble train RECIPE"),
        (["train", *recipe, "--wider", "much"], 2, "a number such as 1.25, or none"),
        (["train", *recipe, "--epoch", "1"], 2, "did you mean epochs"),
        (["train", "--resume", str(pair), "--members", "3"], 2, "the folder alone"),
        (["train", *recipe, "--members", "1"], 1, "2 members or more"),
        (["train", *recipe, "--data.source", "folder:nowhere"], 1, "no such folder"),
        (["train", "fashion-mnist-smoke", "--out", str(pair)], 1, "exists already"),
        (["train", "--resume", str(tmp_path)], 1, "not an ensemble"),
    ):
        try:
            called = main(["ensemble", *arguments])
        except SystemExit as exit:
            called = int(str(exit.code))
        err = capsys.readouterr().err
        assert (called, said in err) == (code, True), err
        assert err.strip().count("\n") <= 1 and "Traceback" not in err
        assert not out.exists(), "a mistake leaves nothing behind"
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "ensemble.json").write_text("{")
    with pytest.raises(ValueError, match="ensemble.json: damaged"):
        package.load(broken)


def test_flags_may_stand_before_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ensemble", "train", "--members", "2", "no-such-recipe"]) == 1
    err = capsys.readouterr().err
    assert "no recipe is called 'no-such-recipe'" in err and err.count("\n") == 1
    assert main(["ensemble", "--help"]) == 0
    assert "--members" in capsys.readouterr().out
