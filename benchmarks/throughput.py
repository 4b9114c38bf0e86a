"""Compare the training speed of this package with the plain PyTorch baseline (`d2l_baseline.py`): the same functions.

Each side runs in its own process, in alternation, for several rounds; the results are medians. Prints a table, and with
``--json`` one JSON document. Run: make bench-throughput
"""

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

SIZES = (28, 32, 48, 64, 96)
BATCH = 128


def baseline_steps(size: int, steps: int, root: Path) -> list[float]:
    """Return the seconds of single steps of the baseline."""
    from d2l_baseline import step_seconds

    return step_seconds(root, size, steps, BATCH)


def googlenet_steps(size: int, steps: int, root: Path) -> list[float]:
    """Return the seconds of single steps of this package: batch, forward, backward, update."""
    from googlenet import kernels
    from googlenet.checkpoint.format import build_network
    from googlenet.config.parse import read_recipe
    from googlenet.data.augment import Augment
    from googlenet.data.loader import full_batch_spec, training_batch
    from googlenet.data.preprocess import Preprocess
    from googlenet.data.sources import LoadOptions, load_dataset
    from googlenet.training.optim import build_optimizer
    from googlenet.training.tasks.classification import ClassificationTask

    recipe = read_recipe("fashion-mnist-d2l")
    data = load_dataset("fashion-mnist", LoadOptions(root=str(root / "FashionMNIST" / "raw"), validation=0))
    model = build_network(recipe, 10, 1).train()
    kernels.keep_freed_memory()
    kernels.enable_cpu_kernels(model)
    optimizer, task = build_optimizer(recipe.optimizer, model), ClassificationTask(recipe.loss)
    preprocess = Preprocess(size, 1, (0.0,), (1.0,))
    num_images = len(data.train.labels)
    seconds, last = [], time.perf_counter()
    for step in range(steps + 2):
        spec = full_batch_spec(num_images, BATCH, step=step, size=size, seed=0)
        loss = task.loss(model, training_batch(data.train, preprocess, Augment(), spec)).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        now = time.perf_counter()
        seconds.append(now - last)
        last = now
    return seconds[2:]


SIDES = {"baseline": baseline_steps, "googlenet": googlenet_steps}


def matmul_gflops() -> float:
    """Return the speed of a 4096-cube float32 matrix product in GFLOP/s: the practical peak of this machine."""
    a, b = torch.rand(4096, 4096), torch.rand(4096, 4096)
    torch.mm(a, b)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - started)
    return 2 * 4096**3 / statistics.median(seconds) / 1e9


def step_gflop(size: int) -> float:
    """Return the GFLOP of one image, forward and backward, as torch counts convolutions and linear layers."""
    from torch.utils.flop_counter import FlopCounterMode

    import googlenet

    model = googlenet.create("googlenet_d2l", 10, 1)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 1, size, size)).sum().backward()
    return counter.get_total_flops() / 2 / 1e9


def run_in_process(side: str, size: int, steps: int, root: Path) -> list[float]:
    """Run one side in a new process, so that the sides share neither threads nor memory."""
    command = [
        sys.executable,
        __file__,
        "--side",
        side,
        "--size",
        str(size),
        "--steps",
        str(steps),
        "--root",
        str(root),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds: list[float] = json.loads(done.stdout)
    return seconds


def unpack_fashion_mnist(root: Path) -> Path:
    """Unpack Fashion-MNIST below `root` in torchvision's layout."""
    from googlenet.data.sources.fashion_mnist import find_fashion_mnist, list_files

    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in list_files(find_fashion_mnist()):
        content = file.read_bytes()
        (raw / file.name.removesuffix(".gz")).write_bytes(gzip.decompress(content) if file.suffix else content)
    return root


def compare(sizes: tuple[int, ...], rounds: int, steps: int) -> dict[str, Any]:
    """Measure both sides in alternation and return the medians for each size."""
    rows = []
    with tempfile.TemporaryDirectory() as work:
        root = unpack_fashion_mnist(Path(work))
        peak = matmul_gflops()
        for size in sizes:
            seconds: dict[str, list[float]] = {side: [] for side in SIDES}
            for _ in range(rounds):
                for side, values in seconds.items():
                    values.append(statistics.median(run_in_process(side, size, steps, root)))
            ratios = [a / b for a, b in zip(seconds["baseline"], seconds["googlenet"], strict=True)]
            speed = BATCH / statistics.median(seconds["googlenet"])
            rows.append({
                "size": size,
                "baseline_images_per_second": round(BATCH / statistics.median(seconds["baseline"]), 1),
                "images_per_second": round(speed, 1),
                "ratio": round(statistics.median(ratios), 2),
                "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
                "matmul_utilization": round(speed * step_gflop(size) / peak, 2),
            })  # fmt: skip
            print(rows[-1], file=sys.stderr, flush=True)
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "matmul_gflops": round(peak, 1),
        "rounds": rounds,
        "steps_per_round": steps,
        "rows": rows,
    }


def main() -> None:
    """Compare, or, with --side, run one side and print its seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="image sizes in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="measured steps per round")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(SIDES[args.side](args.size, args.steps, args.root)))
        return
    document = compare(tuple(args.sizes), args.rounds, args.steps)
    if args.json:
        print(json.dumps(document, indent=2))
        return
    print(
        f"matrix product: {document['matmul_gflops']} GFLOP/s, {document['threads']} threads, torch {torch.__version__}"
    )
    print("size  baseline  googlenet  ratio (range)       relative to the product")
    for row in document["rows"]:
        low, high = row["ratio_range"]
        print(
            f"{row['size']:>4}  {row['baseline_images_per_second']:>8}  {row['images_per_second']:>9}"
            f"  {row['ratio']:>5} ({low}-{high})  {row['matmul_utilization']:>12.0%}"
        )


if __name__ == "__main__":
    main()
