"""The experiments behind the rules of `training.planner`: settings on the folders of own_images_data.py, in equal time.

Every run has the same processor time of one thread, so it does not matter what else the machine does; the accuracy is
that of the validation images, which are held out of the training images. Finished runs are kept in WORK/rules.jsonl, so
an interrupted benchmark continues. Run: make bench-plan_rules (about an hour on one core)
"""

import argparse
import json
import math
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch

from googlenet.config.parse import read_recipe
from googlenet.config.schema import Recipe
from googlenet.training.fit import fit
from googlenet.training.time_budget import read_budget
from own_images_data import write_folders

# The recipe `folder` without its plan: half of the channels, crops of 35 % of the area, batches of 64.
BASE = (
    "--auto_plan=false", "--model.width_mult=0.5", "--augment.min_crop_scale=0.35", "--batch_size=64", "--epochs=10",
    "--eval_every_epochs=2.5", "--data.val_split=0.25", "--data.num_workers=0", "--data.in_memory=true",
    "--tracker=none", "--checkpoint_every_minutes=100",
)  # fmt: skip
# Data, seconds, and what differs from BASE.
RUNS = (
    *(("openclipart", 100, f"--size.train={size}") for size in (48, 64, 96, 128)),
    *(("stamps", 60, f"--size.train={size}") for size in (48, 96, 128)),
    *(("textures", 60, f"--size.train={size}") for size in (48, 96)),
    *(("stamps", 60, f"--size.train=96 --augment.min_crop_scale={scale}") for scale in (0.08, 0.2, 1)),
    *(("stamps", 60, f"--size.train=96 --batch_size={size}") for size in (16, 32)),
    *(("openclipart", 100, f"--size.train=96 --model.width_mult={width}") for width in (0.25, 1)),
    ("openclipart", 100, "--size.train=96 --loss.class_weights=balanced"),
    *(("openclipart", 300, f"--size.train={size}") for size in (64, 96, 128)),
)


def train(data: Path, seconds: float, flags: str, run: Path) -> dict[str, Any]:
    """Train for `seconds` of processor time, and return the validation accuracy."""
    shutil.rmtree(run, ignore_errors=True)
    budget = f"--budget_minutes={seconds / 60}"
    recipe: Recipe = read_recipe("folder", [*BASE, *flags.split(), budget, f"--data.source=folder:{data / 'train'}"])
    result = fit(recipe, run, progress=False, trial=lambda *_: None)
    entry = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    decisions = read_budget(run)
    assert decisions is not None
    return {
        "top1": result.metrics["validation"]["top1"], "num_validation": decisions.num_eval_images,
        "epochs": entry["epoch"], "images_per_second": result.images_per_second,
    }  # fmt: skip


def main() -> None:
    """Run what is missing, and print all rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/own-images"), help="folder of data, runs and results")
    parser.add_argument("--packages", type=Path, default=Path("/"), help="where the Debian packages are unpacked")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args()
    torch.set_num_threads(1)
    time.perf_counter = time.process_time  # the clock of every budget and speed in this process
    args.folder.mkdir(parents=True, exist_ok=True)
    folders = write_folders(args.packages, args.folder / "data")
    log = args.folder / "rules.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for data, seconds, flags in RUNS:
        if any((row["data"], row["seconds"], row["flags"]) == (data, seconds, flags) for row in rows):
            continue
        row = {"data": data, "seconds": seconds, "flags": flags}
        row |= train(folders[data], seconds, flags, args.folder / "rules-run")
        row["half_interval"] = 1.96 * math.sqrt(row["top1"] * (1 - row["top1"]) / row["num_validation"])
        rows.append(row)
        with log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, file=sys.stderr)
    if args.json:
        print(json.dumps({"rows": rows, "torch": torch.__version__}, indent=2))
        return
    for row in rows:
        print(
            f"{row['data']:<12} {row['seconds']:>4} s  {row['top1']:.4f} ± {row['half_interval']:.4f}  {row['flags']}"
        )


if __name__ == "__main__":
    main()
