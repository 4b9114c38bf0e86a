"""``googlenet benchmark``: engines and peers side by side, each in its own process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from googlenet import devices
from googlenet.benchmark import worker
from googlenet.benchmark.memory import rss_bytes
from googlenet.benchmark.runner import BenchmarkRow, BenchmarkTarget, benchmark_row, speedups
from googlenet.cli.main import main


def test_a_row_by_hand() -> None:
    """Eleven calls of a batch of 4 in 1.0 to 1.9 s, and one of 9 s, in two rounds."""
    target = BenchmarkTarget("name", {}, {16: 500}, file_bytes=7, top1=0.5, settings="float32")
    rounds = [[1.0 + 0.1 * i for i in range(10)], [9.0, 1.45]]
    process = SimpleNamespace(
        target=target, threads=2, rounds={(16, 4): rounds}, cold_start=0.25, memory=99, precision="torch float32"
    )
    row = benchmark_row(process, (16, 4), peak_flops=10_000.0)
    assert (row.name, row.precision, row.size, row.batch, row.threads) == ("name", "torch float32", 16, 4, 2)
    assert row.latency == pytest.approx(1.475) and row.p95 == 9.0
    assert row.rounds == pytest.approx((1.45, 5.225))
    assert row.images_per_second == pytest.approx(4 / 1.475)
    # 500 multiply-adds are 1000 operations per image; the peak is 10,000 per second.
    assert row.matmul_utilization == pytest.approx(4 * 1000 / 1.475 / 10_000)
    assert (row.cold_start, row.memory, row.file_bytes, row.top1) == (0.25, 99, 7, 0.5)


def make_row(name: str, *rounds: float, batch: int = 1, settings: str = "default", peer: bool = False) -> BenchmarkRow:
    target = BenchmarkTarget(name, {}, {}, is_peer=peer, settings=settings)
    process = SimpleNamespace(
        target=target, threads=0, rounds={(16, batch): [[x] for x in rounds]}, cold_start=0, memory=0, precision="p"
    )
    return benchmark_row(process, (16, batch), 1.0)


def test_speedups_by_hand() -> None:
    """The best peer with default settings, in each round; peers in float32 and slower ones do not count."""
    rows = [
        make_row("googlenet, auto", 1.0, 2.0, 4.0), make_row("googlenet, a int8", 0.5, 1.0, 1.0),
        make_row("googlenet, b int8", 9.0, 9.0, 9.0), make_row("fast", 2.0, 2.0, 12.0, peer=True),
        make_row("slow", 5.0, 5.0, 5.0, peer=True), make_row("fast", 0.1, 0.1, 0.1, settings="float32", peer=True),
        make_row("googlenet, auto", 3.0, 3.0, batch=8), make_row("fast", 3.0, 6.0, batch=8, peer=True),
        make_row("alone", 3.0, 6.0, batch=9, peer=True),
    ]  # fmt: skip
    auto, int8, larger = speedups(rows)
    assert auto[:4] == ("googlenet, auto (p)", "fast (p)", 16, 1) and auto[4:] == (2.0, 1.0, 3.0)
    assert int8[:4] == ("googlenet, a int8", "fast (p)", 16, 1) and int8[4:] == (4.0, 2.0, 12.0)
    assert larger[2:] == (16, 8, 1.5, 1.0, 2.0)


def test_settings_of_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Default settings pin neither threads nor precision; the comparison in float32 pins both."""
    openvino, onnxruntime = pytest.importorskip("openvino"), pytest.importorskip("onnxruntime")
    calls = list[Any]()
    network = SimpleNamespace(
        create_infer_request=lambda: None, get_property=lambda _: SimpleNamespace(to_string=lambda: "bf16")
    )
    core = SimpleNamespace(compile_model=lambda *arguments: calls.append(arguments[2]) or network)
    monkeypatch.setattr(openvino, "Core", lambda: core)
    session = SimpleNamespace(get_inputs=lambda: [SimpleNamespace(name="x")])
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda _, options, **__: calls.append(options.intra_op_num_threads) or session
    )
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    spec = {"folder": "nowhere", "channels": 3}
    for engine in ("openvino", "onnxruntime"):
        for threads in (None, 2):
            _, precision = worker.peer({**spec, "engine": engine}, threads)(8, 1)
            assert precision == ("bfloat16" if engine == "openvino" else "float32")
    assert calls == [{}, {"INFERENCE_NUM_THREADS": 2, "INFERENCE_PRECISION_HINT": "f32"}, 0, 2]
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    worker.peer({**spec, "engine": "openvino"}, None)(8, 1)
    assert calls[-1] == {"INFERENCE_PRECISION_HINT": "f32"}, "the processor's default would fail"


@pytest.mark.parametrize(
    ("flags", "features"),
    [
        ("fpu avx2 avx512f avx512_bf16 amx_tile", ["AVX2", "AVX-512", "bfloat16", "AMX"]),
        ("fpu avx2 avx_vnni", ["AVX2", "AVX-VNNI"]),
        ("fpu sse2", []),
    ],
)
def test_cpu_features(flags: str, features: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    description = f"x86_64\n\n4\nmodel name\t: Some CPU\nflags\t\t: {flags}\n\n"
    monkeypatch.setattr(devices, "cpu_description", lambda: description)
    assert devices.cpu_features() == {"model": "Some CPU", "cores": os.cpu_count(), "features": features}


def test_limited_instructions() -> None:
    """PyTorch follows the limit, if it is set before it computes."""
    code = "import torch; from googlenet import devices; devices.limit_isa('avx2')"
    code += "; print(torch.backends.cpu.get_cpu_capability())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("AVX2", "DEFAULT", "NO AVX")


def test_resident_memory() -> None:
    assert 1e7 < rss_bytes() <= rss_bytes(peak=True)


@pytest.mark.release
def test_rows_and_plot(smoke_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "speed.png"
    arguments = ["--engines", "onnxruntime", "--batches", "1,4", "--threads", "1", "--seconds", "0.02"]
    arguments += ["--rounds", "2", "--no-peers", "--max-images", "100", "--out", str(plot), "--json"]
    assert main(["benchmark", str(smoke_run), *arguments]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = document["rows"]
    assert document["speedups"] == [] and document["images"] == 100
    names = {(row["name"], row["batch"], row["settings"], row["threads"]) for row in rows}
    for batch in (1, 4):
        assert ("googlenet, auto", batch, "default", 0) in names
        assert ("googlenet, onnxruntime float32", batch, "default", 0) in names
        assert ("googlenet, onnxruntime float32", batch, "float32", 1) in names
    assert main(["evaluate", str(smoke_run), "--max-images", "100", "--json"]) == 0
    top1 = json.loads(capsys.readouterr().out)["top1"]
    for row in rows:
        assert 0 < row["latency"] <= row["p95"]
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["latency"])
        assert row["cold_start"] > 0 and row["size"] == 16
        # One image of a hundred may be so close to a decision boundary that rounding decides.
        assert row["top1"] == pytest.approx(top1, abs=0.0101)
    one, four = (row for row in rows if row["name"] == "googlenet, onnxruntime float32" and row["threads"])
    # ONNX Runtime imports nothing of PyTorch, but holds the weights.
    assert one["memory"] > one["file_bytes"] > 1e6
    # Both fractions refer to the same matrix product.
    ratio = four["images_per_second"] / one["images_per_second"]
    assert four["matmul_utilization"] / one["matmul_utilization"] == pytest.approx(ratio)
    assert Image.open(plot).size[0] > 500
