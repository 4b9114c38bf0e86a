"""The race: time to test accuracy of recipes with several seeds, and the ten epochs of the textbook's loop.

The time of a run is that of the whole command, from starting Python to the written report: imports, reading the data,
training, one evaluation of the test set. The download of the data and the first compilation of the kernels are not
included. Steps of the textbook's loop (`d2l_baseline.py`) are measured between the runs, so that both share the state
of the machine, and its ten epochs are extrapolated from them, without evaluation.

Writes NAME.json and NAME.log into ``--out``; the name is that of the kind of processor. The log contains the source
(commit, recipes), the processor, every seed, and the p-value of the hypothesis that the mean accuracy is at most 0.889.
Run: make race. Rules: docs/race.md
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from _cli import googlenet
from googlenet.config.parse import read_recipe
from googlenet.devices import cpu_features, pick_precision
from throughput import BATCH, TEXTBOOK, run_in_process, unpack_fashion_mnist

# The chapter's recipe: 10 epochs of 60,000 images at 96 px.
STEPS = 10 * -(-60_000 // BATCH)
SIZE = 96
TARGET = 0.889
ROOT = Path(__file__).resolve().parent.parent


def timed_run(recipe: str, seed: int, out: Path) -> dict[str, float]:
    """Train in a new process; return its seconds from start to exit, and the test accuracy."""
    started = time.perf_counter()
    document = googlenet("train", recipe, f"--seed={seed}", f"--out={out}")
    seconds = round(time.perf_counter() - started, 2)
    return {"seed": seed, "seconds": seconds, "training_seconds": document["seconds"], "top1": document["top1"]}


def race(recipes: list[str], seeds: int, steps: int, log: Callable[[str], None]) -> dict[str, Any]:
    """Run each recipe with each seed, and before each round an equal part of `steps` or more textbook steps."""
    runs: dict[str, list[dict[str, float]]] = {recipe: [] for recipe in recipes}
    textbook: list[float] = []
    with tempfile.TemporaryDirectory() as work:
        root = unpack_fashion_mnist(Path(work))
        for seed in range(seeds):
            textbook += run_in_process(TEXTBOOK, SIZE, -(-steps // seeds), root)
            log(f"textbook: {statistics.median(textbook):.3f} s per step, median of {len(textbook)}")
            for recipe in recipes:
                run = timed_run(recipe, seed, Path(work) / f"{recipe}-{seed}")
                runs[recipe].append(run)
                log(f"{recipe}: seed {seed}, test top-1 {run['top1']:.4f}, {run['seconds']} s")
    total = STEPS * statistics.median(textbook)
    return {
        "torch": torch.__version__,
        "threads": int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads()),
        "cpu": cpu_features(),
        "max_cpu_isa": os.environ.get("ONEDNN_MAX_CPU_ISA"),
        "precision": pick_precision("auto", torch.device("cpu")),
        "textbook_measured_steps": len(textbook),
        "textbook_step_seconds": round(statistics.median(textbook), 4),
        "textbook_seconds_extrapolated": round(total, 1),
        "rows": [{"recipe": recipe, **summarize(runs[recipe], total)} for recipe in recipes],
    }


def summarize(runs: list[dict[str, float]], textbook_seconds: float) -> dict[str, Any]:
    """Return a recipe's runs, means, standard deviations, p-value, and the ratio of the textbook's time to the mean."""
    seconds, top1 = [run["seconds"] for run in runs], [run["top1"] for run in runs]
    summary: dict[str, Any] = {"runs": runs}
    for name, values, digits in (("top1", top1, 5), ("seconds", seconds, 2)):
        summary[f"{name}_mean"] = round(statistics.mean(values), digits)
        summary[f"{name}_sd"] = round(statistics.stdev(values), digits) if len(runs) > 1 else None
    p_value = stats.ttest_1samp(top1, TARGET, alternative="greater").pvalue if len(runs) > 1 else math.nan
    summary["p_value"] = None if math.isnan(p_value) else float(f"{p_value:.2g}")
    summary["ratio"] = round(textbook_seconds / statistics.mean(seconds), 1)
    return summary


def describe_source(recipes: list[str]) -> list[str]:
    """Return the commit, whether files differ from it, the versions of Python and PyTorch, and the recipes."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    versions = (
        f"Python {platform.python_version()}, torch {torch.__version__}, googlenet {metadata.version('googlenet')}"
    )
    lines = [f"commit {git('rev-parse', 'HEAD') or 'unknown'}", f"changed files: {changed or 'none'}", versions]
    for recipe in recipes:
        lines += ["", f"recipe {recipe}", read_recipe(recipe).to_yaml()]
    return lines


def processor_name() -> str:
    """Return a name for the kind of processor, such as ``amd-bfloat16``."""
    cpu, limit = cpu_features(), os.environ.get("ONEDNN_MAX_CPU_ISA")
    vendor = next((name for name in ("AMD", "Intel", "ARM", "Apple") if name in str(cpu["model"])), platform.machine())
    features = cpu["features"]
    assert isinstance(features, list)
    best = next((name for name in ("AMX", "bfloat16", "AVX-512", "AVX2", "Neon") if name in features), "baseline")
    return f"{vendor}-{limit or best}".lower().replace("_", "-")


def main() -> None:
    """Run the race and write its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["fashion-mnist-fast", "fashion-mnist-slim"])
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--steps", type=int, default=50, help="measured steps of the textbook's loop")
    parser.add_argument("--out", type=Path, default=Path("."), metavar="FOLDER")
    parser.add_argument("--json", action="store_true", help="print one JSON document, and the log on standard error")
    args = parser.parse_args()
    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        print(line, file=sys.stderr if args.json else sys.stdout, flush=True)

    for line in [*describe_source(args.recipes), json.dumps(cpu_features()), ""]:
        log(line)
    document = race(args.recipes, args.seeds, args.steps, log)
    for row in document["rows"]:
        log(
            f"{row['recipe']}: test top-1 {row['top1_mean']:.4f} (sd {row['top1_sd']}, n {args.seeds}, "
            f"p {row['p_value']} for a mean of at most {TARGET}) in {row['seconds_mean']} s (sd {row['seconds_sd']}), "
            f"{row['ratio']} times as fast as the textbook"
        )
    log(
        f"textbook: {document['textbook_seconds_extrapolated']} s for 10 epochs, extrapolated from "
        f"{document['textbook_measured_steps']} steps of {document['textbook_step_seconds']} s; {document['precision']}"
    )
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{processor_name()}.json").write_text(json.dumps(document, indent=2) + "\n")
    (args.out / f"{processor_name()}.log").write_text("\n".join(lines) + "\n")
    if args.json:
        print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
