"""Train the book chapter's recipe, `fashion-mnist-d2l`, for its ten epochs, and report the training curve.

Ten epochs take about 76 minutes on two cores, and minutes on a GPU. Run: make bench-d2l_recipe
"""

import argparse
import json
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from _cli import device_name, googlenet

RECIPE = "fashion-mnist-d2l"


def train(seed: int, flags: list[str], out: Path) -> dict[str, Any]:
    """Train once; return test top-1, seconds, and the mean training loss and accuracy of each epoch."""
    document = googlenet("train", RECIPE, f"--seed={seed}", f"--out={out}", *flags)
    entries = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    epochs: dict[int, list[dict[str, float]]] = {}
    for entry in entries:
        if entry["split"] == "train":
            epochs.setdefault(-int(-entry["epoch"] // 1), []).append(entry)
    curve = [
        {"epoch": epoch, **{key: round(statistics.mean(row[key] for row in rows), 4) for key in ("loss", "accuracy")}}
        for epoch, rows in sorted(epochs.items())
    ]
    result = {"seed": seed, "top1": document["top1"], "seconds": round(document["seconds"], 1), "epochs": curve}
    print({key: result[key] for key in ("seed", "top1", "seconds")}, file=sys.stderr, flush=True)
    return result


def main() -> None:
    """Train with each seed and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds")
    parser.add_argument("--parallel", type=int, default=1, help="runs at the same time; durations are not comparable")
    parser.add_argument("--epochs", help="number of epochs (default: that of the recipe)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args()
    flags = [f"--epochs={args.epochs}"] if args.epochs else []
    with tempfile.TemporaryDirectory() as work, ThreadPoolExecutor(args.parallel) as pool:
        runs = list(pool.map(lambda seed: train(seed, flags, Path(work) / str(seed)), range(args.seeds)))
    top1 = [run["top1"] for run in runs]
    document = {
        "recipe": RECIPE,
        "torch": torch.__version__,
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "parallel": args.parallel,
        "runs": runs,
        "top1_mean": round(statistics.mean(top1), 4),
        "top1_sd": round(statistics.stdev(top1), 4) if args.seeds > 1 else None,
    }
    if args.json:
        print(json.dumps(document, indent=2))
        return
    for run in runs:
        print(f"seed {run['seed']}: test top-1 {run['top1']:.4f} after {run['seconds']} s")
    print(f"mean {document['top1_mean']:.4f}, sd {document['top1_sd']}, on {document['device']}")


if __name__ == "__main__":
    main()
