"""R-CNN's parts, each with and without: proposals, superpixels, networks, box regression.

Trains networks of `scenes-rcnn` that differ in their seed, from a classifier of garments, and measures on the test
scenes what selective search covers alone and with MultiBox, at superpixels of 1x and 2x, and the average precision of
one network and of all, with and without box regression and votes. Run: make bench-rcnn
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
from googlenet.detection.dataset import Picture
from googlenet.detection.metrics import score
from googlenet.detection.proposals import Search, coverage
from googlenet.detection.rcnn import RegionDetector
from googlenet.detection.sources import load_detection

# Of the boxes that vote the least overlap, as in scenes-rcnn.
VOTE = 0.5


def measured(
    name: str, detector: RegionDetector, pictures: Sequence[Picture], classes: Sequence[str]
) -> dict[str, Any]:
    """One row: how many proposals, what they cover, what comes of them, in how much time."""
    pixels = [picture.read(detector.preprocess.channels) for picture in pictures]
    truth = [picture.boxes[picture.objects] for picture in pictures]
    proposals = detector.proposals(pixels)
    started = time.perf_counter()
    figures = score(pictures, detector.classify(pixels, proposals), classes).figures
    row = {
        "what": name,
        "superpixel": detector.search.superpixel if detector.search else None,
        "multibox": detector.multibox,
        "networks": len(detector.networks),
        "regression": detector.regress,
        "vote": detector.vote,
        "proposals": round(sum(map(len, proposals)) / len(proposals), 1),
        "coverage": round(coverage(proposals, truth), 4),
        **{key: round(figures[key], 4) for key in ("ap", "ap50", "ap75") if key in figures},
        "classify_seconds": round(time.perf_counter() - started, 1),
    }
    print(row, file=sys.stderr)
    return row


def main() -> None:
    """Train, then measure every combination that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=3, help="networks of the ensemble (default 3)")
    parser.add_argument("--train", type=int, default=3000, help="training scenes (default 3000)")
    parser.add_argument("--test", type=int, default=1000, help="test scenes (default 1000)")
    parser.add_argument("--epochs", type=float, help="of the region classifiers (default: the recipe's)")
    parser.add_argument("--classifier", help="a run of garments to start from (default: trained here)")
    parser.add_argument("--classifier-limit", type=int, help="pictures to train it on (default: all)")
    parser.add_argument("--runs", nargs="*", default=[], help="trained runs of scenes-rcnn, in place of training")
    parser.add_argument("--cases", nargs="*", metavar="WORDS", help="rows that have these words in their names alone")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--folder", type=Path, help="where the runs go (default: a temporary folder)")
    options = parser.parse_args()
    work = options.folder or Path(tempfile.mkdtemp())
    runs, trained = [Path(run) for run in options.runs], []
    if not runs:
        start = options.classifier
        if start is None:
            limit = [] if options.classifier_limit is None else [f"--data.limit={options.classifier_limit}"]
            start = googlenet.fit(googlenet.read_recipe("fashion-mnist-fast", limit), work / "garments").run
        for seed in range(options.networks):
            flags = [f"--model.weights={start}", f"--seed={seed}",
                     f"--data.source=scenes:train={options.train},test={options.test}"]  # fmt: skip
            if options.epochs:
                flags.append(f"--epochs={options.epochs}")
            fitted = googlenet.fit(googlenet.read_recipe("scenes-rcnn", flags), work / f"rcnn-{seed}")
            runs.append(fitted.run)
            trained.append({"seed": seed, "seconds": round(fitted.seconds, 1), "test": fitted.metrics.get("test")})
    found = [googlenet.load(run) for run in runs]
    data = load_detection(found[0].recipe.data.source)
    pictures = data.test[: options.test]
    paper = replace(RegionDetector.of([found[0].model], found[0].preprocess), regress=False, vote=None)
    every = paper.with_networks([one.model for one in found])
    doubled = paper.search or Search()
    single = doubled._replace(superpixel=doubled.superpixel // 2)
    cases = [
        ("superpixels 1x", replace(paper, search=single, multibox=False)),
        ("superpixels 1x, MultiBox", replace(paper, search=single)),
        ("superpixels 2x", replace(paper, multibox=False)),
        ("superpixels 2x, MultiBox (the paper's)", paper),
        ("MultiBox alone", replace(paper, search=None)),
        ("the paper's, box regression", replace(paper, regress=True)),
        ("the paper's, box regression, votes", replace(paper, regress=True, vote=VOTE)),
    ]
    if len(found) > 1:
        cases += [
            (f"the paper's, {len(found)} networks", every),
            (f"the paper's, {len(found)} networks, box regression", replace(every, regress=True)),
        ]
    if options.cases:
        cases = [case for case in cases if any(words in case[0] for words in options.cases)]
        if not cases:
            parser.error("no row has these words in its name: see the table in docs/detection-rcnn.md")
    rows = [measured(name, detector, pictures, data.classes) for name, detector in cases]
    document = {
        "scenes": len(pictures), "networks": len(found), "training_scenes": len(data.train),
        "epochs": found[0].recipe.epochs,
        "runs": trained, "rows": rows, "threads": torch.get_num_threads(), "cores": os.cpu_count(),
        "torch": torch.__version__,
    }  # fmt: skip
    if options.json:
        print(json.dumps(document, indent=2))
        return
    for row in rows:
        print(f"{row['what']:<60}{row['proposals']:>8} proposals  coverage {row['coverage']:.3f}  "
              f"AP50 {row['ap50']:.3f}  AP {row['ap']:.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
