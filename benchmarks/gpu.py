"""Training on a GPU: the textbook's loop and ours on the same card, in one call.

Each speed of ours is that of whole runs of `googlenet train` without their start: the pictures of a long run less
those of a short one, over the difference of their times. The textbook's data loader has four processes, as in the
chapter. The card must be free. Run: make bench-gpu
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from textbook import step_seconds
from throughput import BATCH, raw_folder

RECIPE = "fashion-mnist-d2l"
SIZES = (96, 28)
WAYS: dict[str, list[str]] = {
    "ours, float32": ["--precision=float32"],
    "ours, bfloat16": ["--precision=bfloat16"],
    "ours, bfloat16, compiled": ["--precision=bfloat16", "--compile=true"],
}
FAST = "fashion-mnist-fast"


def trained(recipe: str, flags: list[str], out: Path) -> tuple[float, float | None]:
    """Seconds of a run of `recipe`, and its test top-1."""
    from googlenet.training.loop import fit
    from googlenet.training.recipe_file import read_recipe

    fitted = fit(read_recipe(recipe, ["--device=cuda", *flags]), out, progress=False)
    return fitted.seconds, fitted.metrics["test"]["top1"]


def textbook(size: int, steps: int, scratch: Path) -> float:
    """Images per second of the chapter's loop, the median of its steps."""
    return BATCH / statistics.median(step_seconds(scratch, size, steps, BATCH, "cuda", workers=4))


def ours(size: int, way: str, epochs: tuple[float, float], scratch: Path) -> float:
    """Images per second of `RECIPE` at `size`, once its steps have started."""
    flags = [f"--size.train={size}", *WAYS[way]]
    short, long = (
        trained(RECIPE, [*flags, f"--epochs={length}"], scratch / f"{size} {way} {length}")[0] for length in epochs
    )
    return 60_000 * (epochs[1] - epochs[0]) / (long - short)


def compare(sizes: tuple[int, ...], epochs: tuple[float, float], steps: int, seeds: int) -> dict[str, object]:
    """Every side at every size, then whole runs of `FAST`."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        raw_folder(scratch)
        for size in sizes:
            speeds = {"textbook": textbook(size, steps, scratch)}
            for way in WAYS:
                speeds[way] = ours(size, way, epochs, scratch)
                print(size, speeds, file=sys.stderr, flush=True)
            rows.append({"size": size, "images_per_second": {side: round(speed) for side, speed in speeds.items()}})
        runs = [trained(FAST, [f"--seed={seed}"], scratch / f"fast {seed}") for seed in range(seeds)]
    return {
        "card": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "epochs": epochs,
        "steps": steps,
        "rows": rows,
        "fast": [{"seconds": round(seconds, 1), "top1": top1} for seconds, top1 in runs],
    }


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="pixels")
    parser.add_argument("--epochs", type=float, nargs=2, default=(0.5, 1.5), help="of a short and of a long run")
    parser.add_argument("--steps", type=int, default=100, help="of the textbook")
    parser.add_argument("--seeds", type=int, default=3, help=f"of {FAST}")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark is for a CUDA device, and there is none")
    found = compare(tuple(args.sizes), tuple(args.epochs), args.steps, args.seeds)
    if args.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{found['card']}, torch {found['torch']}: training images/s, and {FAST}: seconds and test top-1")
    for row in (*found["rows"], *found["fast"]):  # type: ignore[misc]
        print(f"  {row}")


if __name__ == "__main__":
    main()
