"""Seconds until the final test accuracy: a recipe, several seeds, against the textbook's ten epochs, in one call.

A run's time is that of the whole command, from starting Python to the written report: imports, reading the data,
training, the one reading of the test set. Only the download of the data is not in it. The textbook's steps are timed
between the runs, so that both meet the same machine, and its ten epochs are extrapolated from them; its evaluation is
not counted. Run: make bench-time_to_accuracy
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from throughput import BATCH, in_its_own_process, raw_folder

# The chapter's recipe: 10 epochs of 60,000 pictures at 96 px.
STEPS = 10 * -(-60_000 // BATCH)
SIZE = 96


def timed_run(recipe: str, seed: int, out: Path) -> dict[str, float]:
    """Train once in a process of its own; its seconds from start to exit, and its final figures."""
    command = [sys.executable, "-m", "googlenet", "train", recipe, "--seed", str(seed), "--out", str(out), "--json"]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    answer = json.loads(done.stdout)
    return {"seed": seed, "seconds": round(seconds, 2), "training_seconds": answer["seconds"], "top1": answer["top1"]}


def compare(recipe: str, seeds: int, steps: int) -> dict[str, object]:
    """`seeds` runs, and at least `steps` of the textbook's steps in equal parts around them."""
    runs, textbook = [], []
    with tempfile.TemporaryDirectory() as scratch:
        root = raw_folder(Path(scratch))
        for seed in range(seeds):
            textbook += in_its_own_process("textbook", SIZE, -(-steps // seeds), root)
            runs.append(timed_run(recipe, seed, Path(scratch) / f"run{seed}"))
            print(runs[-1], f"textbook: {statistics.median(textbook):.3f} s a step", file=sys.stderr, flush=True)
    seconds, top1 = [run["seconds"] for run in runs], [run["top1"] for run in runs]
    whole = STEPS * statistics.median(textbook)
    return {
        "recipe": recipe,
        "torch": torch.__version__,
        "threads": int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "runs": runs,
        "top1_mean": round(statistics.mean(top1), 5),
        "top1_sd": round(statistics.stdev(top1), 5) if seeds > 1 else None,
        "seconds_mean": round(statistics.mean(seconds), 2),
        "seconds_sd": round(statistics.stdev(seconds), 2) if seeds > 1 else None,
        "textbook_measured_steps": len(textbook),
        "textbook_step_seconds": round(statistics.median(textbook), 4),
        "textbook_seconds_extrapolated": round(whole, 1),
        "ratio": round(whole / statistics.mean(seconds), 1),
    }


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="fashion-mnist-fast")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50, help="the textbook's measured steps")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = compare(args.recipe, args.seeds, args.steps)
    if args.json:
        print(json.dumps(found, indent=2))
        return
    print(
        f"{found['recipe']}: test top-1 {found['top1_mean']:.4f} (sd {found['top1_sd']}, n {args.seeds}) "
        f"in {found['seconds_mean']} s (sd {found['seconds_sd']})\n"
        f"textbook: {found['textbook_seconds_extrapolated']} s for 10 epochs, extrapolated from "
        f"{found['textbook_measured_steps']} steps of {found['textbook_step_seconds']} s\n"
        f"ratio: {found['ratio']}"
    )


if __name__ == "__main__":
    main()
