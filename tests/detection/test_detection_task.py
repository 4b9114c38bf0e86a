"""Complete detection runs: training, exact resume, evaluation, detection and error messages."""

import contextlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors.torch import load_file

import googlenet
from conftest import googlenet as command
from googlenet.checkpoint.ensemble import EnsembleInfo
from googlenet.cli.detect import image_ids
from googlenet.cli.main import main
from googlenet.config.parse import read_recipe
from googlenet.detection.data.coco import write_coco
from googlenet.detection.data.dataset import load_detection_dataset
from googlenet.detection.predict import DetectorPredictor, detect, detect_files
from googlenet.training.fit import fit
from googlenet.training.metrics_logger import read_metrics
from interruption import CHECKPOINT_EVERY_STEP, Crash, raise_at

# Options with a random state or a moving average of their own.
STATEFUL_OPTIONS = (
    "--ema_decay=0.9 --model.aux=true --size.schedule=random --size.train=[48,64] --size.eval=64 --epochs=2 "
    "--data.max_samples=16 --detection.head=faster_rcnn --detection.test_sizes=[48,64]"
).split()
SOURCE = "scenes:train=48,test=16"
SAMPLE = Path(__file__).parents[2] / "docs" / "samples" / "bag.png"


def run_json(*arguments: object, code: int = 0) -> Any:
    """Run a command, and return its JSON output."""
    result = command(*arguments, "--json")
    assert result.code == code, result.err
    return result.json


def load_detector(run: Path, *sizes: int) -> DetectorPredictor:
    checkpoint = googlenet.load(run)
    return DetectorPredictor(checkpoint.model, checkpoint.preprocess, checkpoint.classes, sizes)


