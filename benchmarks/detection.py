"""Finding garments with the feature pyramid: each part with and without.

Trains `scenes-fpn` from a classifier of garments, then the same with the deepest map alone and with Faster R-CNN's
head. Measures COCO's figures on the test scenes by the objects' size, at one test size and merged from several, and
how far the exported file's boxes are from PyTorch's. Run: make bench-detection
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


def row(name: str, pictures: Sequence[Picture], found: list[Detections], classes: Sequence[str], **more: Any) -> Any:
    """The figures of one way to find objects."""
    figures = score(pictures, found, classes).figures
    line = {"what": name, **{key: round(value, 4) for key, value in figures.items()}, **more}
    print(line, file=sys.stderr)
    return line


def main() -> None:
    """Train what is asked for, measure everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classifier", help="a run of garments to start from (default: trained here)")
    parser.add_argument("--train", type=int, default=16_000, help="training scenes (default 16000)")
    parser.add_argument("--test", type=int, default=1000, help="test scenes (default 1000)")
    parser.add_argument("--epochs", type=float, help="of scenes-fpn (default: the recipe's)")
    parser.add_argument(
        "--ablation-epochs", type=float,
        help="a shorter training for the cases side by side, the pyramid's again (default: as many as of scenes-fpn)",
    )  # fmt: skip
    parser.add_argument("--cases", nargs="*", default=list(CASES), metavar="CASE", help="what is laid side by side")
    parser.add_argument("--run", help="a trained run of scenes-fpn, in place of training it")
    parser.add_argument(
        "--sizes", type=int, nargs="*", help="of the test at several sizes (default: the recipe's detection.sizes)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--folder", type=Path, help="where the runs go; those that are there are taken (default: a temporary folder)"
    )
    options = parser.parse_args()
    work = options.folder or Path(tempfile.mkdtemp())
    source = f"scenes:train={options.train},test={options.test}"
    start = options.classifier or googlenet.fit(googlenet.read_recipe("fashion-mnist-fast"), work / "garments").run
    data = load_detection(source)
    pictures = data.test
    pixels = [picture.read(1) for picture in pictures]
    rows, first = [], None
    whole, *others = CASES
    short = options.ablation_epochs
    plan = [(whole, whole, options.epochs)]
    if short:
        plan += [(f"{name}, {short:g} epochs", name, short) for name in options.cases]
    else:
        plan += [(name, name, options.epochs) for name in options.cases if name in others]
    for number, (title, name, epochs) in enumerate(plan):
        place = Path(options.run) if number == 0 and options.run else work / f"case-{number}"
        flags = [f"--model.weights={start}", f"--data.source={source}", *CASES[name]]
        flags += [f"--epochs={epochs}"] if epochs else []
        # Side by side at one size: only the first is measured at several.
        flags += ["--detection.sizes=null"] if number else []
        recipe = googlenet.read_recipe("scenes-fpn", flags)
        if not place.exists():
            googlenet.fit(recipe, place)
        entries = read_metrics(place)
        if not any(entry["split"] == "test" for entry in entries):
            raise SystemExit(f"{place} was not trained to its end: googlenet train --resume {place}")
        took = max(entry["seconds"] for entry in entries if entry["split"] == "train")
        run = googlenet.load(place)
        if run.recipe.detection != recipe.detection or run.recipe.epochs != recipe.epochs:
            raise SystemExit(f"{place} is of another recipe than {title!r}: name another --folder or --run")
        asked = time.perf_counter()
        found = detect(run.model, run.preprocess, pixels)
        answered = round(len(pixels) / (time.perf_counter() - asked), 1)
        rows.append(row(title, pictures, found, data.classes, seconds=took, images_per_second=answered))
        if number == 0:
            first = run
            sizes = options.sizes or run.recipe.detection.sizes or (run.preprocess.size,)
            asked = time.perf_counter()
            merged = detect(run.model, run.preprocess, pixels, sizes)
            answered = round(len(pixels) / (time.perf_counter() - asked), 1)
            name = f"{title}, tested at {' and '.join(map(str, sizes))} px"
            rows.append(row(name, pictures, merged, data.classes, seconds=took, images_per_second=answered))
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
