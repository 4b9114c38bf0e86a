"""Compare all networks: speed on this processor, and accuracy with one common small training budget.

Speed: one RGB image at the network's default size in plain PyTorch, with torchvision's googlenet in the same rounds.
Training budget: the recipe fashion-mnist-fast with a stem of stride 2, 40 px, batch 64, 6,400 images once; accuracy on
2,000 held-out training images. Run: make bench-models
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torchvision

import googlenet
from googlenet.models.registry import MODELS

BUDGET = [
    "--model.stem_stride=2", "--model.pool_mode=null", "--size.train=40", "--batch_size=64",
    "--data.max_samples=6400", "--data.val_split=2000",
]  # fmt: skip
BASELINE = "torchvision's googlenet"


def measure_latencies(rounds: int) -> dict[str, list[float]]:
    """Return the seconds of one image by round, for each network and the baseline, measured in alternation."""
    baseline = torchvision.models.googlenet(weights=None, aux_logits=False, init_weights=False).eval()
    networks: dict[str, tuple[torch.nn.Module, int]] = {BASELINE: (baseline, 224)}
    for name, spec in MODELS.items():
        networks[name] = (googlenet.create(name).eval(), spec.input_size)
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    with torch.inference_mode():
        for index in range(rounds + 1):
            for name, (network, size) in networks.items():
                image = torch.randn(1, 3, size, size)
                network(image)
                start = time.perf_counter()
                network(image)
                if index:
                    seconds[name].append(time.perf_counter() - start)
    return seconds


def train(name: str, seed: int) -> tuple[float, float]:
    """Train a network with the budget; return validation top-1 and seconds."""
    recipe = googlenet.read_recipe("fashion-mnist-fast", [*BUDGET, f"--model.name={name}", f"--seed={seed}"])
    with tempfile.TemporaryDirectory() as work:
        result = googlenet.fit(recipe, Path(work) / "run", progress=False)
    return result.metrics["validation"]["top1"], result.seconds


def main() -> None:
    """Measure, train and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="rounds of the speed measurement (default 7)")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds of the training (default 1)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args()
    latencies = measure_latencies(args.rounds)
    medians = {name: statistics.median(values) for name, values in latencies.items()}
    rows = []
    for name, spec in MODELS.items():
        results = [train(name, seed) for seed in range(args.seeds)]
        rows.append({
            "name": name,
            "parameters": spec.parameters,
            "macs": spec.macs,
            "size": spec.input_size,
            "milliseconds": round(1000 * medians[name], 1),
            "milliseconds_range": [round(1000 * bound(latencies[name]), 1) for bound in (min, max)],
            "ratio": round(medians[name] / medians[BASELINE], 2),
            "top1": [top1 for top1, _ in results],
            "seconds": round(statistics.median(seconds for _, seconds in results), 1),
        })  # fmt: skip
        print(rows[-1], file=sys.stderr)
    document = {
        "baseline": BASELINE,
        "baseline_milliseconds": round(1000 * medians[BASELINE], 1),
        "rounds": args.rounds,
        "seeds": list(range(args.seeds)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "rows": rows,
    }
    if args.json:
        print(json.dumps(document, indent=2))
        return
    for row in rows:
        print(f"{row['name']:<28}{row['milliseconds']:>8} ms {row['ratio']:>6}  {row['top1']}  {row['seconds']} s")


if __name__ == "__main__":
    main()
