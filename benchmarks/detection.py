"""Evaluate detectors of garments with a feature pyramid, and ablations of their parts.

Trains `scenes-fpn` from a classifier of garments, then the same with the map of stride 32 only and with Faster R-CNN's
head. Measures COCO metrics on the test scenes by object size, at one test size and merged from several, and the largest
difference of the exported file's boxes from PyTorch's. Run: make bench-detection
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import googlenet
from googlenet.checkpoint.format import Checkpoint
from googlenet.detection.data.dataset import DetectionDataset, load_detection_dataset
from googlenet.detection.data.scenes import Scenes, draw_scenes
from googlenet.detection.metrics import coco_metrics
from googlenet.detection.predict import detect
from googlenet.export.exporter import ExportData, export
from googlenet.training.metrics_logger import read_metrics

CASES: dict[str, list[str]] = {
    "FPN, FCOS": [],
    "stride 32 only, FCOS": ["--detection.neck=none"],
    "FPN, Faster R-CNN": ["--detection.head=faster_rcnn"],
}
MAIN, *ABLATIONS = CASES


class Training(NamedTuple):
    """A row of the plan: its title, the name of its case, and its epochs (None: those of the recipe)."""

    title: str
    case: str
    epochs: float | None


def plan_trainings(args: argparse.Namespace) -> list[Training]:
    """Return the trainings: the full recipe first, then the ablations."""
    main = Training(MAIN, MAIN, args.epochs)
    short = args.ablation_epochs
    if short:
        return [main, *(Training(f"{name}, {short:g} epochs", name, short) for name in args.cases)]
    return [main, *(Training(name, name, args.epochs) for name in args.cases if name in ABLATIONS)]


def train(training: Training, flags: Sequence[str], folder: Path) -> tuple[Checkpoint, float]:
    """Train, or take the finished run in `folder`; return the run and its seconds of training."""
    flags = [*flags, *CASES[training.case]] + ([f"--epochs={training.epochs}"] if training.epochs else [])
    recipe = googlenet.read_recipe("scenes-fpn", flags)
    if not folder.exists():
        googlenet.fit(recipe, folder)
    entries = read_metrics(folder)
    if not any(entry["split"] == "test" for entry in entries):
        raise SystemExit(f"{folder}: training is not finished; continue with googlenet train --resume {folder}")
    run = googlenet.load(folder)
    if run.recipe.detection != recipe.detection or run.recipe.epochs != recipe.epochs:
        raise SystemExit(
            f"{folder}: trained with another recipe than {training.title!r}; use another --folder or --run"
        )
    return run, max(entry["seconds"] for entry in entries if entry["split"] == "train")


def evaluate(
    title: str, run: Checkpoint, data: DetectionDataset, seconds: float, sizes: Sequence[int] = ()
) -> dict[str, Any]:
    """Return COCO metrics and images per second on the test scenes."""
    pixels = [sample.read(1) for sample in data.test]
    started = time.perf_counter()
    detections = detect(run.model, run.preprocess, pixels, sizes)
    speed = round(len(pixels) / (time.perf_counter() - started), 1)
    summary = coco_metrics(data.test, detections, data.classes).summary
    metrics = {key: round(value, 4) for key, value in summary.items()}
    row = {"name": title, **metrics, "seconds": seconds, "images_per_second": speed}
    print(row, file=sys.stderr)
    return row


def compare_export(run: Checkpoint, folder: Path) -> dict[str, Any]:
    """Export the detector and return the largest differences from PyTorch on 50 scenes of many sizes."""
    images = [scene.read(1) for scene in draw_scenes(Scenes(test=50, sides=(40, 260), objects=(0, 12)), "test")]
    (row,) = export(run, ExportData(images), folder, ["onnx"]).parity["rows"]
    return {"max_error": row["max_error"], "max_score_error": row["max_score_error"], "images": len(images)}


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classifier", help="a run of garments to start from (default: one is trained)")
    parser.add_argument("--train", type=int, default=16_000, help="training scenes (default 16000)")
    parser.add_argument("--test", type=int, default=1000, help="test scenes (default 1000)")
    parser.add_argument("--epochs", type=float, help="epochs of scenes-fpn (default: those of the recipe)")
    parser.add_argument("--ablation-epochs", type=float, help="epochs of the ablations (default: those of scenes-fpn)")
    parser.add_argument("--cases", nargs="*", default=list(CASES), metavar="CASE", help="the ablations")
    parser.add_argument("--run", help="a trained run of scenes-fpn, instead of training")
    parser.add_argument("--sizes", type=int, nargs="*", help="test sizes to merge (default: those of the recipe)")
    parser.add_argument("--folder", type=Path, help="folder of the runs; finished runs are reused (default: temporary)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser.parse_args()


def main() -> None:
    """Train, evaluate, print the results."""
    args = parse_arguments()
    work = args.folder or Path(tempfile.mkdtemp())
    source = f"scenes:train={args.train},test={args.test}"
    start = args.classifier or googlenet.fit(googlenet.read_recipe("fashion-mnist-fast"), work / "garments").run
    flags = [f"--model.init_from={start}", f"--data.source={source}"]
    data = load_detection_dataset(source)
    full, *ablations = plan_trainings(args)
    run, seconds = train(full, flags, Path(args.run) if args.run else work / "case-0")
    sizes = args.sizes or run.recipe.detection.test_sizes or (run.preprocess.size,)
    merged = f"{full.title}, tested at {', '.join(map(str, sizes[:-1]))} and {sizes[-1]} px"
    rows = [evaluate(full.title, run, data, seconds), evaluate(merged, run, data, seconds, sizes)]
    for index, training in enumerate(ablations, start=1):
        # Ablations are tested at one size only.
        ablation, seconds = train(training, [*flags, "--detection.test_sizes=null"], work / f"case-{index}")
        rows.append(evaluate(training.title, ablation, data, seconds))
    document = {
        "train": len(data.train), "test": len(data.test), "rows": rows,
        "export": compare_export(run, work / "exported"),
        "threads": torch.get_num_threads(), "cores": os.cpu_count(), "torch": torch.__version__,
    }  # fmt: skip
    if args.json:
        print(json.dumps(document, indent=2))
        return
    for row in rows:
        metrics = "  ".join(f"{key} {row[key]:.3f}" for key in ("ap", "ap50", "ap_small", "ap_medium") if key in row)
        print(f"{row['name']:<60}{metrics}  {row['seconds']} s")
    print(f"export: {document['export']}")


if __name__ == "__main__":
    main()
