"""``googlenet evaluate`` for detectors: COCO metrics."""

import argparse
from typing import TYPE_CHECKING, Any

from .common import print_result

if TYPE_CHECKING:
    from ..detection.predict import DetectorPredictor
    from ..inference.loading import Detectors, LoadedModel

# Arguments of the command that detection does not support.
UNSUPPORTED = ("tta_flip", "tta_shift", "crops", "calibrate", "precise_bn", "out", "group")

# The metrics in the first line, with their display names.
HEADLINE = {"ap": "AP", "ap50": "AP50", "ap75": "AP75"}
HEADLINE |= {"ap_small": "small", "ap_medium": "medium", "ap_large": "large", "recall": "recall"}


def unsupported_argument(args: argparse.Namespace) -> str | None:
    """Return an error message if an argument is for classification only."""
    used = [name for name in UNSUPPORTED if getattr(args, name, None) not in (None, False, 0, [])]
    return f"--{used[0].replace('_', '-')} is for classification, and this network is a detector" if used else None


def evaluate_detection(args: argparse.Namespace, model: "LoadedModel[Detectors]") -> None:
    """Compute the metrics on a split, at one image size or with the boxes of several sizes merged."""
    from ..detection.metrics import evaluate_split
    from ..detection.predict import with_sizes
    from ..inference.datasets import load_detection_eval_dataset, select_split

    detector = load_ensemble(args.run, args.ensemble, model) if args.ensemble else model.predictor
    if sizes := args.sizes or ([args.size] if args.size else ()):
        detector = with_sizes(detector, sizes)
    sizes = getattr(detector, "sizes", ()) or (detector.preprocess.size,)
    data = load_detection_eval_dataset(model, args.data, args.data_root, args.max_images)
    name, split = select_split(data, args.split)
    metrics = evaluate_split(detector, split).metrics
    per_class = {row.label: row._asdict() for row in metrics.per_class}
    document: dict[str, Any] = {**metrics.summary, "images": len(split), "split": name}
    document |= {"networks": 1 + len(args.ensemble), "sizes": list(sizes), "per_class": per_class}
    is_rcnn = model.checkpoint is not None and model.checkpoint.recipe.detection.head == "rcnn"
    sides = f"{'regions of' if is_rcnn else 'longer side'} {', '.join(map(str, sizes))} px"
    lines = [f"{name}, {len(split):,} images, {sides}"]
    lines.append("   ".join(f"{label} {document[key]:.4f}" for key, label in HEADLINE.items() if key in document))
    lines += [
        f"  {row.label:<20}AP {row.ap:.4f}   AP50 {row.ap50:.4f}   {row.objects:,} objects"
        for row in metrics.per_class
        if row.ap is not None
    ]
    print_result(args.json, document, lines)


def load_ensemble(run: str, others: list[str], model: "LoadedModel[Detectors]") -> "DetectorPredictor":
    """Combine several R-CNN runs, whose outputs for each region are averaged."""
    from ..detection.predict import DetectorPredictor
    from ..detection.rcnn.network import RCNN, RCNNDetector
    from ..inference.loading import load_predictor

    models = [model, *(load_predictor(path, task="detection") for path in others)]
    networks, first = [], models[0].predictor
    for path, predictor in zip([run, *others], (other.predictor for other in models), strict=True):
        if not isinstance(predictor, DetectorPredictor) or not isinstance(predictor.model, RCNN):
            raise ValueError(f"{path}: not an R-CNN run; --ensemble averages the outputs of R-CNNs for each region")
        if (predictor.classes, predictor.preprocess) != (first.classes, first.preprocess):
            raise ValueError(f"{path}: its classes or its preprocessing differ from those of {run}")
        networks.append(predictor.model)
    return DetectorPredictor(RCNNDetector.from_networks(networks, first.preprocess), first.preprocess, first.classes)
