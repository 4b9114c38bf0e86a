"""Every member of the family: speed on this processor, and accuracy from one common small budget.

Speed: one RGB picture at the member's own size, plain PyTorch, beside torchvision's googlenet in the same rounds.
Budget: the recipe fashion-mnist-fast with the stem of stride 2, 40 px, batch 64, 6,400 pictures once; accuracy on
2,000 held-out training pictures. Run: make bench-family
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
from googlenet.models.catalogue import MODELS

BUDGET = [
    "--model.stem_stride=2", "--size.train=40", "--batch_size=64",
    "--data.limit=6400", "--data.validation=2000",
]  # fmt: skip
PEER = "torchvision's googlenet"


def latencies(rounds: int) -> dict[str, list[float]]:
    """Seconds for one picture by round, by member, and for the peer; the rounds go through all of them in turn."""
    peer = torchvision.models.googlenet(weights=None, aux_logits=False, init_weights=False).eval()
    networks = {PEER: (peer, 224)}
    for name, entry in MODELS.items():
        networks[name] = (googlenet.create(name).eval(), entry.input_size)
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    with torch.inference_mode():
        for number in range(rounds + 1):
            for name, (network, size) in networks.items():
                picture = torch.randn(1, 3, size, size)
                network(picture)
                start = time.perf_counter()
                network(picture)
                if number:
                    seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Measure, train, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="of the speed (default 7)")
    parser.add_argument("--seeds", type=int, default=1, help="of the training (default 1)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    rounds = latencies(options.rounds)
    speed = {name: statistics.median(found) for name, found in rounds.items()}
    rows = []
    for name, entry in MODELS.items():
        figures, seconds = [], []
        for seed in range(options.seeds):
            flags = [*BUDGET, f"--model.name={name}", f"--seed={seed}", "--model.pools=null"]
            with tempfile.TemporaryDirectory() as work:
                fitted = googlenet.fit(
                    googlenet.read_recipe("fashion-mnist-fast", flags), Path(work) / "run", progress=False
                )
            figures.append(fitted.metrics["validation"]["top1"])
            seconds.append(fitted.seconds)
        rows.append(
            {
                "name": name,
                "parameters": entry.parameters,
                "macs": entry.macs,
                "size": entry.input_size,
                "milliseconds": round(1000 * speed[name], 1),
                "milliseconds_range": [round(1000 * end(rounds[name]), 1) for end in (min, max)],
                "ratio": round(speed[name] / speed[PEER], 2),
                "top1": figures,
                "seconds": round(statistics.median(seconds), 1),
            }
        )
        print(f"{name}: {rows[-1]}", file=sys.stderr)
    document = {
        "peer": PEER,
        "peer_milliseconds": round(1000 * speed[PEER], 1),
        "rounds": options.rounds,
        "seeds": list(range(options.seeds)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "rows": rows,
    }
    if options.json:
        print(json.dumps(document, indent=2))
        return
    for row in rows:
        print(f"{row['name']:<28}{row['milliseconds']:>8} ms {row['ratio']:>6}  {row['top1']}  {row['seconds']} s")


if __name__ == "__main__":
    main()
