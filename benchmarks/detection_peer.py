"""Finding garments with torchvision's Faster R-CNN and its own MobileNet, from scratch, in the time of `scenes-fpn`.

The peer of benchmarks/detection.py: the same scenes, as many pictures a step, COCO's figures on the same test scenes.
It trains in the precision that our own training takes on this machine. Run: make bench-detection_peer
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_fpn

from googlenet.detection.dataset import Detections, Picture
from googlenet.detection.metrics import score
from googlenet.detection.sources import load_detection
from googlenet.training.devices import pick_precision

BATCH, RATE = 16, 1e-3


def train_peer(
    train: Sequence[Picture], classes: int, size: int, regions: int, seconds: float
) -> tuple[torch.nn.Module, int]:
    """torchvision's detector after so many seconds of training, its learning rate rising and falling with them.

    Of each picture `regions` are looked at in the second stage. Returns the steps that were made too.
    """
    torch.manual_seed(0)
    model = fasterrcnn_mobilenet_v3_large_fpn(
        weights=None, weights_backbone=None, num_classes=classes + 1, min_size=size, max_size=size,
        box_batch_size_per_image=regions,
    )  # fmt: skip
    narrow = pick_precision("auto", torch.device("cpu")) == "bfloat16"
    model.to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.05)
    started, steps = time.perf_counter(), 0
    while (share := (time.perf_counter() - started) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(share / 0.05, (1 - share) / 0.95)
        chosen = torch.randperm(len(train))[:BATCH].tolist()
        images = [as_peer(train[number]) for number in chosen]
        targets = [{"boxes": train[number].boxes, "labels": train[number].labels + 1} for number in chosen]
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            loss = sum(model(images, targets).values())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        steps += 1
        if steps % 50 == 0:
            print(f"step {steps}  {share:.0%} of the time  loss {loss.item():.3f}", file=sys.stderr, flush=True)
    return model.eval(), steps


def as_peer(picture: Picture) -> Tensor:
    """A picture as torchvision's detectors take it: float (3, h, w) in 0..1."""
    return picture.read(3).float() / 255


def answers_of_peer(model: torch.nn.Module, pictures: Sequence[Picture]) -> list[Detections]:
    """What the peer finds."""
    found = []
    with torch.inference_mode():
        for start in range(0, len(pictures), 16):
            for one in model([as_peer(picture) for picture in pictures[start : start + 16]]):
                found.append(Detections(one["boxes"], one["scores"], one["labels"] - 1))
    return found


def main() -> None:
    """Train the peer, measure it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1945, help="of training (default: those of scenes-fpn)")
    parser.add_argument("--train", type=int, default=16_000, help="training scenes (default 16000)")
    parser.add_argument("--test", type=int, default=1000, help="test scenes (default 1000)")
    parser.add_argument("--size", type=int, default=320, help="of a picture, px (default 320, its own)")
    parser.add_argument(
        "--regions", type=int, default=64,
        help="of a picture in the second stage in training (default 64: with torchvision's 512 a step takes several "
        "times as long)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    data = load_detection(f"scenes:train={options.train},test={options.test}")
    model, steps = train_peer(data.train, len(data.classes), options.size, options.regions, options.seconds)
    asked = time.perf_counter()
    found = answers_of_peer(model, data.test)
    answered = round(len(data.test) / (time.perf_counter() - asked), 1)
    figures = score(data.test, found, data.classes).figures
    document = {
        "train": len(data.train), "test": len(data.test), "size": options.size, "regions": options.regions,
        "seconds": options.seconds, "steps": steps, "batch": BATCH, "images_per_second": answered,
        "figures": {key: round(value, 4) for key, value in figures.items()},
        "threads": torch.get_num_threads(), "cores": os.cpu_count(), "torch": torch.__version__,
    }  # fmt: skip
    if options.json:
        print(json.dumps(document, indent=2))
    else:
        print("  ".join(f"{key} {value:.3f}" for key, value in document["figures"].items()), f" {steps} steps")


if __name__ == "__main__":
    main()
