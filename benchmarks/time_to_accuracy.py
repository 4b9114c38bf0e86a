"""Seconds until the final test accuracy: recipes, several seeds each, against the textbook's ten epochs, in one call.

A run's time is that of the whole command, from starting Python to the written report: imports, reading the data,
training, the one reading of the test set. Only the download of the data is not in it. The textbook's steps are timed
between the runs, so that both meet the same machine, and its ten epochs are extrapolated from them; its evaluation is
not counted. Run: make bench-time_to_accuracy
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from asking import googlenet
from throughput import BATCH, in_its_own_process, raw_folder

# The chapter's recipe: 10 epochs of 60,000 pictures at 96 px.
STEPS = 10 * -(-60_000 // BATCH)
SIZE = 96


def timed_run(recipe: str, seed: int, out: Path) -> dict[str, float]:
    """Train once in a process of its own; its seconds from start to exit, and its final figures."""
    started = time.perf_counter()
    answer = googlenet("train", recipe, f"--seed={seed}", f"--out={out}")
    seconds = time.perf_counter() - started
    return {"seed": seed, "seconds": round(seconds, 2), "training_seconds": answer["seconds"], "top1": answer["top1"]}


def compare(recipes: list[str], seeds: int, steps: int) -> dict[str, object]:
    """`seeds` runs of each recipe, and at least `steps` of the textbook's steps in equal parts before each round."""
    runs: dict[str, list[dict[str, float]]] = {recipe: [] for recipe in recipes}
    textbook: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        root = raw_folder(Path(scratch))
        for seed in range(seeds):
            textbook += in_its_own_process("textbook", SIZE, -(-steps // seeds), root)
            for recipe in recipes:
                run = timed_run(recipe, seed, Path(scratch) / f"{recipe}-{seed}")
                runs[recipe].append(run)
                print(
                    recipe, run, f"textbook: {statistics.median(textbook):.3f} s a step", file=sys.stderr, flush=True
                )
    whole = STEPS * statistics.median(textbook)
    return {
        "torch": torch.__version__,
        "threads": int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "textbook_measured_steps": len(textbook),
        "textbook_step_seconds": round(statistics.median(textbook), 4),
        "textbook_seconds_extrapolated": round(whole, 1),
        "rows": [{"recipe": recipe, **summary(runs[recipe], whole)} for recipe in recipes],
    }


def summary(runs: list[dict[str, float]], textbook_seconds: float) -> dict[str, object]:
    """A recipe's runs, their means and deviations, and how often their mean time goes into the textbook's."""
    seconds, top1 = [run["seconds"] for run in runs], [run["top1"] for run in runs]
    several = len(runs) > 1
    return {
        "runs": runs,
        "top1_mean": round(statistics.mean(top1), 5),
        "top1_sd": round(statistics.stdev(top1), 5) if several else None,
        "seconds_mean": round(statistics.mean(seconds), 2),
        "seconds_sd": round(statistics.stdev(seconds), 2) if several else None,
        "ratio": round(textbook_seconds / statistics.mean(seconds), 1),
    }


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", nargs="+", default=["fashion-mnist-fast", "fashion-mnist-slim"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50, help="the textbook's measured steps")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = compare(args.recipes, args.seeds, args.steps)
    if args.json:
        print(json.dumps(found, indent=2))
        return
    for row in found["rows"]:
        print(
            f"{row['recipe']}: test top-1 {row['top1_mean']:.4f} (sd {row['top1_sd']}, n {args.seeds}) "
            f"in {row['seconds_mean']} s (sd {row['seconds_sd']}), ratio {row['ratio']}"
        )
    print(
        f"textbook: {found['textbook_seconds_extrapolated']} s for 10 epochs, extrapolated from "
        f"{found['textbook_measured_steps']} steps of {found['textbook_step_seconds']} s"
    )


if __name__ == "__main__":
    main()
