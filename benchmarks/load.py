"""Measure the training steps of a recipe alone and next to a process that keeps one core busy.

The threads of a step wait for each other several hundred times, so a neighbor delays all of them. Each case runs in
its own process, in alternation, for several rounds; the results are medians. Prints a table, and with ``--json`` one
JSON document. Run: make bench-load
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F

from googlenet.devices import cpu_features, pick_precision

RECIPES = ("fashion-mnist-fast", "fashion-mnist-slim")
BUSY_PROGRAM = "while True: pass"


def step_seconds(name: str, steps: int) -> list[float]:
    """Return the seconds of single training steps of a recipe on random pixels: forward, backward, update."""
    from googlenet import kernels
    from googlenet.checkpoint.format import build_network
    from googlenet.config.parse import read_recipe
    from googlenet.training.optim import build_optimizer

    recipe = read_recipe(name)
    model = build_network(recipe, 10, 1).train()
    kernels.keep_freed_memory()
    kernels.enable_cpu_kernels(model)
    optimizer = build_optimizer(recipe.optimizer, model)
    bfloat16 = pick_precision(recipe.precision, torch.device("cpu")) == "bfloat16"
    pixels = torch.rand(recipe.batch_size, 1, recipe.eval_size, recipe.eval_size)
    labels = torch.randint(10, (recipe.batch_size,))
    seconds, last = [], time.perf_counter()
    for _ in range(steps + 5):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext():
            logits = model(pixels)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        now = time.perf_counter()
        seconds.append(now - last)
        last = now
    return seconds[5:]


@contextmanager
def busy_core() -> Iterator[None]:
    """Keep one core busy with another process."""
    with subprocess.Popen([sys.executable, "-c", BUSY_PROGRAM]) as process:
        try:
            yield
        finally:
            process.kill()


def measure(name: str, steps: int, rounds: int) -> dict[str, Any]:
    """Return the milliseconds of a step alone and next to a busy process, and the speed that remains."""
    command = [sys.executable, __file__, "--side", name, "--steps", str(steps)]

    def run_once() -> float:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return 1e3 * statistics.median(json.loads(done.stdout))

    alone, loaded = list[float](), list[float]()
    for _ in range(rounds):
        alone.append(run_once())
        with busy_core():
            loaded.append(run_once())
    return {
        "recipe": name,
        "alone_ms": round(statistics.median(alone), 1),
        "loaded_ms": round(statistics.median(loaded), 1),
        "speed": round(statistics.median(a / b for a, b in zip(alone, loaded, strict=True)), 2),
    }


def main() -> None:
    """Measure all recipes, or, with --side, one recipe in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=15, help="measured steps per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--side", choices=RECIPES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(step_seconds(args.side, args.steps)))
        return
    rows = [measure(name, args.steps, args.rounds) for name in RECIPES]
    document = {"cpu": cpu_features(), "threads": torch.get_num_threads(), "torch": torch.__version__, "rows": rows}
    if args.json:
        print(json.dumps(document, indent=2))
        return
    for row in rows:
        print(f"{row['recipe']:<20} {row['alone_ms']:>8} ms alone {row['loaded_ms']:>8} ms next to a busy process")


if __name__ == "__main__":
    main()
