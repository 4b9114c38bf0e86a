"""Measure the time to the final test accuracy: recipes with several seeds, and the ten epochs of the plain baseline.

The time of a run is that of the whole command, from starting Python to the written report: imports, reading the data,
training, one evaluation of the test set. The download of the data is not included. Steps of the baseline
(`d2l_baseline.py`) are measured between the runs, so that both sides share the state of the machine, and its ten epochs
are extrapolated from them without evaluation. Run: make bench-time_to_accuracy
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from _cli import googlenet
from throughput import BATCH, run_in_process, unpack_fashion_mnist

# The chapter's recipe: 10 epochs of 60,000 images at 96 px.
STEPS = 10 * -(-60_000 // BATCH)
SIZE = 96


def timed_run(recipe: str, seed: int, out: Path) -> dict[str, float]:
    """Train in a new process; return its seconds from start to exit, and the test accuracy."""
    started = time.perf_counter()
    document = googlenet("train", recipe, f"--seed={seed}", f"--out={out}")
    seconds = round(time.perf_counter() - started, 2)
    return {"seed": seed, "seconds": seconds, "training_seconds": document["seconds"], "top1": document["top1"]}


def compare(recipes: list[str], seeds: int, steps: int) -> dict[str, Any]:
    """Run each recipe with each seed, and before each round an equal part of `steps` or more baseline steps."""
    runs: dict[str, list[dict[str, float]]] = {recipe: [] for recipe in recipes}
    baseline: list[float] = []
    with tempfile.TemporaryDirectory() as work:
        root = unpack_fashion_mnist(Path(work))
        for seed in range(seeds):
            baseline += run_in_process("baseline", SIZE, -(-steps // seeds), root)
            for recipe in recipes:
                run = timed_run(recipe, seed, Path(work) / f"{recipe}-{seed}")
                runs[recipe].append(run)
                step = statistics.median(baseline)
                print(recipe, run, f"baseline: {step:.3f} s per step", file=sys.stderr, flush=True)
    total = STEPS * statistics.median(baseline)
    return {
        "torch": torch.__version__,
        "threads": int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "baseline_measured_steps": len(baseline),
        "baseline_step_seconds": round(statistics.median(baseline), 4),
        "baseline_seconds_extrapolated": round(total, 1),
        "rows": [{"recipe": recipe, **summarize(runs[recipe], total)} for recipe in recipes],
    }


def summarize(runs: list[dict[str, float]], baseline_seconds: float) -> dict[str, Any]:
    """Return a recipe's runs, means, standard deviations, and the ratio of the baseline's time to the mean time."""
    seconds, top1 = [run["seconds"] for run in runs], [run["top1"] for run in runs]
    several = len(runs) > 1
    return {
        "runs": runs,
        "top1_mean": round(statistics.mean(top1), 5),
        "top1_sd": round(statistics.stdev(top1), 5) if several else None,
        "seconds_mean": round(statistics.mean(seconds), 2),
        "seconds_sd": round(statistics.stdev(seconds), 2) if several else None,
        "ratio": round(baseline_seconds / statistics.mean(seconds), 1),
    }


def main() -> None:
    """Compare and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["fashion-mnist-fast", "fashion-mnist-slim"])
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--steps", type=int, default=50, help="measured steps of the baseline")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args()
    document = compare(args.recipes, args.seeds, args.steps)
    if args.json:
        print(json.dumps(document, indent=2))
        return
    for row in document["rows"]:
        print(
            f"{row['recipe']}: test top-1 {row['top1_mean']:.4f} (sd {row['top1_sd']}, n {args.seeds}) "
            f"in {row['seconds_mean']} s (sd {row['seconds_sd']}), ratio {row['ratio']}"
        )
    print(
        f"baseline: {document['baseline_seconds_extrapolated']} s for 10 epochs, extrapolated from "
        f"{document['baseline_measured_steps']} steps of {document['baseline_step_seconds']} s"
    )


if __name__ == "__main__":
    main()
