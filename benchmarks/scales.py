"""What multi-scale training buys: `fashion-mnist-multiscale` beside the same recipe at one size, tested at many.

Trains both (seed 0), then evaluates each at every size and averaged over the sizes: as it was saved, and with batch
normalisation's statistics averaged anew for each size over 50 batches of training pictures. Run: make bench-scales
"""

import argparse
import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from asking import device, googlenet

RECIPE = "fashion-mnist-multiscale"
SIZES = "24,28,32,40,48,64,96"
NORMS: dict[str, list[str]] = {"statistics as saved": [], "statistics of each size": ["--reestimate", "50"]}
RUNS: dict[str, list[str]] = {"many sizes": [], "48 px alone": ["--size.kind=fixed", "--size.train=48"]}


def measured(name: str, changes: list[str], sizes: str, scratch: Path) -> dict[str, Any]:
    """One training, evaluated with each of `NORMS`."""
    run = str(scratch / name)
    trained = googlenet("train", RECIPE, f"--out={run}", *RUNS[name], *changes)
    found = {}
    for norms, flags in NORMS.items():
        evaluated = googlenet("evaluate", run, "--sizes", sizes, "--split", "test", *flags)
        about = {"seconds": trained["seconds"], "rows": evaluated["rows"], "average": evaluated["average"]}
        found[f"{name}, {norms}"] = about
    return found


def main() -> None:
    """Train, evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default=SIZES)
    parser.add_argument("--at-once", type=int, default=1, help="runs beside each other; seconds mean little then")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("changes", nargs="*", help="of the recipe's keys, after --, such as --epochs=1")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.at_once) as pool:
        found = pool.map(lambda name: measured(name, args.changes, args.sizes, Path(folder)), RUNS)
        runs = {name: run for part in found for name, run in part.items()}
    if args.json:
        about = {"recipe": RECIPE, "changes": args.changes, "device": device(), "torch": torch.__version__}
        print(json.dumps({**about, "runs": runs}, indent=2))
        return
    for name, run in runs.items():
        print(f"{name}: trained in {run['seconds']:.0f} s, test top-1")
        for row in run["rows"]:
            print(f"  {row['size']:>4} px  {row['top1']:.4f}")
        print(f"  average  {run['average']['top1']:.4f}")


if __name__ == "__main__":
    main()
