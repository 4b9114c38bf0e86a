"""Evaluate R-CNN and its components: proposals, superpixels, ensembles, box regression, box voting.

Trains networks of `scenes-rcnn` with different seeds from a classifier of garments. Measures on the test scenes the
recall of selective search with and without MultiBox, with superpixels of 1x and 2x, and the average precision of one
network and of all, with and without box regression and box voting. Run: make bench-rcnn
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import googlenet
from googlenet.detection.data.dataset import Sample, load_detection_dataset
from googlenet.detection.metrics import coco_metrics
from googlenet.detection.rcnn.network import RCNN, RCNNDetector
from googlenet.detection.rcnn.selective_search import recall

# The overlap for box voting in scenes-rcnn.
BOX_VOTING_IOU = 0.5


def with_regions(detector: RCNNDetector, **options: Any) -> RCNNDetector:
    """Return the detector with other options of `regions`."""
    return replace(detector, regions=replace(detector.regions, **options))


def measure(name: str, detector: RCNNDetector, samples: Sequence[Sample], classes: Sequence[str]) -> dict[str, Any]:
    """Return a row: number and recall of the proposals, COCO metrics, seconds of the classification."""
    pixels = [sample.read(detector.preprocess.channels) for sample in samples]
    boxes = [sample.boxes[~sample.crowd] for sample in samples]
    proposals = detector.proposals(pixels)
    started = time.perf_counter()
    summary = coco_metrics(samples, detector.classify(pixels, proposals), classes).summary
    regions = detector.regions
    row = {
        "name": name,
        "ss_scale": regions.ss_scale if regions.selective_search else None,
        "multibox": detector.multibox is not None,
        "networks": len(detector.networks),
        "box_regression": regions.box_regression,
        "box_voting_iou": regions.box_voting_iou,
        "proposals": round(sum(map(len, proposals)) / len(proposals), 1),
        "recall": round(recall(proposals, boxes), 4),
        **{key: round(summary[key], 4) for key in ("ap", "ap50", "ap75") if key in summary},
        "classify_seconds": round(time.perf_counter() - started, 1),
    }
    print(row, file=sys.stderr)
    return row


def build_cases(networks: Sequence[RCNN], preprocess: googlenet.Preprocess) -> dict[str, RCNNDetector]:
    """Return the detectors to compare by name."""
    base = RCNNDetector.from_networks(networks[:1], preprocess)
    paper = with_regions(base, box_regression=False, box_voting_iou=None)
    ensemble = replace(paper, networks=networks)
    fine = paper.regions.ss_scale // 2
    cases = {
        "superpixels 1x": with_regions(paper, ss_scale=fine, multibox_width_mult=0),
        "superpixels 1x, MultiBox": with_regions(paper, ss_scale=fine),
        "superpixels 2x": with_regions(paper, multibox_width_mult=0),
        "superpixels 2x, MultiBox (the paper's)": paper,
        "MultiBox alone": with_regions(paper, selective_search=False),
        "the paper's, box regression": with_regions(paper, box_regression=True),
        "the paper's, box regression, box voting": with_regions(
            paper, box_regression=True, box_voting_iou=BOX_VOTING_IOU
        ),
    }
    if len(networks) > 1:
        cases[f"the paper's, {len(networks)} networks"] = ensemble
        cases[f"the paper's, {len(networks)} networks, box regression"] = with_regions(ensemble, box_regression=True)
    return cases


def train(args: argparse.Namespace, work: Path) -> tuple[list[Path], list[dict[str, Any]]]:
    """Train one network per seed; return the runs, and their seconds and metrics."""
    start = args.classifier
    if start is None:
        flags = [] if args.classifier_images is None else [f"--data.max_samples={args.classifier_images}"]
        start = googlenet.fit(googlenet.read_recipe("fashion-mnist-fast", flags), work / "garments").run
    runs, rows = [], []
    for seed in range(args.networks):
        flags = [f"--model.init_from={start}", f"--seed={seed}"]
        flags.append(f"--data.source=scenes:train={args.train},test={args.test}")
        flags += [f"--epochs={args.epochs}"] if args.epochs else []
        result = googlenet.fit(googlenet.read_recipe("scenes-rcnn", flags), work / f"rcnn-{seed}")
        runs.append(result.run)
        rows.append({"seed": seed, "seconds": round(result.seconds, 1), "test": result.metrics.get("test")})
    return runs, rows


def main() -> None:
    """Train, measure all cases, print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=3, help="networks of the ensemble (default 3)")
    parser.add_argument("--train", type=int, default=3000, help="training scenes (default 3000)")
    parser.add_argument("--test", type=int, default=1000, help="test scenes (default 1000)")
    parser.add_argument("--epochs", type=float, help="epochs of the region classifiers (default: those of the recipe)")
    parser.add_argument("--classifier", help="a run of garments to start from (default: one is trained)")
    parser.add_argument("--classifier-images", type=int, help="images to train the classifier on (default: all)")
    parser.add_argument("--runs", nargs="*", default=[], help="trained runs of scenes-rcnn, instead of training")
    parser.add_argument("--cases", nargs="*", metavar="TEXT", help="only the rows with this text in their name")
    parser.add_argument("--folder", type=Path, help="folder of the runs (default: a temporary one)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args()
    work = args.folder or Path(tempfile.mkdtemp())
    runs, trained = ([Path(run) for run in args.runs], []) if args.runs else train(args, work)
    checkpoints = [googlenet.load(run) for run in runs]
    first = checkpoints[0]
    data = load_detection_dataset(first.recipe.data.source)
    samples = data.test[: args.test]
    cases = build_cases([checkpoint.model for checkpoint in checkpoints], first.preprocess)
    if args.cases:
        cases = {name: case for name, case in cases.items() if any(text in name for text in args.cases)}
        if not cases:
            parser.error("no row has this text in its name: see the table in docs/detection-rcnn.md")
    rows = [measure(name, detector, samples, data.classes) for name, detector in cases.items()]
    document = {
        "scenes": len(samples), "networks": len(checkpoints), "training_scenes": len(data.train),
        "epochs": first.recipe.epochs, "runs": trained, "rows": rows, "threads": torch.get_num_threads(),
        "cores": os.cpu_count(), "torch": torch.__version__,
    }  # fmt: skip
    if args.json:
        print(json.dumps(document, indent=2))
        return
    for row in rows:
        print(f"{row['name']:<60}{row['proposals']:>8} proposals  recall {row['recall']:.3f}  "
              f"AP50 {row['ap50']:.3f}  AP {row['ap']:.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