@pytest.mark.slow
def test_resumed_run_has_the_same_weights_and_metrics(
    tmp_path: Path, fashion_mnist_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted, resumed, point = tmp_path / "uninterrupted", tmp_path / "resumed", "3:during"
    arguments = ["train", "scenes-smoke", *STATEFUL_OPTIONS]
    result = run_json(*arguments, "--out", uninterrupted)
    assert result.keys() >= {"run", "ap", "ap50", "seconds", "images_per_second"}
    with monkeypatch.context() as patched:
        raise_at(point, patched)
        with pytest.raises(Crash):
            main([*arguments, CHECKPOINT_EVERY_STEP, "--out", str(resumed)])
    assert torch.load(resumed / "state.pt", weights_only=True)["step"] == 2
    run_json("train", "--resume", resumed)
    expected, actual = (load_file(run / "model.safetensors") for run in (uninterrupted, resumed))
    assert expected.keys() == actual.keys()
    for key, value in expected.items():
        assert torch.equal(value, actual[key]), f"{key} differs after a crash at {point}"
    metrics = [[e for e in read_metrics(run) if e["split"] == "test"] for run in (uninterrupted, resumed)]
    for entries in metrics:
        assert len(entries) == 1
        entries[0].pop("seconds")
    assert metrics[0] == metrics[1]


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
    report = (scenes_run / "report.html").read_text()
    for text in ("Precision and recall", "Worst false negatives", "Worst false positives", "data:image/png"):
        assert text in report


def test_evaluate_repeats_the_metrics_of_the_run(scenes_run: Path) -> None:
    checkpoint = googlenet.load(scenes_run)
    metrics = run_json("evaluate", scenes_run)
    for name, value in checkpoint.metrics["test"].items():
        assert metrics[name] == pytest.approx(value, abs=1e-6), name
    assert metrics["split"] == "test" and metrics["per_class"].keys() == set(checkpoint.classes)
    arguments = ["--max-images", 5, "--split", "validation", "--sizes", "48,64"]
    limited = run_json("evaluate", scenes_run, *arguments)
    assert (limited["images"], limited["sizes"]) == (5, [48, 64])


def test_detect_draws_and_writes_json_and_coco_results(scenes_run: Path, tmp_path: Path) -> None:
    scene = load_detection_dataset(SOURCE).test[0]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.fromarray(scene.read(1)[0].numpy()).save(tmp_path / folder / "7.png")
    (tmp_path / "a" / "damaged.png").write_bytes(b"none")
    Image.fromarray(np.zeros((4000, 40), np.uint8)).save(tmp_path / "b" / "tall.png")
    folders, drawn, results_file = (tmp_path / "a", tmp_path / "b"), tmp_path / "drawn", tmp_path / "results.json"
    # Some of the detections are printed.
    scores = load_detector(scenes_run).predict([scene.read(1)])[0].scores
    threshold = round(scores[len(scores) // 2].item(), 4)
    options = ["--score-threshold", threshold, "--out", drawn, "--save-coco-json", results_file]
    images = run_json("detect", scenes_run, *folders, *options, code=1)
    first, second, tall = images
    assert first["boxes"] == second["boxes"] and first["path"] == str(tmp_path / "a" / "7.png")
    assert tall["path"].endswith("tall.png")
    expected = load_detector(scenes_run).predict([scene.read(1)])[0].above(threshold)
    assert [box["score"] for box in first["boxes"]] == pytest.approx(expected.scores.tolist(), abs=1e-4)
    torch.testing.assert_close(
        torch.tensor([box["xyxy"] for box in first["boxes"]]).view(-1, 4), expected.boxes, atol=0.01, rtol=0
    )
    assert {path.name for path in drawn.iterdir()} == {"7.png", "7-2.png", "tall.png"}
    # COCO's results have all detections, not only those that are printed.
    detector = load_detector(scenes_run)
    counts = [len(image.detections.boxes) for image in detect_files(detector, [image["path"] for image in images])]
    assert min(counts[:2]) > len(first["boxes"]) > 0, "each scene has an object"
    # Two files have the name 7.png, so the ids are the positions, of which the damaged file has one.
    ids = {str(tmp_path / "a" / "7.png"): 1, str(tmp_path / "b" / "7.png"): 3, str(tmp_path / "b" / "tall.png"): 4}
    expected_ids = [ids[image["path"]] for image, count in zip(images, counts, strict=True) for _ in range(count)]
    assert [row["image_id"] for row in json.loads(results_file.read_text())] == expected_ids


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
def test_image_ids_are_unique(paths: list[str], ids: list[int]) -> None:
    assert image_ids(paths) == ids


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "SCENES", "SAMPLE"], "use googlenet detect"),
        (["detect", "SMOKE", "SAMPLE"], "does not detect objects"),
        (["detect", "torchvision:googlenet", "SAMPLE"], "does not detect objects"),
        (["detect", "timm:inception_v3.tf_in1k", "SAMPLE"], "does not detect objects"),
        (["detect", "SCENES", "SAMPLE", "--annotations", "SAMPLE"], "--annotations requires --save-coco-json"),
        (["detect", "SCENES", "nowhere.png"], "no such file"),
        (["evaluate", "SCENES", "--crops", "10"], "--crops is for classification"),
        (["evaluate", "SCENES", "--tta-shift", "1"], "--tta-shift is for classification"),
        (["train", "scenes-smoke", "--augment.translate=2"], "augment.flip"),
        (["train", "scenes-smoke", "--detection.head=fcoss"], "did you mean fcos"),
        (["train", "fashion-mnist-smoke", "--data.source=scenes"], "a data source for task: detection"),
        (["train", "scenes-smoke", "--data.source=fashion-mnist"], "a data source for task: classification"),
        (["train", "fashion-mnist-smoke", "--detection.head_convs=3"], "detection needs task: detection"),
        (["train", "fashion-mnist-smoke", "--model.name=null", "--model.init_from=SCENES"], "detects objects"),
        (["ensemble", "train", "scenes-smoke"], "task detection does not have"),
    ],
)
def test_invalid_arguments_get_one_line(
    arguments: list[str], message: str, scenes_run: Path, smoke_run: Path, tmp_path: Path
) -> None:
    for name, path in {"SCENES": scenes_run, "SMOKE": smoke_run, "SAMPLE": SAMPLE}.items():
        arguments = [argument.replace(name, str(path)) for argument in arguments]
    out = tmp_path / "out"
    result = command(*arguments, *(["--out", out] if "train" in arguments else []))
    assert result.code in (1, 2)
    assert message in result.err and len(result.err.strip().splitlines()) == 1, result.err
    assert not out.exists()


