"""Train torchvision's Faster R-CNN with MobileNet from scratch for the training time of `scenes-fpn`, and evaluate it.

The baseline of benchmarks/detection.py: the same scenes, the same number of images per step, COCO metrics on the same
test scenes. It trains in the precision that this package selects on this machine. Run: make bench-detection_baseline
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

from googlenet.detection.data.dataset import Detections, Sample, load_detection_dataset
from googlenet.detection.metrics import coco_metrics
from googlenet.devices import pick_precision

BATCH, LEARNING_RATE, WARMUP_FRACTION = 16, 1e-3, 0.05


def train(
    samples: Sequence[Sample], num_classes: int, size: int, regions: int, seconds: float
) -> tuple[torch.nn.Module, int]:
    """Train for `seconds` with a linear learning-rate schedule; return the model and the number of steps.

    The second stage samples `regions` regions of each image.
    """
    torch.manual_seed(0)
    model = fasterrcnn_mobilenet_v3_large_fpn(
        weights=None, weights_backbone=None, num_classes=num_classes + 1, min_size=size, max_size=size,
        box_batch_size_per_image=regions,
    )  # fmt: skip
    bfloat16 = pick_precision("auto", torch.device("cpu")) == "bfloat16"
    model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.05)
    steps, started = 0, time.perf_counter()
    while (progress := (time.perf_counter() - started) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(progress / WARMUP_FRACTION, (1 - progress) / (1 - WARMUP_FRACTION))
        batch = [samples[index] for index in torch.randperm(len(samples))[:BATCH].tolist()]
        images = [to_float(sample) for sample in batch]
        targets = [{"boxes": sample.boxes, "labels": sample.labels + 1} for sample in batch]
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = sum(model(images, targets).values())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        steps += 1
        if steps % 50 == 0:
            print(f"step {steps}  {progress:.0%} of the time  loss {loss.item():.3f}", file=sys.stderr, flush=True)
    return model.eval(), steps


def to_float(sample: Sample) -> Tensor:
    """Return an image as torchvision's detectors take it: float (3, h, w) in 0..1."""
    return sample.read(3).float() / 255


def detect(model: torch.nn.Module, samples: Sequence[Sample]) -> list[Detections]:
    """Return the detections on each image."""
    detections = []
    with torch.inference_mode():
        for start in range(0, len(samples), BATCH):
            for output in model([to_float(sample) for sample in samples[start : start + BATCH]]):
                detections.append(Detections(output["boxes"], output["scores"], output["labels"] - 1))
    return detections


def main() -> None:
    """Train, evaluate, print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1945, help="of training (default: those of scenes-fpn)")
    parser.add_argument("--train", type=int, default=16_000, help="training scenes (default 16000)")
    parser.add_argument("--test", type=int, default=1000, help="test scenes (default 1000)")
    parser.add_argument("--size", type=int, default=320, help="image size in pixels (default 320, that of the model)")
    parser.add_argument(
        "--regions", type=int, default=64,
        help="regions per image in the second stage during training (default 64; with torchvision's 512 a step takes "
        "several times as long)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args()
    data = load_detection_dataset(f"scenes:train={args.train},test={args.test}")
    model, steps = train(data.train, len(data.classes), args.size, args.regions, args.seconds)
    started = time.perf_counter()
    detections = detect(model, data.test)
    speed = round(len(data.test) / (time.perf_counter() - started), 1)
    summary = coco_metrics(data.test, detections, data.classes).summary
    document = {
        "train": len(data.train), "test": len(data.test), "size": args.size, "regions": args.regions,
        "seconds": args.seconds, "steps": steps, "batch": BATCH, "images_per_second": speed,
        "metrics": {key: round(value, 4) for key, value in summary.items()},
        "threads": torch.get_num_threads(), "cores": os.cpu_count(), "torch": torch.__version__,
    }  # fmt: skip
    if args.json:
        print(json.dumps(document, indent=2))
    else:
        print("  ".join(f"{key} {value:.3f}" for key, value in summary.items()), f" {steps} steps")


if __name__ == "__main__":
    main()
