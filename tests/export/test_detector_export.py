"""Exported detectors in ONNX Runtime, compared with PyTorch on scenes of different sizes."""

import json
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image, ImageOps

import googlenet
from conftest import googlenet as command
from googlenet.checkpoint.format import Checkpoint
from googlenet.config.schema import DetectionConfig
from googlenet.detection.data.scenes import Scenes, draw_scenes
from googlenet.detection.detector import Detector
from googlenet.detection.predict import DetectorPredictor
from googlenet.export.detector import (
    MAX_BOX_ERROR,
    MAX_SCORE_ERROR,
    compare,
    exportable_detector,
    open_exported_detector,
)
from googlenet.inference.loading import load_predictor
from servers import command_without_packages


@pytest.mark.slow
def test_a_folder_that_does_not_need_this_package(scenes_run: Path, tmp_path: Path, fashion_mnist_folder: Path) -> None:
    out = tmp_path / "exported"
    document = command("export", scenes_run, "--format", "onnx", "--max-images", "3", "--out", out, "--json").json
    assert document["max_error"] <= MAX_BOX_ERROR and document["max_score_error"] <= MAX_SCORE_ERROR
    assert document["images"] == 3
    run = googlenet.load(scenes_run)
    session = onnxruntime.InferenceSession(out / "model.onnx")
    assert tuple(json.loads(session.get_modelmeta().custom_metadata_map["classes"])) == run.classes
    # Scenes of many sizes, empty ones among them, and one of 40x4000.
    scenes = draw_scenes(Scenes(test=12, sides=(40, 200), objects=(0, 8)), "test", str(fashion_mnist_folder))
    images = [scene.read(1) for scene in scenes] + [torch.zeros(1, 40, 4000, dtype=torch.uint8)]
    exported = open_exported_detector(out, "onnxruntime", 1)
    reference = DetectorPredictor(run.model, run.preprocess, run.classes)
    assert compare(exported, reference, images).within_bounds
    boxes, scores, labels = session.run(None, {"pixels": images[0].numpy()})
    assert boxes.shape == (len(scores), 4) and labels.dtype == np.int64 and len(scores) > 0
    assert (np.diff(scores) <= 0).all()
    # The detections of another network differ: the comparison can fail.
    torch.manual_seed(5)
    other = Detector(
        googlenet.create("googlenet_bn", 10, 1, pool_mode="same", width_mult=0.25, seed=9),
        10,
        DetectionConfig(neck_channels=32, head_convs=1, score_threshold=0.0),
    ).eval()
    other_reference = DetectorPredictor(other, run.preprocess, run.classes)
    assert compare(exported, other_reference, images[:1]).max_error > MAX_BOX_ERROR
    # The example, without this package.
    image = tmp_path / "scene.png"
    Image.fromarray(images[1][0].numpy()).save(image)
    example = command_without_packages({"googlenet", "torch", "torchvision"}, out / "detect_onnxruntime.py")
    done = subprocess.run([*example, image], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (expected,) = reference.predict([images[1]])
    scores = [box["score"] for box in json.loads(done.stdout)]
    assert scores == pytest.approx(expected.scores.tolist(), abs=MAX_SCORE_ERROR)
    # The example shows EXIF-rotated photographs upright, like the command.
    for orientation in (3, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(images[1][0].numpy()).save(rotated := tmp_path / f"rotated-{orientation}.png", exif=exif)
        done = subprocess.run([*example, rotated], capture_output=True, text=True, cwd=tmp_path)
        upright = ImageOps.exif_transpose(Image.open(rotated))
        (expected,) = reference.predict([torch.from_numpy(np.array(upright))[None]])
        boxes = torch.tensor([box["xyxy"] for box in json.loads(done.stdout)]).view(-1, 4)
        torch.testing.assert_close(boxes, expected.boxes, atol=MAX_BOX_ERROR, rtol=0)
    # The command detects with the exported folder as with the run.
    boxes, exported_boxes = (
        command("detect", path, image, "--score-threshold", "0.05", "--json").json[0]["boxes"]
        for path in (scenes_run, out)
    )
    assert [box["score"] for box in exported_boxes] == pytest.approx([box["score"] for box in boxes], abs=2e-4)
    assert [box["label"] for box in exported_boxes] == [box["label"] for box in boxes]
    assert load_predictor(str(out)).task == "detection"
    assert "fixed" in command("detect", out, image, "--sizes", "64").err
    assert command("predict", out, image).code == 1
    assert command("export", scenes_run, "--format", "onnx,ncnn", "--out", tmp_path / "new").code == 2


@pytest.mark.release
def test_several_sizes_in_one_file(scenes_run: Path, tmp_path: Path, fashion_mnist_folder: Path) -> None:
    """The file merges the boxes of all its sizes like `DetectorPredictor`."""
    out = tmp_path / "exported"
    arguments = ("export", scenes_run, "--format", "onnx", "--max-images", "3")
    document = command(*arguments, "--sizes", "64,96", "--out", out, "--json").json
    assert document["max_error"] <= MAX_BOX_ERROR and document["max_score_error"] <= MAX_SCORE_ERROR
    run = googlenet.load(scenes_run)
    exported = open_exported_detector(out, "onnxruntime")
    scenes = draw_scenes(Scenes(test=4, sides=(40, 200), objects=(0, 8)), "test", str(fashion_mnist_folder))
    images = [scene.read(1) for scene in scenes] + [torch.zeros(1, 40, 400, dtype=torch.uint8)]
    reference = DetectorPredictor(run.model, run.preprocess, run.classes, (64, 96))
    assert compare(exported, reference, images).within_bounds
    one_size = DetectorPredictor(run.model, run.preprocess, run.classes, (64,))
    assert compare(exported, one_size, images).max_error > MAX_BOX_ERROR
    refused = command(*arguments, "--sizes", "64,0", "--out", tmp_path / "no")
    assert refused.code == 2 and "--sizes must be 1 or more" in refused.err
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_unsupported_networks(scenes_run: Path, smoke_run: Path) -> None:
    checkpoint = googlenet.load(scenes_run)
    torch.manual_seed(0)
    two_stage = Detector(
        googlenet.create("googlenet_bn", 3, 1, pool_mode="same", width_mult=0.25), 3,
        DetectionConfig(head="faster_rcnn"),
    )  # fmt: skip
    for unsupported in (
        googlenet.load(smoke_run),
        Checkpoint(two_stage, checkpoint.preprocess, ("a", "b", "c"), checkpoint.recipe, {}),
    ):
        with pytest.raises(ValueError, match="one-stage"):
            exportable_detector(unsupported)
