"""Finding garments with the feature pyramid: against torchvision's detector, and each part with and without.

Trains `scenes-fpn` from a classifier of garments, then the same with the deepest map alone and with Faster R-CNN's
head, and torchvision's Faster R-CNN with its MobileNet, from scratch on the same scenes for as many seconds. Measures
COCO's figures on the test scenes by the objects' size, at one test size and merged from several, and how far the
exported file's boxes are from PyTorch's. Run: make bench-detection
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_fpn

import googlenet
from googlenet.detection.dataset import Detections, Picture
from googlenet.detection.export import export_detector
from googlenet.detection.metrics import score
from googlenet.detection.predict import detect
from googlenet.detection.scenes import Scenes, generate
from googlenet.detection.sources import load_detection
from googlenet.training.record import read_metrics

CASES: dict[str, list[str]] = {
    "pyramid, one stage": [],
    "deepest map, one stage": ["--detection.maps=deepest"],
    "pyramid, two stages": ["--detection.head=faster_rcnn"],
}
PEER = "torchvision's Faster R-CNN, MobileNet, from scratch"


def row(name: str, pictures: Sequence[Picture], found: list[Detections], classes: Sequence[str], **more: Any) -> Any:
    """The figures of one way to find objects."""
    figures = score(pictures, found, classes).figures
    line = {"what": name, **{key: round(value, 4) for key, value in figures.items()}, **more}
    print(line, file=sys.stderr)
    return line


def train_peer(
    train: Sequence[Picture], classes: int, size: int, seconds: float, batch_size: int, rate: float
) -> torch.nn.Module:
    """torchvision's detector after so many seconds of training, its learning rate rising and falling with them."""
    torch.manual_seed(0)
    model = fasterrcnn_mobilenet_v3_large_fpn(
        weights=None, weights_backbone=None, num_classes=classes + 1, min_size=size, max_size=size
    )
    model.to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.05)
    started, steps = time.perf_counter(), 0
    while (share := (time.perf_counter() - started) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = rate * min(share / 0.05, (1 - share) / 0.95)
        chosen = torch.randperm(len(train))[:batch_size].tolist()
        images = [as_peer(train[number]) for number in chosen]
        targets = [{"boxes": train[number].boxes, "labels": train[number].labels + 1} for number in chosen]
        optimiser.zero_grad()
        loss = sum(model(images, targets).values())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        steps += 1
    print(f"the peer: {steps} steps of {batch_size}", file=sys.stderr)
    return model.eval()


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
    """Train what is asked for, measure everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classifier", help="a run of garments to start from (default: trained here)")
    parser.add_argument("--train", type=int, default=8000, help="training scenes (default 8000)")
    parser.add_argument("--test", type=int, default=1000, help="test scenes (default 1000)")
    parser.add_argument("--epochs", type=float, help="of scenes-fpn (default: the recipe's)")
    parser.add_argument(
        "--ablation-epochs", type=float,
        help="a shorter training for the cases side by side, the pyramid's again (default: as many as of scenes-fpn)",
    )  # fmt: skip
    parser.add_argument("--cases", nargs="*", default=list(CASES), metavar="CASE", help="what is laid side by side")
    parser.add_argument("--run", help="a trained run of scenes-fpn, in place of training it")
    parser.add_argument("--peer-seconds", type=float, help="for the peer (default: as many as scenes-fpn took here)")
    parser.add_argument("--peer-size", type=int, default=320, help="the peer's picture size (default 320, its own)")
    parser.add_argument("--no-peer", action="store_true", help="leave the peer out")
    parser.add_argument(
        "--sizes", type=int, nargs="*", help="of the test at several sizes (default: the recipe's detection.sizes)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--folder", type=Path, help="where the runs go (default: a temporary folder)")
    options = parser.parse_args()
    work = options.folder or Path(tempfile.mkdtemp())
    source = f"scenes:train={options.train},test={options.test}"
    start = options.classifier or googlenet.fit(googlenet.read_recipe("fashion-mnist-fast"), work / "garments").run
    data = load_detection(source)
    pictures = data.test
    pixels = [picture.read(1) for picture in pictures]
    rows, seconds, first = [], options.peer_seconds, None
    whole, *others = CASES
    short = options.ablation_epochs
    plan = [(whole, whole, options.epochs)]
    if short:
        plan += [(f"{name}, {short:g} epochs", name, short) for name in options.cases]
    else:
        plan += [(name, name, options.epochs) for name in options.cases if name in others]
    for number, (title, name, epochs) in enumerate(plan):
        if number == 0 and options.run:
            place = Path(options.run)
            took = max(entry["seconds"] for entry in read_metrics(place) if entry["split"] == "train")
        else:
            flags = [f"--model.weights={start}", f"--data.source={source}", *CASES[name]]
            flags += [f"--epochs={epochs}"] if epochs else []
            # Side by side at one size: only the first is measured at several.
            flags += ["--detection.sizes=null"] if number else []
            fitted = googlenet.fit(googlenet.read_recipe("scenes-fpn", flags), work / f"case-{number}")
            place, took = fitted.run, round(fitted.seconds, 1)
        run = googlenet.load(place)
        asked = time.perf_counter()
        found = detect(run.model, run.preprocess, pixels)
        answered = round(len(pixels) / (time.perf_counter() - asked), 1)
        rows.append(row(title, pictures, found, data.classes, seconds=took, images_per_second=answered))
        if number == 0:
            first, seconds = run, seconds or took
            sizes = options.sizes or run.recipe.detection.sizes or (run.preprocess.size,)
            asked = time.perf_counter()
            merged = detect(run.model, run.preprocess, pixels, sizes)
            answered = round(len(pixels) / (time.perf_counter() - asked), 1)
            name = f"{title}, tested at {' and '.join(map(str, sizes))} px"
            rows.append(row(name, pictures, merged, data.classes, seconds=took, images_per_second=answered))
            if not options.no_peer:
                batch, rate = 16, 1e-3
                peer = train_peer(data.train, len(data.classes), options.peer_size, seconds, batch, rate)
                asked = time.perf_counter()
                found = answers_of_peer(peer, pictures)
                answered = round(len(pixels) / (time.perf_counter() - asked), 1)
                rows.append(row(PEER, pictures, found, data.classes, seconds=seconds, images_per_second=answered))
    difference = None
    if first is not None:
        many = [scene.read(1) for scene in generate(Scenes(test=50, sides=(40, 260), objects=(0, 12)), "test")]
        difference = export_detector(first, work / "detector.onnx", many)._asdict()
    document = {
        "train": len(data.train), "test": len(pictures), "rows": rows, "export": difference,
        "threads": torch.get_num_threads(), "cores": os.cpu_count(), "torch": torch.__version__,
    }  # fmt: skip
    if options.json:
        print(json.dumps(document, indent=2))
        return
    for line in rows:
        figures = "  ".join(
            f"{key} {line[key]:.3f}" for key in ("ap", "ap50", "ap_small", "ap_medium") if key in line
        )
        print(f"{line['what']:<60}{figures}  {line.get('seconds')} s")
    print(f"export: {difference}")


if __name__ == "__main__":
    main()
