"""``googlenet benchmark``: engines and peers side by side, each in a process of its own."""

import json
from pathlib import Path

import pytest
from PIL import Image

from googlenet.cli import main


def test_rows_and_plot(smoke_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "speed.png"
    arguments = ["--engines", "onnxruntime", "--batches", "1,4", "--threads", "1", "--seconds", "0.02"]
    arguments += ["--rounds", "2", "--no-peers", "--limit", "100", "--out", str(plot), "--json"]
    assert main(["benchmark", str(smoke_run), *arguments]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["name"], row["batch"]) for row in rows] == [
        ("ours, onnxruntime", 1),
        ("ours, onnxruntime", 4),
    ]
    for row in rows:
        assert 0 < row["latency"] <= row["p95"]
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["latency"])
        assert 0 < row["share"] < 2
        assert row["first"] > 0 and row["memory"] > 0 and row["size"] == 16
        assert 0 <= row["top1"] <= 1
    assert Image.open(plot).size[0] > 500
