"""OpenVINO Model API classifies with exported files, without code of this package."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import googlenet
from googlenet.checkpoint.format import Checkpoint, build_network
from googlenet.config.parse import recipe_from_dict
from googlenet.data.preprocess import CropMode, Preprocess
from googlenet.export.engine import open_exported
from googlenet.export.exporter import ExportData, ExportOptions, export

model_api = pytest.importorskip("model_api.models", reason="pip install --no-deps openvino-model-api")
CLASSES = ("ankle boot", "T-shirt/top", "", "fish")


@pytest.mark.slow
@pytest.mark.parametrize("crop_mode", ["center", pytest.param("squash", marks=pytest.mark.slow)])
def test_same_top_class(crop_mode: CropMode, tmp_path: Path) -> None:
    """It reads the labels, the crop and the order of the channels from the file: images come from OpenCV, in BGR."""
    import cv2

    recipe = recipe_from_dict(
        {"data": {"source": "folder:none"}, "model": {"name": "googlenet_bn", "width_mult": 0.25}}
    )
    network = build_network(recipe, len(CLASSES), 3)
    with torch.no_grad():
        network.classifier.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    preprocess = Preprocess(64, 3, (0.5,) * 3, (0.25,) * 3, crop_mode)
    checkpoint = Checkpoint(network.eval(), preprocess, CLASSES, recipe, {})
    noise = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    export(checkpoint, ExportData(noise), tmp_path / "out", ["openvino"], ExportOptions(threads=1, fixed_size=True))
    model = model_api.ClassificationModel.create_model(str(tmp_path / "out" / "model.xml"), configuration={"topk": 4})
    assert model.params.labels == ["ankle_boot", "T-shirt/top", "_", "fish"]
    rng = np.random.default_rng(0)
    for index, (height, width) in enumerate([(64, 64), (96, 150), (200, 120)]):
        path = tmp_path / f"{index}.png"
        blocks = rng.integers(0, 256, (height // 8, width // 8, 3)).astype(np.uint8)
        Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC).save(path)
        (expected,) = googlenet(
            "predict", tmp_path / "out", path, "--engine", "openvino", "--top-k", "4", "--json"
        ).json
        top = model(cv2.imread(str(path))).top_labels
        assert CLASSES[top[0].id] == expected["top"][0]["label"]
        found = {CLASSES[label.id]: label.confidence for label in top}
        # Model API resizes with another filter, which matters if the size changes.
        tolerance = 0.01 if (height, width) == (64, 64) else 0.15
        assert found == pytest.approx({row["label"]: row["probability"] for row in expected["top"]}, abs=tolerance)
    predictor = open_exported(tmp_path / "out", "openvino", 1)
    with pytest.raises(ValueError, match="this file takes 64x64"):
        predictor.predict(torch.zeros(1, 3, 70, 70, dtype=torch.uint8))
