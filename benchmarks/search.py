"""What helps `fashion-mnist-fast` and what does not: one change at a time, scored on the validation part.

The test set is never looked at here. Each row is a change of the recipe's keys, as `googlenet train` takes them.
Run: make bench-search
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

VARIANTS: dict[str, list[str]] = {
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


def run(recipe: str, changes: list[str], seed: int, out: Path) -> dict[str, float]:
    """One training with 5,000 training pictures held out: validation top-1, and seconds of training."""
    command = [
        sys.executable, "-m", "googlenet", "train", recipe, "--data.validation=5000", f"--seed={seed}",
        f"--out={out}", "--json", *changes,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1])
    answer = json.loads(done.stdout)
    return {"top1": answer["metrics"]["validation"]["top1"], "seconds": answer["seconds"]}


def main() -> None:
    """Run every variant with every seed and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="fashion-mnist-fast")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), help="these variants alone")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = []
    for name in args.only or VARIANTS:
        with tempfile.TemporaryDirectory() as scratch:
            runs = [run(args.recipe, VARIANTS[name], seed, Path(scratch) / str(seed)) for seed in range(args.seeds)]
        top1 = [found["top1"] for found in runs]
        rows.append({
            "change": name,
            "keys": " ".join(VARIANTS[name]),
            "validation_top1_mean": round(statistics.mean(top1), 4),
            "validation_top1_sd": round(statistics.stdev(top1), 4) if args.seeds > 1 else None,
            "seconds": round(statistics.median(found["seconds"] for found in runs), 1),
            "n": args.seeds,
        })  # fmt: skip
        print(rows[-1], file=sys.stderr, flush=True)
    if args.json:
        print(json.dumps({"recipe": args.recipe, "rows": rows}, indent=2))
        return
    for row in rows:
        mean, sd = row["validation_top1_mean"], row["validation_top1_sd"]
        print(f"{row['change']:<42}{mean:.4f}  sd {sd}  {row['seconds']} s")


if __name__ == "__main__":
    main()
