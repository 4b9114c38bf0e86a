"""Detection as a run like any other: the same loop, the same folder, the same verbs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import googlenet
from googlenet.cli import main
from googlenet.detection.predict import detect
from googlenet.detection.sources import load_detection
from googlenet.training.loop import fit
from googlenet.training.recipe_file import read_recipe
from googlenet.training.record import read_metrics
from googlenet.verbs.detect import image_ids
from interruption import EVERY_STEP, Died, raise_at

# Everything that has a random state or a moving average of its own.
EVERYTHING = (
    "--ema=0.9 --model.aux=true --size.kind=random --size.train=[48,64] --size.test=64 --epochs=2 "
    "--data.limit=16 --detection.head=faster_rcnn --detection.sizes=[48,64]"
).split()


def spoken(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> Any:
    """The JSON that a verb prints."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == code
    return json.loads(capsys.readouterr().out)


def steps_done(run: Path) -> int:
    return int(torch.load(run / "state.pt", weights_only=True)["step"])


def test_dead_and_resumed_run_ends_with_the_same_weights(
    tmp_path: Path,
    fashion_mnist_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, point = tmp_path / "dead", "3:during"
    flags = ["train", "scenes-smoke", *EVERYTHING]
    answer = spoken(capsys, *flags, "--out", tmp_path / "whole", "--json")
    assert answer.keys() >= {"run", "ap", "ap50", "seconds", "images_per_second"}
    with monkeypatch.context() as patched:
        raise_at(point, patched)
        with pytest.raises(Died):
            main([*flags, EVERY_STEP, "--out", str(run)])
    assert steps_done(run) == 2
    spoken(capsys, "train", "--resume", run, "--json")
    one, other = (load_file(place / "model.safetensors") for place in (tmp_path / "whole", run))
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), f"{key} differs after a death at {point}"
    finals = [[e for e in read_metrics(place) if e["split"] == "test"] for place in (tmp_path / "whole", run)]
    for final in finals:
        assert len(final) == 1
        final[0].pop("seconds")
    assert finals[0] == finals[1]


def test_run_folder_and_checkpoint(scenes_run: Path) -> None:
    names = {"recipe.yaml", "model.safetensors", "state.pt", "metrics.jsonl", "report.html", "environment.json"}
    assert names <= {path.name for path in scenes_run.iterdir()}
    checkpoint = googlenet.load(scenes_run)
    assert checkpoint.recipe.task == "detection"
    assert (checkpoint.classes[0], checkpoint.preprocess.size) == ("T-shirt/top", 64)
    assert not checkpoint.model.training
    entry = next(e for e in read_metrics(scenes_run) if e["split"] == "train")
    assert {"loss", "accuracy", "learning_rate", "size", "images_per_second"} <= entry.keys()
    assert sum(e["split"] == "test" for e in read_metrics(scenes_run)) == 1
    page = (scenes_run / "report.html").read_text()
    for said in ("Precision and recall", "Worst misses", "Worst false alarms", "data:image/png"):
        assert said in page