@pytest.mark.slow
def test_init_from_a_classifier_and_from_a_detector(smoke_run: Path, scenes_run: Path, tmp_path: Path) -> None:
    """A classifier initializes the backbone, a detector with the same classes everything. The learning rate is tiny."""
    options = ["--model.name=null", "--model.width_mult=null", "--epochs=0.2", "--optimizer.weight_decay=0"]
    options.append("--optimizer.lr=1e-12")
    fit(read_recipe("scenes-smoke", [f"--model.init_from={smoke_run}", *options]), tmp_path / "a", progress=False)
    before, after = load_file(smoke_run / "model.safetensors"), load_file(tmp_path / "a" / "model.safetensors")
    key = next(key for key in before if key.startswith("trunk.inception_4a.") and key.endswith("conv.weight"))
    torch.testing.assert_close(after[f"backbone.{key}"], before[key])
    recipe = read_recipe("scenes-smoke", [f"--model.init_from={scenes_run}", *options])
    fit(recipe, tmp_path / "b", progress=False)
    before, after = load_file(scenes_run / "model.safetensors"), load_file(tmp_path / "b" / "model.safetensors")
    torch.testing.assert_close(after["head.cls_logits.weight"], before["head.cls_logits.weight"])
    with pytest.raises(ValueError, match="2 images per step"):
        fit(replace(recipe, batch_size=1), tmp_path / "c", progress=False)


def test_detections_at_several_sizes_are_merged(scenes_run: Path) -> None:
    image = load_detection_dataset(SOURCE).test[1].read(1)
    single, repeated, merged = (
        load_detector(scenes_run, *sizes).predict([image])[0] for sizes in ((64,), (64, 64), (48, 64))
    )
    assert len(single.boxes) == len(repeated.boxes)
    torch.testing.assert_close(single.boxes, repeated.boxes)
    assert (merged.scores[:-1] >= merged.scores[1:]).all()
    assert load_detector(scenes_run).predict([]) == []
    model = load_detector(scenes_run)
    assert torch.equal(detect(model.model, model.preprocess, [image])[0].boxes, single.boxes)


def write_annotations(folder: Path, ids: list[Any]) -> tuple[Path, list[str]]:
    """Write scenes with gaps in the category ids; return the annotation file and the image files."""
    samples = list(load_detection_dataset(SOURCE).test)[: len(ids)]
    path = write_coco(folder, "val", samples, load_detection_dataset(SOURCE).classes)[0]
    document = json.loads(path.read_text())
    by_id = {image["id"]: new for image, new in zip(document["images"], ids, strict=True)}
    for image in document["images"]:
        image["id"] = by_id[image["id"]]
    for item in document["annotations"]:
        item |= {"image_id": by_id[item["image_id"]], "category_id": 90 - 3 * item["category_id"]}
    for category in document["categories"]:
        category["id"] = 90 - 3 * category["id"]
    path.write_text(json.dumps(document))
    return path, [str(folder / "val" / image["file_name"]) for image in document["images"]]


