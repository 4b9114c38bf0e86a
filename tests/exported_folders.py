"""Exported folders that several tests read."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import googlenet as googlenet_package
from conftest import BuildOnce, googlenet
from googlenet.detection.data.dataset import Sample
from googlenet.detection.predict import DetectorPredictor
from googlenet.devices import ISAS_WITHOUT_AVX512, isa_limit
from googlenet.export.exporter import ExportData, ExportOptions, QuantizationConfig, export


@pytest.fixture(scope="session")
def exported_folder(smoke_run: Path, build_once: BuildOnce) -> Path:
    """A trained gray network in three formats, with int8."""
    return build_once("exported", lambda out: export_run(smoke_run, "onnx,openvino,ncnn", out))


@pytest.fixture(scope="session")
def exported_to_all(smoke_run: Path, build_once: BuildOnce) -> Path:
    """The same in every format; torch.export takes as long as the three others together."""
    return build_once("exported-to-all", lambda out: export_run(smoke_run, "onnx,openvino,ncnn,torch", out))


def export_run(run: Path, formats: str, out: Path) -> None:
    done = googlenet(
        "export", run, "--format", formats, "--int8", "--max-accuracy-drop", "0.1", "--calibration-images", "60",
        "--max-images", "200", "--threads", "1", "--out", out, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.json["max_error"] < 1e-4
    assert {Path(file).name for file in done.json["files"]} == {path.name for path in out.iterdir()}
    assert done.json["top1"] == json.loads((out / "model.json").read_text())["accuracy"]["float32"]["top1"]


def noise(height: int, width: int, seed: int) -> torch.Tensor:
    """Return a color image of random 8 x 8 blocks, uint8 (3, height, width)."""
    blocks = np.random.default_rng(seed).integers(0, 256, (3, -(-height // 8), -(-width // 8)), dtype=np.uint8)
    return torch.from_numpy(np.kron(blocks, np.ones((1, 8, 8), np.uint8))[:, :height, :width].copy())


def samples_of(detector: DetectorPredictor, seeds: range) -> list[Sample]:
    """Return images whose objects are the detector's own best boxes, so that its AP is high."""
    images = [noise(40 + 13 * seed % 70, 50 + 29 * seed % 90, seed) for seed in seeds]
    samples = []
    for seed, image, found in zip(seeds, images, detector.predict(images), strict=True):
        boxes, labels = found.boxes[:4], found.labels[:4]
        height, width = image.shape[1:]
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
        crowd = torch.zeros(len(labels), dtype=torch.bool)
        samples.append(Sample(f"{seed}.png", seed, image, height, width, boxes, labels, crowd, areas))
    return samples


@pytest.fixture(scope="session")
def detector_data(detector_run: Path) -> ExportData:
    checkpoint = googlenet_package.load(detector_run)
    detector = DetectorPredictor(checkpoint.model, checkpoint.preprocess, checkpoint.classes)
    test, train = samples_of(detector, range(6)), samples_of(detector, range(10, 18))
    return ExportData([sample.read(3) for sample in test[:3]], test, "test of noise", train)


@pytest.fixture(scope="session")
def exported_detector(detector_run: Path, detector_data: ExportData, build_once: BuildOnce) -> Path:
    """The detector in both formats, with int8 files."""
    if isa_limit() in ISAS_WITHOUT_AVX512:
        pytest.skip(f"OpenVINO does not run detectors with ONEDNN_MAX_CPU_ISA={isa_limit()}")
    options = ExportOptions(int8=QuantizationConfig(0.9, 6), threads=1)
    return build_once(
        "exported-detector",
        lambda out: export(googlenet_package.load(detector_run), detector_data, out, ["onnx", "openvino"], options),
    )