def test_loaded_weights_give_the_recorded_figures(scenes_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = googlenet.load(scenes_run)
    measured = spoken(capsys, "evaluate", scenes_run, "--json")
    for name, value in checkpoint.metrics["test"].items():
        assert measured[name] == pytest.approx(value, abs=1e-6), name
    assert measured["split"] == "test" and measured["per_class"].keys() == set(checkpoint.classes)
    flags = ["--limit", 5, "--split", "validation", "--sizes", "48,64", "--json"]
    limited = spoken(capsys, "evaluate", scenes_run, *flags)
    assert (limited["images"], limited["sizes"]) == (5, [48, 64])


def test_detect_draws_and_answers_in_json_and_cocos_form(
    scenes_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = load_detection("scenes:train=48,test=16").test[0]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.fromarray(scene.read(1)[0].numpy()).save(tmp_path / folder / "7.png")
    (tmp_path / "a" / "broken.png").write_bytes(b"none")
    Image.fromarray(np.zeros((4000, 40), np.uint8)).save(tmp_path / "b" / "tall.png")
    flags = ["--score", "0.01", "--out", tmp_path / "drawn", "--coco", tmp_path / "found.json", "--json"]
    answer = spoken(capsys, "detect", scenes_run, tmp_path / "a", tmp_path / "b", *flags, code=1)
    first, second, tall = answer
    assert first["boxes"] == second["boxes"] and first["path"] == str(tmp_path / "a" / "7.png")
    assert tall["path"].endswith("tall.png")
    mine = detect(*_loaded(scenes_run), [scene.read(1)])[0].above(0.01)
    assert [box["score"] for box in first["boxes"]] == pytest.approx(mine.scores.tolist(), abs=1e-4)
    torch.testing.assert_close(
        torch.tensor([box["xyxy"] for box in first["boxes"]]).view(-1, 4), mine.boxes, atol=0.01, rtol=0
    )
    assert {path.name for path in (tmp_path / "drawn").iterdir()} == {"7.png", "7-2.png", "tall.png"}
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found) == sum(len(one["boxes"]) for one in answer)
    boxes = [len(one["boxes"]) for one in answer]
    assert min(boxes[:2]) > 0, "each scene has something in it"
    # Two files are called 7.png, so no name is an id: places are, and the broken file keeps its own.
    places = {str(tmp_path / "a" / "7.png"): 1, str(tmp_path / "b" / "7.png"): 3, str(tmp_path / "b" / "tall.png"): 4}
    expected = [places[one["path"]] for one, count in zip(answer, boxes, strict=True) for _ in range(count)]
    assert [one["image_id"] for one in found] == expected


@pytest.mark.parametrize(
    ("paths", "ids"),
    [
        (["a/000007.jpg", "b/12.png"], [7, 12]),
        (["a/7.jpg", "b/7.jpg"], [1, 2]),
        (["a/2.jpg", "a/one.jpg"], [1, 2]),
        (["a/7.jpg", "a/007.png"], [1, 2]),
        ([], []),
    ],
)
def test_image_ids_are_never_shared(paths: list[str], ids: list[int]) -> None:
    assert image_ids(paths) == ids


def _loaded(run: Path) -> tuple[Any, Any]:
    checkpoint = googlenet.load(run)
    return checkpoint.model, checkpoint.preprocess


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["predict", "SCENES", "SAMPLE"], "use googlenet detect"),
        (["detect", "SMOKE", "SAMPLE"], "does not find objects"),
        (["detect", "SCENES", "nowhere.png"], "no such file"),
        (["evaluate", "SCENES", "--crops", "10"], "--crops is for classification"),
        (["evaluate", "SCENES", "--shift", "1"], "--shift is for classification"),
        (["train", "scenes-smoke", "--augment.shift=2"], "augment.flip"),
        (["train", "fashion-mnist-smoke", "--data.source=scenes"], "is for task: detection"),
        (["train", "scenes-smoke", "--data.source=fashion-mnist"], "unknown source of boxes"),
        (["train", "fashion-mnist-smoke", "--detection.depth=3"], "detection needs task: detection"),
        (["train", "fashion-mnist-smoke", "--model.name=null", "--model.weights=SCENES"], "finds objects"),
        (["ensemble", "train", "scenes-smoke"], "has none to average"),
    ],
)
def test_the_wrong_words_get_one_line(
    words: list[str], said: str, scenes_run: Path, smoke_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {"SCENES": scenes_run, "SMOKE": smoke_run}
    known["SAMPLE"] = Path(__file__).parents[2] / "docs" / "samples" / "bag.png"
    for name, place in known.items():
        words = [word.replace(name, str(place)) for word in words]
    out = tmp_path / "none"
    try:
        code = main([*words, *(["--out", str(out)] if "train" in words else [])])
    except SystemExit as leaving:
        code = int(str(leaving.code))
    told = capsys.readouterr().err
    assert code in (1, 2)
    assert said in told and len(told.strip().splitlines()) == 1, told
    assert not out.exists()


def test_starts_from_a_classifier_and_from_a_detector(smoke_run: Path, scenes_run: Path, tmp_path: Path) -> None:
    """A classifier's backbone; all of a detector of the same classes. A rate of nothing leaves both as they are."""
    flags = [f"--model.weights={smoke_run}", "--model.name=null", "--model.width=null", "--epochs=0.2"]
    still = ["--optimiser.lr=1e-12", "--optimiser.weight_decay=0"]
    fit(read_recipe("scenes-smoke", [*flags, *still]), tmp_path / "a", progress=False)
    before, after = load_file(smoke_run / "model.safetensors"), load_file(tmp_path / "a" / "model.safetensors")
    key = "trunk.inception_4a.conv3x3.conv.weight"
    torch.testing.assert_close(after[f"backbone.{key}"], before[key])
    flags = [f"--model.weights={scenes_run}", "--model.name=null", "--model.width=null", "--epochs=0.2"]
    recipe = read_recipe("scenes-smoke", [*flags, *still])
    fit(recipe, tmp_path / "b", progress=False)
    before, after = load_file(scenes_run / "model.safetensors"), load_file(tmp_path / "b" / "model.safetensors")
    torch.testing.assert_close(after["head.classes.weight"], before["head.classes.weight"])
    with pytest.raises(ValueError, match="2 pictures a step"):
        fit(replace(recipe, batch_size=1), tmp_path / "c", progress=False)


def test_many_sizes_are_merged(scenes_run: Path) -> None:
    model, preprocess = _loaded(scenes_run)
    picture = load_detection("scenes:train=48,test=16").test[1].read(1)
    single, same, both = (detect(model, preprocess, [picture], sizes)[0] for sizes in ((64,), (64, 64), (48, 64)))
    assert len(single.boxes) == len(same.boxes)
    torch.testing.assert_close(single.boxes, same.boxes)
    assert (both.scores[:-1] >= both.scores[1:]).all()
    assert detect(model, preprocess, []) == []