def test_coco_results_have_the_metrics_of_evaluate(scenes_run: Path, tmp_path: Path) -> None:
    """pycocotools computes the AP of `evaluate` from the results of `detect`, with the ids of the annotation file."""
    annotations, files = write_annotations(tmp_path / "set", [901, 17, 4, 55, 3, 1002, 8, 12])
    results = tmp_path / "results.json"
    ids = ["--save-coco-json", results, "--annotations", annotations]
    # The printing threshold does not change the results.
    run_json("detect", scenes_run, *reversed(files), *ids, "--score-threshold", "0.9")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(str(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    by_id = {category["name"]: category["id"] for category in truth.dataset["categories"]}
    assert {row["category_id"] for row in json.loads(results.read_text())} <= set(by_id.values())
    # `evaluate` needs the classes in the order of the run, here that of the ids.
    document = json.loads(annotations.read_text())
    for item in (*document["annotations"], *document["categories"]):
        key = "category_id" if "category_id" in item else "id"
        item[key] = 100 - item[key]
    ordered = annotations.with_name("ordered.json")
    ordered.write_text(json.dumps(document))
    metrics = run_json("evaluate", scenes_run, "--data", f"coco:{ordered}", "--split", "train")
    assert metrics["images"] == 8 and metrics["ap"] > 0
    assert [metrics["ap"], metrics["ap50"]] == pytest.approx(evaluation.stats[:2].tolist(), abs=1e-6)


@pytest.mark.parametrize("ids", [["a-1", "b-2", "c-3"], [5, 500, 50]])
def test_ids_of_the_annotation_file(ids: list[Any], scenes_run: Path, tmp_path: Path) -> None:
    annotations, files = write_annotations(tmp_path / "set", ids)
    other = tmp_path / "other.png"
    other.write_bytes(SAMPLE.read_bytes())
    results = tmp_path / "results.json"
    arguments = ["--save-coco-json", results, "--annotations", annotations]
    done = command("detect", scenes_run, *files, other, *arguments)
    assert done.code == 0 and f"{other}: not listed in {annotations}" in done.err
    assert {row["image_id"] for row in json.loads(results.read_text())} == set(ids)
    repeated = command("detect", scenes_run, files[0], files[0], *arguments)
    assert repeated.code == 1 and "is also that of" in repeated.err
    document = json.loads(annotations.read_text())
    document["categories"][3]["name"] = "unknown"
    annotations.write_text(json.dumps(document))
    wrong = command("detect", scenes_run, *files, *arguments)
    assert wrong.code == 1 and "no category called" in wrong.err


def test_ensembles_do_not_detect(smoke_run: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        shutil.copytree(smoke_run, tmp_path / "ensemble" / f"member-{number}")
    EnsembleInfo(2, None, {"test": {"top1": 0.5}}).write(tmp_path / "ensemble")
    result = command("detect", tmp_path / "ensemble", SAMPLE)
    assert result.code == 1 and "does not detect objects" in result.err
    assert len(result.err.strip().splitlines()) == 1


@pytest.mark.parametrize("training", [True, False])
def test_an_error_keeps_the_mode_of_the_model(training: bool, scenes_run: Path) -> None:
    checkpoint = googlenet.load(scenes_run)
    image = torch.zeros(1, 40, 40, dtype=torch.uint8)
    for failure in ("image", "weights"):
        checkpoint.model.train(training)
        if failure == "weights":
            checkpoint.model.head.bbox_reg.bias.data.fill_(float("nan"))
        with pytest.raises((ValueError, RuntimeError, IndexError)):
            detect(checkpoint.model, checkpoint.preprocess, [image if failure == "weights" else image[0]])
        assert checkpoint.model.training is training, failure


@pytest.mark.slow
@pytest.mark.parametrize("name", ["precision_recall_curves", "_gallery", "training_curves"])
def test_a_failed_drawing_does_not_end_the_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise ValueError("mathtext <b> cannot be drawn")

    monkeypatch.setattr(f"googlenet.detection.report.{name}", fail)
    options = ["--epochs=0.2", "--data.source=scenes:train=16,test=4"]
    result = fit(read_recipe("scenes-smoke", options), tmp_path / "run", progress=False)
    assert result.metrics["test"]["images"] == 4
    page = (tmp_path / "run" / "report.html").read_text()
    assert "This drawing failed: mathtext &lt;b&gt; cannot be drawn" in page and "By class and size" in page
