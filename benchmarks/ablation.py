"""Ablation of a recipe: one change at a time, evaluated on the validation images.

`fashion-mnist-fast`, or another recipe of `VARIANTS`. Each row changes keys of the recipe as flags of `train`.
The test set is not used. `--tta-flip` averages the predictions of each image and its horizontal flip.
Run: make bench-ablation
"""

import argparse
import json
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from _cli import device_name, googlenet

FAST: dict[str, list[str]] = {
    "none (the recipe)": [],
    "learning rate 0.005": ["--optimizer.lr=0.005"],
    "learning rate 0.01": ["--optimizer.lr=0.01"],
    "warm-up of 0.2": ["--schedule.warmup_fraction=0.2"],
    "AdamW at 0.006": [
        "--optimizer.name=adamw", "--optimizer.momentum=0",
        "--optimizer.nesterov=false", "--optimizer.lr=0.006",
    ],
    "SGD without layer-wise normalization, at 0.05": ["--optimizer.name=sgd", "--optimizer.lr=0.05"],
    "batches of 64, learning rate 0.005": ["--batch_size=64", "--optimizer.lr=0.005"],
    "batches of 128, learning rate 0.005": ["--batch_size=128", "--optimizer.lr=0.005"],
    "no label smoothing": ["--loss.label_smoothing=0"],
    "random flips": ["--augment.flip=random"],
    "alternating flips": ["--augment.flip=alternating"],
    "shifts of up to 1 pixel": ["--augment.translate=1"],
    "24 px": ["--size.train=24"],
    "progressive: 20, 24, 28 px": ["--size.schedule=progressive", "--size.train=[20,24,28]"],
    "moving average of the weights (0.98)": ["--ema_decay=0.98"],
    "float32": ["--precision=float32"],
}  # fmt: skip

# The configurations from which `fashion-mnist-best` was selected. Each takes at most about half of the CPU time of the
# recipe before it (all channels, sixteen epochs).
ALL_CHANNELS = ["--model.width_mult=1", "--augment.flip=random", "--augment.translate=2", "--augment.cutout=8"]
BEST: dict[str, list[str]] = {
    "all channels": [*ALL_CHANNELS, "--epochs=8"],
    "0.7 of the channels, more epochs": [*ALL_CHANNELS, "--model.width_mult=0.7", "--epochs=13"],
    "no cutout, shifts of 1 pixel": [*ALL_CHANNELS, "--augment.cutout=0", "--augment.translate=1", "--epochs=8"],
    "learning rate 0.003": [*ALL_CHANNELS, "--optimizer.lr=0.003", "--epochs=8"],
    "SGD without layer-wise normalization, at 0.1": [
        *ALL_CHANNELS, "--optimizer.name=sgd", "--optimizer.lr=0.1", "--optimizer.weight_decay=0.0005",
        "--epochs=8",
    ],
    "Muon, fewer epochs": [*ALL_CHANNELS, "--optimizer.name=muon", "--epochs=6"],
}  # fmt: skip

# Trade-offs between channels and epochs, at batches of 256; then batch sizes and rates.
SLIM: dict[str, list[str]] = {
    "0.3 of the channels, as in the recipe": [],
    "all channels, one epoch": ["--model.width_mult=1", "--epochs=1"],
    "half of the channels": ["--model.width_mult=0.5"],
    "0.4 of the channels": ["--model.width_mult=0.4"],
    "a quarter of the channels": ["--model.width_mult=0.25"],
    "learning rate 0.008": ["--optimizer.lr=0.008"],
}
SLIM = {name: ["--batch_size=256", "--optimizer.lr=0.005", *flags] for name, flags in SLIM.items()} | {
    "the recipe: batches of 512, learning rate 0.01": [],
    "batches of 512, learning rate 0.005": ["--optimizer.lr=0.005"],
    "batches of 512, learning rate 0.007": ["--optimizer.lr=0.007"],
    "batches of 512, learning rate 0.014": ["--optimizer.lr=0.014"],
    "batches of 768, learning rate 0.014": ["--batch_size=768", "--optimizer.lr=0.014"],
}

VARIANTS = {"fashion-mnist-fast": FAST, "fashion-mnist-slim": SLIM, "fashion-mnist-best": BEST}


def train(recipe: str, flags: list[str], seed: int, tta_flip: bool) -> dict[str, float]:
    """Train once with 5,000 images held out; return validation top-1 and seconds of training."""
    with tempfile.TemporaryDirectory() as work:
        out = str(Path(work) / "run")
        trained = googlenet("train", recipe, "--data.val_split=5000", f"--seed={seed}", f"--out={out}", *flags)
        top1 = trained["metrics"]["validation"]["top1"]
        if tta_flip:
            top1 = googlenet("evaluate", out, "--split", "validation", "--tta-flip")["top1"]
    result = {"top1": top1, "seconds": trained["seconds"]}
    print(flags, seed, result, file=sys.stderr, flush=True)
    return result


def main() -> None:
    """Train every variant with every seed and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=list(VARIANTS), default="fashion-mnist-fast")
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="train only these variants")
    parser.add_argument("--tta-flip", action="store_true", help="evaluate with horizontal flips")
    parser.add_argument("--parallel", type=int, default=1, help="runs at the same time; durations are not comparable")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("changes", nargs="*", help="flags for all variants, after --, such as --epochs=1")
    args = parser.parse_args()
    variants = {name: [*flags, *args.changes] for name, flags in VARIANTS[args.recipe].items()}
    if unknown := set(args.only or ()) - set(variants):
        parser.error(
            f"unknown variants of {args.recipe}: {', '.join(sorted(unknown))}; choose from {', '.join(variants)}"
        )
    with ThreadPoolExecutor(args.parallel) as pool:
        futures = {
            name: [pool.submit(train, args.recipe, variants[name], seed, args.tta_flip) for seed in range(args.seeds)]
            for name in args.only or variants
        }
        rows = []
        for name, pending in futures.items():
            runs = [future.result() for future in pending]
            top1 = [run["top1"] for run in runs]
            rows.append({
                "change": name,
                "keys": " ".join(variants[name]),
                "validation_top1_mean": round(statistics.mean(top1), 4),
                "validation_top1_sd": round(statistics.stdev(top1), 4) if args.seeds > 1 else None,
                "seconds": round(statistics.median(run["seconds"] for run in runs), 1),
                "n": args.seeds,
            })  # fmt: skip
    document = {
        "recipe": args.recipe, "tta_flip": args.tta_flip, "parallel": args.parallel, "torch": torch.__version__,
        "device": device_name(), "rows": rows,
    }  # fmt: skip
    if args.json:
        print(json.dumps(document, indent=2))
        return
    for row in rows:
        mean, sd = row["validation_top1_mean"], row["validation_top1_sd"]
        print(f"{row['change']:<46}{mean:.4f}  sd {sd}  {row['seconds']} s")


if __name__ == "__main__":
    main()
