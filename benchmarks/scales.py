"""What multi-scale training buys: `fashion-mnist-multiscale` beside the same recipe at one size, tested at many.

Trains both (seed 0), then evaluates each at every size and averaged over the sizes: as it was saved, and with batch
normalisation's statistics averaged anew for each size over 50 batches of training pictures. Run: make bench-scales
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RECIPE = "fashion-mnist-multiscale"
SIZES = "24,28,32,40,48,64,96"
NORMS: dict[str, list[str]] = {"statistics as saved": [], "statistics of each size": ["--reestimate", "50"]}
RUNS: dict[str, list[str]] = {"many sizes": [], "48 px alone": ["--size.kind=fixed", "--size.train=48"]}


def googlenet(*arguments: str) -> Any:
    """What a command answers with ``--json``."""
    done = subprocess.run([sys.executable, "-m", "googlenet", *arguments, "--json"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout)


def main() -> None:
    """Train, evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default=SIZES)
    parser.add_argument("--epochs", help="another number than the recipe's")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    runs = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, changes in RUNS.items():
            run = str(Path(scratch) / name)
            shorter = [f"--epochs={args.epochs}"] if args.epochs else []
            trained = googlenet("train", RECIPE, f"--out={run}", *changes, *shorter)
            for norms, flags in NORMS.items():
                found = googlenet("evaluate", run, "--sizes", args.sizes, "--split", "test", *flags)
                about = {"seconds": trained["seconds"], "rows": found["rows"], "average": found["average"]}
                runs[f"{name}, {norms}"] = about
    if args.json:
        print(json.dumps({"recipe": RECIPE, "runs": runs}, indent=2))
        return
    for name, run in runs.items():
        print(f"{name}: trained in {run['seconds']:.0f} s, test top-1")
        for row in run["rows"]:
            print(f"  {row['size']:>4} px  {row['top1']:.4f}")
        print(f"  average  {run['average']['top1']:.4f}")


if __name__ == "__main__":
    main()
