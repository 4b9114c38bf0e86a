"""Train on real image folders within a time, and compare with plain loops of torchvision and timm for the same time.

`googlenet train folder --minutes N` and plain_training.py, with n seeds, on the folders of own_images_data.py.
The test images were held out from the start. Every finished run is kept in WORK/results.jsonl, so an interrupted
benchmark continues. Run: make bench-own_images (about 4 hours for each seed)
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from _cli import device_name, googlenet
from own_images_data import write_folders

OURS = "googlenet"
SIDES = (OURS, "torchvision:googlenet", "timm:resnet18")
PLAIN = Path(__file__).with_name("plain_training.py")


def run_ours(data: Path, minutes: float, seed: int, out: Path) -> dict[str, Any]:
    """Train with the planned recipe; `seconds` are those of the whole command. An interrupted run starts again."""
    shutil.rmtree(out, ignore_errors=True)
    started = time.monotonic()
    arguments = ("train", "folder", "--data", str(data), "--minutes", str(minutes), "--seed", str(seed))
    document = googlenet(*arguments, "--out", str(out))
    seconds = time.monotonic() - started
    environment = json.loads((out / "environment.json").read_text())
    return {
        "top1": document["metrics"]["test"]["top1"], "seconds": round(seconds, 1), "plan": document["plan"],
        "native_kernels": environment["native_kernels"],
    }  # fmt: skip


def run_plain(side: str, data: Path, minutes: float, seed: int) -> dict[str, Any]:
    """Train with the plain loop."""
    command = [sys.executable, str(PLAIN), side, str(data), str(minutes), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1])
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def run_all(args: argparse.Namespace, folders: dict[str, Path]) -> list[dict[str, Any]]:
    """Run what is missing in results.jsonl, and return all rows of this selection."""
    log = args.folder / "results.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {(row["data"], row["side"], row["minutes"], row["seed"]): row for row in rows}
    keys = [
        (data, side, minutes, seed)
        for seed in range(args.seeds)
        for minutes in args.minutes
        for data in args.data
        for side in args.sides
    ]
    for data, side, minutes, seed in keys:
        if (data, side, minutes, seed) in done:
            continue
        if side == OURS:
            out = args.folder / "runs" / f"{data}-{minutes:g}-{seed}"
            row = run_ours(folders[data], minutes, seed, out)
        else:
            row = run_plain(side, folders[data], minutes, seed)
        row |= {"data": data, "side": side, "minutes": minutes, "seed": seed}
        row["num_test"] = sum(1 for _ in (folders[data] / "test").rglob("*.png"))
        with log.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(row, file=sys.stderr)
        done[data, side, minutes, seed] = row
    return [done[key] for key in keys]


def summarize(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean, standard deviation and interval over the seeds for each data set, side and time.

    The 95 % interval is that of the mean accuracy on the test images of one run (normal approximation).
    """
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["data"], row["side"], row["minutes"]), []).append(row)
    summary = []
    for (data, side, minutes), runs in groups.items():
        values, count = [run["top1"] for run in runs], runs[0]["num_test"]
        mean = statistics.mean(values)
        summary.append({
            "data": data, "side": side, "minutes": minutes, "n": len(runs), "top1": mean,
            "sd": statistics.stdev(values) if len(values) > 1 else 0.0,
            "half_interval": 1.96 * math.sqrt(mean * (1 - mean) / count), "num_test": count,
            "seconds": statistics.mean(run["seconds"] for run in runs), "plan": runs[0].get("plan", []),
        })  # fmt: skip
    return summary


def main() -> None:
    """Write the folders, run everything, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/own-images"), help="folder of data, runs and results")
    parser.add_argument("--packages", type=Path, default=Path("/"), help="where the Debian packages are unpacked")
    parser.add_argument("--data", nargs="+", default=["openclipart", "stamps", "textures"])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--minutes", nargs="+", type=float, default=[2.0, 5.0, 10.0])
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    folders = write_folders(args.packages, args.folder / "data")
    summary = summarize(run_all(args, folders))
    if args.json:
        machine = {"device": device_name(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        print(json.dumps({"rows": summary, **machine}, indent=2))
        return
    for row in summary:
        accuracy = f"{row['top1']:.4f} (± {row['half_interval']:.4f}, sd {row['sd']:.4f}, n = {row['n']})"
        print(f"{row['data']:<12} {row['minutes']:>3g} min  {row['side']:<22} {accuracy}  {row['seconds']:.0f} s")


if __name__ == "__main__":
    main()
