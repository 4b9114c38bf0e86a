"""Measure GoogLeNet at 224 px in each engine and precision, and peers at their default settings and in float32.

Trains torchvision's variant of GoogLeNet on Fashion-MNIST for a minute (or takes ``--run``), exports it with int8, and
runs `googlenet benchmark`: each target in its own process, in alternation. torchvision's network has the same weights.
The accuracies are those of the test images at the run's own size. With ``--limit-isa avx2`` the engines
use no newer instructions. Run: make bench-deployment
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from _cli import googlenet

FLAGS = ["--model.name=googlenet_torchvision", "--model.pool_mode=ceil", "--model.dropout=0"]


def main() -> None:
    """Train, measure, print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="a run of googlenet_torchvision (default: one is trained)")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds per measurement (default 2)")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--limit-isa", choices=["avx2"])
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = args.run or str(Path(folder) / "run")
        if not args.run:
            googlenet("train", "fashion-mnist-fast", *FLAGS, "--out", run)
        limit = ["--limit-isa", args.limit_isa] if args.limit_isa else []
        document = googlenet(
            "benchmark", run, "--int8", "--sizes", str(args.size), "--batches", args.batches, "--max-images", "10000",
            "--seconds", str(args.seconds), "--rounds", str(args.rounds), *limit,
        )  # fmt: skip
    for row in document["speedups"]:
        print(row, file=sys.stderr)
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
