"""Compare multi-scale training with training at one size: `fashion-mnist-multiscale` and the same recipe at 48 px.

Trains both with seed 0 and evaluates each at every size and averaged over the sizes: with the saved statistics of batch
normalization, and with statistics recomputed for each size from 50 batches of training images.
Run: make bench-multi_scale
"""

import argparse
import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from _cli import device_name, googlenet

RECIPE = "fashion-mnist-multiscale"
SIZES = "24,28,32,40,48,64,96"
STATISTICS: dict[str, list[str]] = {"saved statistics": [], "statistics per size": ["--precise-bn", "50"]}
RUNS: dict[str, list[str]] = {"many sizes": [], "48 px only": ["--size.schedule=fixed", "--size.train=48"]}


def measure(name: str, flags: list[str], sizes: str, work: Path) -> dict[str, Any]:
    """Train one run and evaluate it with each of `STATISTICS`."""
    run = str(work / name)
    trained = googlenet("train", RECIPE, f"--out={run}", *RUNS[name], *flags)
    results = {}
    for statistics, options in STATISTICS.items():
        evaluated = googlenet("evaluate", run, "--sizes", sizes, "--split", "test", *options)
        results[f"{name}, {statistics}"] = {
            "seconds": trained["seconds"], "rows": evaluated["rows"], "average": evaluated["average"],
        }  # fmt: skip
    return results


def main() -> None:
    """Train, evaluate and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=SIZES, help="test sizes in pixels")
    parser.add_argument("--parallel", type=int, default=1, help="runs at the same time; durations are not comparable")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("changes", nargs="*", help="flags of the recipe, after --, such as --epochs=1")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work, ThreadPoolExecutor(args.parallel) as pool:
        results = pool.map(lambda name: measure(name, args.changes, args.sizes, Path(work)), RUNS)
        runs = {name: run for result in results for name, run in result.items()}
    document = {
        "recipe": RECIPE, "changes": args.changes, "device": device_name(), "torch": torch.__version__, "runs": runs,
    }  # fmt: skip
    if args.json:
        print(json.dumps(document, indent=2))
        return
    for name, run in runs.items():
        print(f"{name}: trained in {run['seconds']:.0f} s, test top-1")
        for row in run["rows"]:
            print(f"  {row['size']:>4} px  {row['top1']:.4f}")
        print(f"  average  {run['average']['top1']:.4f}")


if __name__ == "__main__":
    main()
