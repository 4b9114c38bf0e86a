"""Compare initializations and optimizers for the network without normalization: which leave the uniform loss log(10)?

The paper's googlenet on Fashion-MNIST at 32 px, batch 64, 120 steps per row. The loss is that of the classifier over
the last twenty steps. Run: make bench-init_without_norm
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
from googlenet.data.sources import LoadOptions, load_dataset
from googlenet.models.network import Network
from googlenet.training.optim.normalized_sgd import LayerwiseNormalizedSGD

STEPS, BATCH, SIZE, AUX_WEIGHT = 120, 64, 32, 0.3
NORMAL = "normal, sd 0.01"


class Row(NamedTuple):
    """A configuration: initial weights, optimizer, warm-up steps, auxiliary heads."""

    init: str
    optimizer: str
    warmup: int = 0
    aux: bool = False


def normalized_sgd(lr: float) -> Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]:
    """Return a constructor of layer-wise normalized SGD."""
    return lambda parameters: LayerwiseNormalizedSGD(list(parameters), lr, momentum=0.9, nesterov=True)


OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]] = {
    "SGD 0.01, momentum 0.9": lambda parameters: torch.optim.SGD(parameters, 0.01, momentum=0.9),
    "SGD 0.1, no momentum": lambda parameters: torch.optim.SGD(parameters, 0.1),
    "SGD 0.1, momentum 0.9": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9),
    "Adam 0.001": lambda parameters: torch.optim.Adam(parameters, 0.001),
    "normalized SGD 0.001": normalized_sgd(0.001),
    "normalized SGD 0.005": normalized_sgd(0.005),
}
ROWS = [
    Row(NORMAL, "SGD 0.01, momentum 0.9"),
    Row(NORMAL, "SGD 0.1, momentum 0.9"),
    Row(NORMAL, "Adam 0.001"),
    Row("xavier", "SGD 0.01, momentum 0.9"),
    Row("xavier", "SGD 0.1, no momentum"),
    Row("xavier", "normalized SGD 0.005", warmup=20),
    Row("truncated_normal", "SGD 0.01, momentum 0.9"),
    Row("truncated_normal", "SGD 0.1, momentum 0.9"),
    Row("truncated_normal", "SGD 0.1, momentum 0.9", warmup=20),
    Row("truncated_normal", "SGD 0.01, momentum 0.9", aux=True),
    Row("truncated_normal", "Adam 0.001"),
    Row("truncated_normal", "normalized SGD 0.001"),
    Row("truncated_normal", "normalized SGD 0.001", warmup=20),
    Row("truncated_normal", "normalized SGD 0.001", warmup=20, aux=True),
    Row("truncated_normal", "normalized SGD 0.005"),
    Row("truncated_normal", "normalized SGD 0.005", warmup=20),
    Row("truncated_normal", "normalized SGD 0.005", warmup=20, aux=True),
]


def build_model(row: Row, seed: int) -> Network:
    """Build the paper's network with the row's initial weights."""
    init = "xavier" if row.init == NORMAL else row.init
    model = googlenet.create("googlenet", 10, 1, row.aux, init=init, dropout=0.0, seed=seed)
    if row.init == NORMAL:
        generator = torch.Generator().manual_seed(seed)
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.normal_(module.weight, std=0.01, generator=generator)
                nn.init.zeros_(module.bias)
    return model.train()


def final_loss(row: Row, seed: int, pixels: torch.Tensor, labels: torch.Tensor) -> float:
    """Train and return the mean loss of the last twenty steps; NaN if training diverged."""
    model = build_model(row, seed)
    optimizer = OPTIMIZERS[row.optimizer](model.parameters())
    lr = optimizer.param_groups[0]["lr"]
    losses = []
    for step in range(STEPS):
        batch = slice(step * BATCH, (step + 1) * BATCH)
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / row.warmup) if row.warmup else lr
        logits, aux_logits = model.forward_aux(pixels[batch])
        loss = F.cross_entropy(logits, labels[batch])
        optimizer.zero_grad()
        aux_losses = [AUX_WEIGHT * F.cross_entropy(aux, labels[batch]) for aux in aux_logits]
        torch.stack([loss, *aux_losses]).sum().backward()
        optimizer.step()
        losses.append(loss.detach())
    return float(torch.stack(losses[-20:]).mean())


def main() -> None:
    """Train every row with every seed and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args()
    train = load_dataset("fashion-mnist", LoadOptions(validation=0, max_samples=STEPS * BATCH)).train
    pixels = F.interpolate((train.images.float() / 255 - 0.286) / 0.353, (SIZE, SIZE), mode="bilinear")
    rows = []
    for row in ROWS:
        losses = [final_loss(row, seed, pixels, train.labels) for seed in range(args.seeds)]
        rows.append({**row._asdict(), "losses": [round(loss, 3) if math.isfinite(loss) else None for loss in losses]})
        print(rows[-1], file=sys.stderr)
    document = {"uniform_loss": round(math.log(10), 3), "steps": STEPS, "rows": rows, "torch": torch.__version__}
    print(json.dumps(document, indent=2) if args.json else "\n".join(map(str, rows)))


if __name__ == "__main__":
    main()
