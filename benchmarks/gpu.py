"""Compare training on a GPU: the loop of the plain PyTorch baseline and this package, on the same GPU.

The speed of this package is that of whole runs of `googlenet train` without their start: the images of a long run minus
those of a short one, divided by the difference of their times. The data loader of the baseline has four processes, as
in the chapter. No other program may use the GPU. Run: make bench-gpu
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from d2l_baseline import step_seconds
from throughput import BATCH, unpack_fashion_mnist

RECIPE = "fashion-mnist-d2l"
SIZES = (96, 28)
CONFIGURATIONS: dict[str, list[str]] = {
    "float32": ["--precision=float32"],
    "bfloat16": ["--precision=bfloat16"],
    "bfloat16, compiled": ["--precision=bfloat16", "--compile=true"],
}
FAST = "fashion-mnist-fast"


def train(recipe: str, flags: list[str], out: Path) -> tuple[float, float]:
    """Train `recipe`; return seconds and test top-1."""
    from googlenet.config.parse import read_recipe
    from googlenet.training.fit import fit

    result = fit(read_recipe(recipe, ["--device=cuda", *flags]), out, progress=False)
    return result.seconds, result.metrics["test"]["top1"]


def baseline_speed(size: int, steps: int, root: Path) -> float:
    """Return the images per second of the baseline (median step)."""
    return BATCH / statistics.median(step_seconds(root, size, steps, BATCH, "cuda", workers=4))


def googlenet_speed(size: int, name: str, epochs: tuple[float, float], work: Path) -> float:
    """Return the images per second of `RECIPE` at `size`, without the start of the run."""
    flags = [f"--size.train={size}", *CONFIGURATIONS[name]]
    short, long = (
        train(RECIPE, [*flags, f"--epochs={length}"], work / f"{size} {name} {length}")[0] for length in epochs
    )
    return 60_000 * (epochs[1] - epochs[0]) / (long - short)


def compare(sizes: tuple[int, ...], epochs: tuple[float, float], steps: int, seeds: int) -> dict[str, Any]:
    """Measure every configuration at every size, then whole runs of `FAST`."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        work = unpack_fashion_mnist(Path(folder))
        for size in sizes:
            speeds = {"baseline": baseline_speed(size, steps, work)}
            for name in CONFIGURATIONS:
                speeds[name] = googlenet_speed(size, name, epochs, work)
                print(size, speeds, file=sys.stderr, flush=True)
            rows.append({"size": size, "images_per_second": {name: round(speed) for name, speed in speeds.items()}})
        runs = [train(FAST, [f"--seed={seed}"], work / f"fast {seed}") for seed in range(seeds)]
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "epochs": epochs,
        "steps": steps,
        "rows": rows,
        "fast": [{"seconds": round(seconds, 1), "top1": top1} for seconds, top1 in runs],
    }


def main() -> None:
    """Compare and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="image sizes in pixels")
    parser.add_argument("--epochs", type=float, nargs=2, default=(0.5, 1.5), help="epochs of a short and a long run")
    parser.add_argument("--steps", type=int, default=100, help="steps of the baseline")
    parser.add_argument("--seeds", type=int, default=3, help=f"number of seeds of {FAST}")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a CUDA device")
    document = compare(tuple(args.sizes), tuple(args.epochs), args.steps, args.seeds)
    if args.json:
        print(json.dumps(document, indent=2))
        return
    print(f"{document['device']}, torch {document['torch']}: training images/s, and {FAST}: seconds and test top-1")
    for row in (*document["rows"], *document["fast"]):
        print(f"  {row}")


if __name__ == "__main__":
    main()
