"""``googlenet benchmark``: engines and peers side by side, each in a process of its own."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from googlenet.cli import main
from googlenet.deployment.benchmark import Side, _row


def test_a_row_by_hand() -> None:
    """Eleven answers of a batch of 4 in 1.0 to 1.9 s, and one that took 9 s."""
    side = Side("it", {}, {16: 500}, file_bytes=7, top1=0.5, precision="int8")
    times = [1.0 + 0.1 * number for number in range(10)] + [9.0, 1.45]
    process = SimpleNamespace(side=side, threads=2, found={(16, 4): times}, first=0.25, memory=99)
    row = _row(process, (16, 4), speed=10_000.0)
    assert (row.name, row.precision, row.size, row.batch, row.threads) == ("it", "int8", 16, 4, 2)
    assert row.latency == pytest.approx(1.475) and row.p95 == 9.0
    assert row.images_per_second == pytest.approx(4 / 1.475)
    # 500 multiply-adds are 1000 operations a picture; a product does 10,000 a second.
    assert row.share == pytest.approx(4 * 1000 / 1.475 / 10_000)
    assert (row.first, row.memory, row.file_bytes, row.top1) == (0.25, 99, 7, 0.5)


@pytest.mark.slow
def test_rows_and_plot(smoke_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "speed.png"
    arguments = ["--engines", "onnxruntime", "--batches", "1,4", "--threads", "1", "--seconds", "0.02"]
    arguments += ["--rounds", "2", "--no-peers", "--limit", "100", "--out", str(plot), "--json"]
    assert main(["benchmark", str(smoke_run), *arguments]) == 0
    one, four = rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["name"], row["batch"]) for row in rows] == [
        ("ours, onnxruntime", 1),
        ("ours, onnxruntime", 4),
    ]
    assert main(["evaluate", str(smoke_run), "--limit", "100", "--json"]) == 0
    top1 = json.loads(capsys.readouterr().out)["top1"]
    for row in rows:
        assert 0 < row["latency"] <= row["p95"]
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["latency"])
        # ONNX Runtime imports nothing of PyTorch, but holds the weights.
        assert row["first"] > 0 and row["size"] == 16
        assert row["memory"] > row["file_bytes"] > 1e6
        # One picture of a hundred may be so near between two classes that rounding decides.
        assert row["top1"] == pytest.approx(top1, abs=0.0101)
    # Both shares are of the same matrix product.
    ratio = four["images_per_second"] / one["images_per_second"]
    assert four["share"] / one["share"] == pytest.approx(ratio)
    assert Image.open(plot).size[0] > 500
