"""Compare the training speed of this package with the textbook's loop (`d2l_baseline.py`): the same functions.

The textbook's loop is measured as typed, with channels-last weights, and with bfloat16 autocast too. Each side runs in
its own process, in alternation, for several rounds; the results are medians. Prints a table, and with ``--json`` one
JSON document. Run: make bench-throughput
"""

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

from googlenet.devices import cpu_features, pick_precision

SIZES = (28, 32, 48, 64, 96)
BATCH = 128


def googlenet_steps(root: Path, size: int, steps: int, bfloat16: bool) -> list[float]:
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
        batch = training_batch(data.train, preprocess, Augment(), spec)
        with torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext():
            loss = task.loss(model, batch).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        now = time.perf_counter()
        seconds.append(now - last)
        last = now
    return seconds[2:]


class Side(NamedTuple):
    """What is measured: this package, or the textbook's loop with PyTorch's recommended settings."""

    is_textbook: bool
    bfloat16: bool
    channels_last: bool = True

    def step_seconds(self, root: Path, size: int, steps: int) -> list[float]:
        """Return the seconds of single steps."""
        if not self.is_textbook:
            return googlenet_steps(root, size, steps, self.bfloat16)
        from d2l_baseline import step_seconds

        return step_seconds(root, size, steps, BATCH, channels_last=self.channels_last, bfloat16=self.bfloat16)


TEXTBOOK = "textbook"
SIDES = {
    TEXTBOOK: Side(is_textbook=True, bfloat16=False, channels_last=False),
    "textbook, channels-last": Side(is_textbook=True, bfloat16=False),
    "textbook, channels-last, bfloat16": Side(is_textbook=True, bfloat16=True),
    "googlenet": Side(is_textbook=False, bfloat16=False),
    "googlenet, bfloat16": Side(is_textbook=False, bfloat16=True),
}


def matmul_gflops(dtype: torch.dtype) -> float:
    """Return the speed of a 4096-cube matrix product in GFLOP/s: the practical peak of this machine."""
    a, b = torch.rand(2, 4096, 4096).to(dtype)
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


def measure_size(size: int, sides: list[str], rounds: int, steps: int, root: Path) -> dict[str, list[float]]:
    """Measure the sides in alternation; return the images per second of each round."""
    speeds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, values in speeds.items():
            values.append(BATCH / statistics.median(run_in_process(side, size, steps, root)))
    return speeds


def compare_precision(speeds: dict[str, list[float]], bfloat16: bool, peak: float, gflop: float) -> dict[str, Any]:
    """Compare this package in one precision with the fastest textbook form of at most that precision, by round."""
    own = next(name for name in speeds if not SIDES[name].is_textbook and SIDES[name].bfloat16 == bfloat16)
    peers = [name for name in speeds if SIDES[name].is_textbook and SIDES[name].bfloat16 <= bfloat16]
    peer = max(peers, key=lambda name: statistics.median(speeds[name]))
    ratios = [ours / theirs for ours, theirs in zip(speeds[own], speeds[peer], strict=True)]
    return {
        "name": own, "peer": peer, "ratio": round(statistics.median(ratios), 2),
        "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
        "matmul_utilization": round(statistics.median(speeds[own]) * gflop / peak, 2),
    }  # fmt: skip


def compare(sizes: tuple[int, ...], rounds: int, steps: int) -> dict[str, Any]:
    """Measure all sides, in bfloat16 only where the processor has instructions for it."""
    bfloat16 = pick_precision("auto", torch.device("cpu")) == "bfloat16"
    sides = [name for name, side in SIDES.items() if bfloat16 or not side.bfloat16]
    peaks = {False: matmul_gflops(torch.float32)} | ({True: matmul_gflops(torch.bfloat16)} if bfloat16 else {})
    rows = []
    with tempfile.TemporaryDirectory() as work:
        root = unpack_fashion_mnist(Path(work))
        for size in sizes:
            speeds = measure_size(size, sides, rounds, steps, root)
            gflop = step_gflop(size)
            medians = {side: round(statistics.median(values), 1) for side, values in speeds.items()}
            compared = [compare_precision(speeds, precision, peak, gflop) for precision, peak in peaks.items()]
            rows.append({"size": size, "images_per_second": medians, "comparisons": compared})
            print(rows[-1], file=sys.stderr, flush=True)
    return {
        "torch": torch.__version__, "threads": torch.get_num_threads(), "cpu": cpu_features(),
        "matmul_gflops": {"bfloat16" if name else "float32": round(peak, 1) for name, peak in peaks.items()},
        "rounds": rounds, "steps_per_round": steps, "rows": rows,
    }  # fmt: skip


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
        print(json.dumps(SIDES[args.side].step_seconds(args.root, args.size, args.steps)))
        return
    document = compare(tuple(args.sizes), args.rounds, args.steps)
    if args.json:
        print(json.dumps(document, indent=2))
        return
    print(f"matrix product, GFLOP/s: {document['matmul_gflops']}; {document['threads']} threads")
    for row in document["rows"]:
        for name, speed in row["images_per_second"].items():
            print(f"{row['size']:>4} px  {name:<36}{speed:>8} images/s")
        for item in row["comparisons"]:
            low, high = item["ratio_range"]
            print(
                f"{row['size']:>4} px  {item['name']} is {item['ratio']} times as fast as {item['peer']} "
                f"({low} to {high}), {item['matmul_utilization']:.0%} of a matrix product"
            )


if __name__ == "__main__":
    main()
