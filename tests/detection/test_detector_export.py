"""The exported detector in ONNX Runtime, against PyTorch, on scenes of different sizes."""

import json
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import googlenet
from conftest import googlenet as command
from googlenet.detection.detector import Detector
from googlenet.detection.export import BOX_BOUND, SCORE_BOUND, compare, export_detector
from googlenet.detection.predict import detect
from googlenet.detection.scenes import Scenes, generate
from googlenet.training.checkpoint import Checkpoint
from googlenet.training.recipe import Detection
from servers import without


def test_a_folder_that_needs_nothing_of_ours(scenes_run: Path, tmp_path: Path, fashion_mnist_folder: Path) -> None:
    out = tmp_path / "exported"
    told = command("export", scenes_run, "--to", "onnx", "--limit", "3", "--out", out, "--json").json
    assert told["max_error"] <= BOX_BOUND and told["max_score_error"] <= SCORE_BOUND and told["pictures"] == 3
    run = googlenet.load(scenes_run)
    session = onnxruntime.InferenceSession(out / "detector.onnx")
    assert tuple(json.loads(session.get_modelmeta().custom_metadata_map["classes"])) == run.classes
    # Scenes of many sizes, empty ones among them, and one of 40x4000.
    scenes = list(generate(Scenes(test=12, sides=(40, 200), objects=(0, 8)), "test", str(fashion_mnist_folder)))
    pictures = [scene.read(1) for scene in scenes] + [torch.zeros(1, 40, 4000, dtype=torch.uint8)]
    difference = compare(session, run.model, run.preprocess, pictures)
    assert difference.box <= BOX_BOUND and difference.score <= SCORE_BOUND and difference.pictures == 13
    boxes, scores, labels = session.run(None, {"pixels": pictures[0].numpy()})
    assert boxes.shape == (len(scores), 4) and labels.dtype == np.int64 and len(scores) > 0
    assert (np.diff(scores) <= 0).all()
    # Another network's answers are far: the comparison can fail.
    torch.manual_seed(5)
    other = Detector(
        googlenet.create("googlenet_bn", 10, 1, pools="padded", width=0.25, seed=9),
        10,
        Detection(channels=32, depth=1, threshold=0.0),
    ).eval()
    assert compare(session, other, run.preprocess, pictures[:1]).box > BOX_BOUND
    # The example, where this package is not.
    picture = tmp_path / "scene.png"
    Image.fromarray(pictures[1][0].numpy()).save(picture)
    alone = without({"googlenet", "torch", "torchvision"}, out / "detect_onnxruntime.py")
    done = subprocess.run([*alone, picture], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    mine = detect(run.model, run.preprocess, [pictures[1]])[0]
    assert [one["score"] for one in json.loads(done.stdout)] == pytest.approx(mine.scores.tolist(), abs=SCORE_BOUND)
    assert command("export", scenes_run, "--to", "onnx,ncnn", "--out", out).code == 2


@pytest.mark.slow
def test_several_sizes_in_one_file(scenes_run: Path, tmp_path: Path, fashion_mnist_folder: Path) -> None:
    """The file merges the boxes of all its sizes as `detect` does; at one size it answers otherwise."""
    out = tmp_path / "exported"
    asked = ("export", scenes_run, "--to", "onnx", "--limit", "3")
    told = command(*asked, "--sizes", "64,96", "--out", out, "--json").json
    assert told["max_error"] <= BOX_BOUND and told["max_score_error"] <= SCORE_BOUND
    run = googlenet.load(scenes_run)
    session = onnxruntime.InferenceSession(out / "detector.onnx")
    scenes = list(generate(Scenes(test=4, sides=(40, 200), objects=(0, 8)), "test", str(fashion_mnist_folder)))
    pictures = [scene.read(1) for scene in scenes] + [torch.zeros(1, 40, 400, dtype=torch.uint8)]
    difference = compare(session, run.model, run.preprocess, pictures, (64, 96))
    assert difference.box <= BOX_BOUND and difference.score <= SCORE_BOUND
    assert compare(session, run.model, run.preprocess, pictures, (64,)).box > BOX_BOUND
    refused = command(*asked, "--sizes", "64,0", "--out", tmp_path / "no")
    assert refused.code == 2 and "--sizes must be 1 or more" in refused.err
    assert not (tmp_path / "no").exists()


def test_what_cannot_be_written_gets_one_line(scenes_run: Path, smoke_run: Path, tmp_path: Path) -> None:
    checkpoint = googlenet.load(scenes_run)
    torch.manual_seed(0)
    two_stage = Detector(
        googlenet.create("googlenet_bn", 3, 1, pools="padded", width=0.25), 3, Detection(head="faster_rcnn")
    )
    for wrong in (
        googlenet.load(smoke_run),
        Checkpoint(two_stage, checkpoint.preprocess, ("a", "b", "c"), checkpoint.recipe, {}),
    ):
        with pytest.raises(ValueError, match="one-stage"):
            export_detector(wrong, tmp_path / "x.onnx", [])
    assert not list(tmp_path.iterdir())
