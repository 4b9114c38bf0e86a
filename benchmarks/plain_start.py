"""What it takes that the network without normalisation leaves log(10): weights, optimiser, warm-up, side heads.

The paper's googlenet on Fashion-MNIST at 32 px, batch 64, 120 steps a row; the loss is that of the classifier over
the last twenty. Run: make bench-plain_start
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

import googlenet
from googlenet.data.sources import load_dataset
from googlenet.models.network import Network
from googlenet.training.layerwise import LayerwiseSGD

STEPS, BATCH, SIZE = 120, 64, 32
Optimisers = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Row(NamedTuple):
    """One way to start."""

    init: str
    optimiser: str
    warmup: int = 0
    aux: bool = False


OPTIMISERS: dict[str, Optimisers] = {
    "SGD 0.01, momentum 0.9": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
    "SGD 0.1, no momentum": lambda p: torch.optim.SGD(p, 0.1),
    "SGD 0.1, momentum 0.9": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "Adam 0.001": lambda p: torch.optim.Adam(p, 0.001),
    "layer-wise SGD 0.001": lambda p: LayerwiseSGD(list(p), 0.001, momentum=0.9, nesterov=True),
    "layer-wise SGD 0.005": lambda p: LayerwiseSGD(list(p), 0.005, momentum=0.9, nesterov=True),
}
ROWS = [
    Row("normal, sd 0.01", "SGD 0.01, momentum 0.9"),
    Row("normal, sd 0.01", "SGD 0.1, momentum 0.9"),
    Row("normal, sd 0.01", "Adam 0.001"),
    Row("xavier", "SGD 0.01, momentum 0.9"),
    Row("xavier", "SGD 0.1, no momentum"),
    Row("xavier", "layer-wise SGD 0.005", warmup=20),
    Row("truncated_normal", "SGD 0.01, momentum 0.9"),
    Row("truncated_normal", "SGD 0.1, momentum 0.9"),
    Row("truncated_normal", "SGD 0.1, momentum 0.9", warmup=20),
    Row("truncated_normal", "SGD 0.01, momentum 0.9", aux=True),
    Row("truncated_normal", "Adam 0.001"),
    Row("truncated_normal", "layer-wise SGD 0.001"),
    Row("truncated_normal", "layer-wise SGD 0.001", warmup=20),
    Row("truncated_normal", "layer-wise SGD 0.001", warmup=20, aux=True),
    Row("truncated_normal", "layer-wise SGD 0.005"),
    Row("truncated_normal", "layer-wise SGD 0.005", warmup=20),
    Row("truncated_normal", "layer-wise SGD 0.005", warmup=20, aux=True),
]


def built(row: Row, seed: int) -> Network:
    """The paper's network with the row's initial weights."""
    fixed = row.init.startswith("normal")
    model = googlenet.create(
        "googlenet", 10, 1, row.aux, init="xavier" if fixed else row.init, dropout=0.0, seed=seed
    )
    if fixed:
        generator = torch.Generator().manual_seed(seed)
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.normal_(module.weight, std=0.01, generator=generator)
                nn.init.zeros_(module.bias)
    return model.train()


def final_loss(row: Row, seed: int, pixels: torch.Tensor, labels: torch.Tensor) -> float:
    """The mean loss of the last twenty steps; not a number where it diverged."""
    model = built(row, seed)
    optimiser = OPTIMISERS[row.optimiser](model.parameters())
    rate = optimiser.param_groups[0]["lr"]
    found = []
    for step in range(STEPS):
        rows = slice(step * BATCH, (step + 1) * BATCH)
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / row.warmup) if row.warmup else rate
        logits = model.forward_aux(pixels[rows])
        losses = [F.cross_entropy(out, labels[rows]) for out in (logits.main, *logits.aux)]
        optimiser.zero_grad()
        torch.stack([losses[0], *(0.3 * loss for loss in losses[1:])]).sum().backward()
        optimiser.step()
        found.append(losses[0].detach())
    return float(torch.stack(found[-20:]).mean())


def main() -> None:
    """Train every row from every seed, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    data = load_dataset("fashion-mnist", validation=0, limit=STEPS * BATCH)
    pixels = F.interpolate((data.train.images.float() / 255 - 0.286) / 0.353, (SIZE, SIZE), mode="bilinear")
    rows = []
    for row in ROWS:
        losses = [final_loss(row, seed, pixels, data.train.labels) for seed in range(options.seeds)]
        rows.append({**row._asdict(), "losses": [round(loss, 3) if math.isfinite(loss) else None for loss in losses]})
        print(rows[-1], file=sys.stderr)
    document = {"guess": round(math.log(10), 3), "steps": STEPS, "rows": rows, "torch": torch.__version__}
    print(json.dumps(document, indent=2) if options.json else "\n".join(map(str, rows)))


if __name__ == "__main__":
    main()
