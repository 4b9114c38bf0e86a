"""``googlenet benchmark``: engines and baselines side by side, each in its own process."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from googlenet.benchmark.memory import rss_bytes
from googlenet.benchmark.runner import BenchmarkTarget, benchmark_row
from googlenet.cli.main import main


def test_a_row_by_hand() -> None:
    """Eleven calls of a batch of 4 in 1.0 to 1.9 s, and one of 9 s."""
    target = BenchmarkTarget("name", {}, {16: 500}, file_bytes=7, top1=0.5, precision="int8")
    times = [1.0 + 0.1 * i for i in range(10)] + [9.0, 1.45]
    worker = SimpleNamespace(target=target, threads=2, seconds={(16, 4): times}, cold_start=0.25, memory=99)
    row = benchmark_row(worker, (16, 4), peak_flops=10_000.0)
    assert (row.name, row.precision, row.size, row.batch, row.threads) == ("name", "int8", 16, 4, 2)
    assert row.latency == pytest.approx(1.475) and row.p95 == 9.0
    assert row.images_per_second == pytest.approx(4 / 1.475)
    # 500 multiply-adds are 1000 operations per image; the peak is 10,000 per second.
    assert row.matmul_utilization == pytest.approx(4 * 1000 / 1.475 / 10_000)
    assert (row.cold_start, row.memory, row.file_bytes, row.top1) == (0.25, 99, 7, 0.5)


def test_resident_memory() -> None:
    assert 1e7 < rss_bytes() <= rss_bytes(peak=True)


@pytest.mark.slow
def test_rows_and_plot(smoke_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "speed.png"
    arguments = ["--engines", "torch,onnxruntime", "--batches", "1,4", "--threads", "1", "--seconds", "0.02"]
    arguments += ["--rounds", "2", "--no-baselines", "--max-images", "100", "--out", str(plot), "--json"]
    assert main(["benchmark", str(smoke_run), *arguments]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["name"], row["batch"]) for row in rows] == [
        (f"googlenet, {engine}", batch) for batch in (1, 4) for engine in ("torch (folded)", "onnxruntime")
    ]
    assert main(["evaluate", str(smoke_run), "--max-images", "100", "--json"]) == 0
    top1 = json.loads(capsys.readouterr().out)["top1"]
    for row in rows:
        assert 0 < row["latency"] <= row["p95"]
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["latency"])
        assert row["cold_start"] > 0 and row["size"] == 16
        # One image of a hundred may be so close to a decision boundary that rounding decides.
        assert row["top1"] == pytest.approx(top1, abs=0.0101)
    one, four = (row for row in rows if row["name"] == "googlenet, onnxruntime")
    # ONNX Runtime imports nothing of PyTorch, but holds the weights.
    assert one["memory"] > one["file_bytes"] > 1e6
    # Both fractions refer to the same matrix product.
    ratio = four["images_per_second"] / one["images_per_second"]
    assert four["matmul_utilization"] / one["matmul_utilization"] == pytest.approx(ratio)
    assert Image.open(plot).size[0] > 500
