"""Exported folders that several tests read."""

import json
from pathlib import Path

import pytest

from conftest import BuildOnce, googlenet


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
