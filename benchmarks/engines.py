"""Measure GoogLeNet at 224 px in each engine, and torchvision's network with the same weights in the same engines.

Trains torchvision's variant of GoogLeNet on Fashion-MNIST for a minute (or takes ``--run``), exports it with int8, and
measures the latency at 224 px, each candidate in its own process, in alternation. The accuracy of the int8 files is
that of the 10,000 test images at the run's own size. Prints a table and the ratios, and with
``--json`` one JSON document. Run: make bench-engines
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import googlenet
from googlenet.benchmark.runner import BenchmarkRow, format_rows, measure
from googlenet.benchmark.targets import baseline_targets, model_targets
from googlenet.cli.export_data import load_export_data
from googlenet.export.exporter import ExportOptions, ExportResult, QuantizationConfig, export

SIZE = 224
FLAGS = ["--model.name=googlenet_torchvision", "--model.pool_mode=ceil", "--model.dropout=0"]
FORMATS = ["onnx", "openvino", "ncnn"]
ENGINES = ["torch", "onnxruntime", "openvino", "ncnn"]


def fastest(rows: Sequence[BenchmarkRow], condition: Callable[[BenchmarkRow], bool]) -> BenchmarkRow:
    """Return the row with the lowest latency at batch 1 that satisfies `condition`."""
    return min((row for row in rows if row.batch == 1 and condition(row)), key=lambda row: row.latency)


def compute_ratios(rows: Sequence[BenchmarkRow], exported: ExportResult) -> dict[str, Any]:
    """Return the ratios of the latencies at batch 1, and the accuracy."""
    float32 = fastest(rows, lambda row: not row.baseline and row.precision == "float32")
    baseline = fastest(rows, lambda row: row.baseline and row.name.startswith("torchvision, o"))
    eager = fastest(rows, lambda row: row.name == "torchvision, torch")
    int8 = fastest(rows, lambda row: row.precision == "int8")
    assert float32.matmul_utilization is not None
    engine, manifest = int8.name.split()[1], exported.manifest
    top1, top1_int8 = (manifest.accuracy[key]["top1"] for key in ("float32", f"{engine}:int8"))
    return {
        "float32": float32.name,
        "baseline": baseline.name,
        "int8": int8.name,
        "float32_to_baseline": round(float32.latency / baseline.latency, 3),
        "float32_to_matmul": round(1 / float32.matmul_utilization, 3),
        "baseline_to_int8": round(baseline.latency / int8.latency, 2),
        "eager_to_float32": round(eager.latency / float32.latency, 2),
        "eager_to_int8": round(eager.latency / int8.latency, 2),
        "top1": top1,
        "top1_int8": top1_int8,
        "top1_lost": round(top1 - top1_int8, 4),
        "images": manifest.accuracy["float32"]["images"],
        "float_layers": manifest.int8["engines"][engine]["float_layers"],
    }


def main() -> None:
    """Train, export, measure, print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="a run of googlenet_torchvision (default: one is trained)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds per measurement (default 10)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        run = args.run or googlenet.fit(googlenet.read_recipe("fashion-mnist-fast", FLAGS), work / "run").run
        checkpoint = googlenet.load(run)
        options = ExportOptions(int8=QuantizationConfig(), threads=args.threads)
        exported = export(checkpoint, load_export_data(checkpoint), work / "exported", FORMATS, options)
        cases = [(SIZE, batch) for batch in args.batches]
        targets = model_targets(checkpoint, exported, ENGINES, [SIZE], work)
        targets += baseline_targets(checkpoint, cases, work)
        rows = measure(targets, cases, [args.threads], args.seconds, args.rounds)
    ratios = compute_ratios(rows, exported)
    lines = [*format_rows(rows), *(f"{key}: {value}" for key, value in ratios.items())]
    print("\n".join(lines), file=sys.stderr if args.json else sys.stdout)
    if args.json:
        document = {
            "threads": args.threads,
            "rounds": args.rounds,
            "seconds": args.seconds,
            "cores": os.cpu_count(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "versions": dict(exported.manifest.versions),
            "ratios": ratios,
            "rows": [row._asdict() for row in rows],
        }
        print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
