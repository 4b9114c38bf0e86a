"""What helps a recipe and what does not: one change at a time, scored on the validation part.

`fashion-mnist-fast`, or another recipe of `VARIANTS`. The test set decides nothing here, and its figures are not even
read from the answers. Each row is a change of the recipe's keys, as `googlenet train` takes them. `--mirrored` scores
each network by its answers to the picture and to its mirror image together. Run: make bench-search
"""

import argparse
import json
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from asking import device, googlenet

FAST: dict[str, list[str]] = {
    "as shipped": [],
    "learning rate 0.0025": ["--optimiser.lr=0.0025"],
    "learning rate 0.01": ["--optimiser.lr=0.01"],
    "warm-up over 0.2 of the run": ["--schedule.warmup=0.2"],
    "AdamW at 0.006": [
        "--optimiser.name=adamw", "--optimiser.layerwise=false", "--optimiser.momentum=0",
        "--optimiser.nesterov=false", "--optimiser.lr=0.006",
    ],
    "SGD without layer-wise scaling, at 0.05": ["--optimiser.layerwise=false", "--optimiser.lr=0.05"],
    "batches of 64": ["--batch_size=64"],
    "batches of 256": ["--batch_size=256"],
    "no label smoothing": ["--loss.label_smoothing=0"],
    "random flips": ["--augment.flip=random"],
    "alternating flips": ["--augment.flip=alternating"],
    "shifts of up to 1 pixel": ["--augment.shift=1"],
    "24 px": ["--size.train=24"],
    "20, 24, then 28 px": ["--size.kind=progressive", "--size.train=[20,24,28]"],
    "moving average of the weights, 0.98": ["--ema=0.98"],
    "float32": ["--precision=float32"],
}  # fmt: skip


# What `fashion-mnist-best` was chosen among: each takes about half of the processor time of the recipe before it (all
# channels, sixteen epochs), or less.
FULL_WIDTH = ["--model.width=1", "--augment.flip=random", "--augment.shift=2", "--augment.erase=8"]
BEST: dict[str, list[str]] = {
    "all channels": [*FULL_WIDTH, "--epochs=8"],
    "0.7 of the channels, more epochs": [*FULL_WIDTH, "--model.width=0.7", "--epochs=13"],
    "no erasing, shifts of 1 pixel": [*FULL_WIDTH, "--augment.erase=0", "--augment.shift=1", "--epochs=8"],
    "learning rate 0.003": [*FULL_WIDTH, "--optimiser.lr=0.003", "--epochs=8"],
    "SGD without layer-wise scaling, at 0.1": [
        *FULL_WIDTH, "--optimiser.layerwise=false", "--optimiser.lr=0.1", "--optimiser.weight_decay=0.0005",
        "--epochs=8",
    ],
    "Muon, fewer epochs": [*FULL_WIDTH, "--optimiser.name=muon", "--optimiser.layerwise=false", "--epochs=6"],
}  # fmt: skip

# What the channels that are left out pay for.
SLIM: dict[str, list[str]] = {
    "as shipped": [],
    "all channels, one epoch": ["--model.width=1", "--epochs=1"],
    "half of the channels": ["--model.width=0.5"],
    "0.4 of the channels": ["--model.width=0.4"],
    "a quarter of the channels": ["--model.width=0.25"],
    "batches of 128": ["--batch_size=128"],
    "learning rate 0.008": ["--optimiser.lr=0.008"],
}

VARIANTS = {"fashion-mnist-fast": FAST, "fashion-mnist-slim": SLIM, "fashion-mnist-best": BEST}


def run(recipe: str, changes: list[str], seed: int, mirrored: bool) -> dict[str, float]:
    """One training with 5,000 training pictures held out: validation top-1, and seconds of training."""
    with tempfile.TemporaryDirectory() as scratch:
        out = str(Path(scratch) / "run")
        trained = googlenet("train", recipe, "--data.validation=5000", f"--seed={seed}", f"--out={out}", *changes)
        top1 = trained["metrics"]["validation"]["top1"]
        if mirrored:
            top1 = googlenet("evaluate", out, "--split", "validation", "--flip")["top1"]
    found = {"top1": top1, "seconds": trained["seconds"]}
    print(changes, seed, found, file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Run every variant with every seed and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", choices=list(VARIANTS), default="fashion-mnist-fast")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="+", help="these variants alone")
    parser.add_argument("--mirrored", action="store_true", help="score with mirror images")
    parser.add_argument("--at-once", type=int, default=1, help="runs beside each other; seconds mean little then")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("changes", nargs="*", help="of the recipe's keys, for all, after --, such as --epochs=1")
    args = parser.parse_args()
    variants = {name: [*changes, *args.changes] for name, changes in VARIANTS[args.recipe].items()}
    if unknown := set(args.only or ()) - set(variants):
        parser.error(f"no variant {', '.join(sorted(unknown))} of {args.recipe}; there are {', '.join(variants)}")
    chosen = args.only or list(variants)
    with ThreadPoolExecutor(args.at_once) as pool:
        asked = {
            name: [pool.submit(run, args.recipe, variants[name], seed, args.mirrored) for seed in range(args.seeds)]
            for name in chosen
        }
        rows = []
        for name, futures in asked.items():
            runs = [future.result() for future in futures]
            top1 = [found["top1"] for found in runs]
            rows.append({
                "change": name,
                "keys": " ".join(variants[name]),
                "validation_top1_mean": round(statistics.mean(top1), 4),
                "validation_top1_sd": round(statistics.stdev(top1), 4) if args.seeds > 1 else None,
                "seconds": round(statistics.median(found["seconds"] for found in runs), 1),
                "n": args.seeds,
            })  # fmt: skip
    if args.json:
        about = {
            "recipe": args.recipe, "mirrored": args.mirrored, "at_once": args.at_once, "torch": torch.__version__,
            "device": device(),
        }  # fmt: skip
        print(json.dumps({**about, "rows": rows}, indent=2))
        return
    for row in rows:
        mean, sd = row["validation_top1_mean"], row["validation_top1_sd"]
        print(f"{row['change']:<42}{mean:.4f}  sd {sd}  {row['seconds']} s")


if __name__ == "__main__":
    main()
