"""Training speed: our step against the textbook's (`textbook.py`), the same functions, in one call.

Each side runs in a process of its own, in turn, several rounds; the figures are medians. Prints a table, and with
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

import torch

SIZES = (28, 32, 48, 64, 96)
BATCH = 128


def textbook(size: int, steps: int, root: Path) -> list[float]:
    """Seconds of single steps of the textbook's loop."""
    from textbook import step_seconds

    return step_seconds(root, size, steps, BATCH)


def ours(size: int, steps: int, root: Path) -> list[float]:
    """Seconds of single steps of our loop's parts: batch, forward, backward, update."""
    from googlenet.data.loader import Augment, training_batch
    from googlenet.data.preprocess import Preprocess
    from googlenet.data.sources import load_dataset
    from googlenet.models import native
    from googlenet.training.checkpoint import build_model
    from googlenet.training.optimiser import build_optimiser
    from googlenet.training.recipe_file import read_recipe
    from googlenet.training.task import Classification

    recipe = read_recipe("fashion-mnist-d2l")
    data = load_dataset("fashion-mnist", root=str(root / "FashionMNIST" / "raw"), validation=0)
    model = build_model(recipe, 10, 1).train()
    native.enable(model)
    optimiser, task = build_optimiser(recipe.optimiser, model), Classification(recipe.loss)
    preprocess = Preprocess(size, 1, (0.0,), (1.0,))
    seconds, last = [], time.perf_counter()
    for step in range(steps + 2):
        batch = training_batch(
            data.train, preprocess, Augment(), step=step, batch_size=BATCH, size=size, seed=0
        )  # fmt: skip
        loss = task.loss(model, batch).loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        now = time.perf_counter()
        seconds.append(now - last)
        last = now
    return seconds[2:]


def product_gflops() -> float:
    """Speed of a 4096-cube float32 matrix product, in GFLOP/s: what this machine can do at the most."""
    a, b = torch.rand(4096, 4096), torch.rand(4096, 4096)
    torch.mm(a, b)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - started)
    return 2 * 4096**3 / statistics.median(seconds) / 1e9


def step_gflop(size: int) -> float:
    """GFLOP of one picture, forward and backward, as torch counts convolutions and linear layers."""
    from torch.utils.flop_counter import FlopCounterMode

    import googlenet

    model = googlenet.create("googlenet_d2l", 10, 1)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 1, size, size)).sum().backward()
    return counter.get_total_flops() / 2 / 1e9


def in_its_own_process(side: str, size: int, steps: int, root: Path) -> list[float]:
    """Run one side alone, so that neither leaves threads or memory to the other."""
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


def raw_folder(root: Path) -> Path:
    """Fashion-MNIST as torchvision wants it, unpacked under `root`."""
    from googlenet.data.fashion_mnist import fetched_files, find_fashion_mnist

    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in fetched_files(find_fashion_mnist()):
        content = file.read_bytes()
        (raw / file.name.removesuffix(".gz")).write_bytes(gzip.decompress(content) if file.suffix else content)
    return root


def compare(sizes: tuple[int, ...], rounds: int, steps: int) -> dict[str, object]:
    """Medians for each size, the two sides in turn."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        root = raw_folder(Path(scratch))
        product = product_gflops()
        for size in sizes:
            sides: dict[str, list[float]] = {"textbook": [], "ours": []}
            for _ in range(rounds):
                for side, seconds in sides.items():
                    seconds.append(statistics.median(in_its_own_process(side, size, steps, root)))
            ratios = [a / b for a, b in zip(sides["textbook"], sides["ours"], strict=True)]
            speed = BATCH / statistics.median(sides["ours"])
            rows.append({
                "size": size,
                "textbook_images_per_second": round(BATCH / statistics.median(sides["textbook"]), 1),
                "images_per_second": round(speed, 1),
                "ratio": round(statistics.median(ratios), 2),
                "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
                "share_of_product": round(speed * step_gflop(size) / product, 2),
            })  # fmt: skip
            print(rows[-1], file=sys.stderr, flush=True)
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "product_gflops": round(product, 1),
        "rounds": rounds,
        "steps_per_round": steps,
        "rows": rows,
    }


def main() -> None:
    """Compare, or, with --side, run one side and print its seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="counted steps in a round")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", choices=["textbook", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps({"textbook": textbook, "ours": ours}[args.side](args.size, args.steps, args.root)))
        return
    found = compare(tuple(args.sizes), args.rounds, args.steps)
    if args.json:
        print(json.dumps(found, indent=2))
        return
    print(f"matrix product: {found['product_gflops']} GFLOP/s, {found['threads']} threads, torch {found['torch']}")
    print("size  textbook  ours      ratio (range)       share of the product's speed")
    for row in found["rows"]:  # type: ignore[attr-defined]
        low, high = row["ratio_range"]
        print(
            f"{row['size']:>4}  {row['textbook_images_per_second']:>8}  {row['images_per_second']:>8}"
            f"  {row['ratio']:>5} ({low}-{high})  {row['share_of_product']:>12.0%}"
        )


if __name__ == "__main__":
    main()
