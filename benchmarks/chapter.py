"""The chapter's own recipe, whole: `fashion-mnist-d2l`, ten epochs, on the device that there is; its curve.

Ten epochs take about 61 minutes of two cores, and minutes of a GPU. Run: make bench-chapter
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

from asking import device, googlenet

RECIPE = "fashion-mnist-d2l"


def run(seed: int, flags: list[str], out: Path) -> dict[str, Any]:
    """One run: final test top-1, seconds, and each epoch's mean training loss and accuracy."""
    answer = googlenet("train", RECIPE, f"--seed={seed}", f"--out={out}", *flags)
    entries = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [entry for entry in entries if entry["split"] == "train"]
    epochs: dict[int, list[dict[str, float]]] = {}
    for entry in steps:
        epochs.setdefault(-int(-entry["epoch"] // 1), []).append(entry)
    curve = [
        {"epoch": epoch, **{key: round(statistics.mean(e[key] for e in of), 4) for key in ("loss", "accuracy")}}
        for epoch, of in sorted(epochs.items())
    ]
    told = {"seed": seed, "top1": answer["top1"], "seconds": round(answer["seconds"], 1), "epochs": curve}
    print({key: told[key] for key in ("seed", "top1", "seconds")}, file=sys.stderr, flush=True)
    return told


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=1, help="runs beside each other; seconds mean little then")
    parser.add_argument("--epochs", help="another number than the chapter's")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    flags = [f"--epochs={args.epochs}"] if args.epochs else []
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(args.at_once) as pool:
        runs = list(pool.map(lambda seed: run(seed, flags, Path(scratch) / str(seed)), range(args.seeds)))
    top1 = [found["top1"] for found in runs]
    found = {
        "recipe": RECIPE,
        "torch": torch.__version__,
        "device": device(),
        "threads": torch.get_num_threads(),
        "at_once": args.at_once,
        "runs": runs,
        "top1_mean": round(statistics.mean(top1), 4),
        "top1_sd": round(statistics.stdev(top1), 4) if args.seeds > 1 else None,
    }
    if args.json:
        print(json.dumps(found, indent=2))
        return
    for told in runs:
        print(f"seed {told['seed']}: test top-1 {told['top1']:.4f} after {told['seconds']} s")
    print(f"mean {found['top1_mean']:.4f}, sd {found['top1_sd']}, on {found['device']}")


if __name__ == "__main__":
    main()
