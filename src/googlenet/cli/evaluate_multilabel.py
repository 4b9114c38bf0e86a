"""``googlenet evaluate`` for networks that assign any number of labels to an image."""

import argparse

from ..evaluation.multilabel import format_multilabel, multilabel_report
from ..evaluation.predictor import Predictor, get_thresholds, predict_split
from ..evaluation.progress import ProgressDisplay
from ..evaluation.report_metrics import split_by_group
from ..inference.datasets import group_column, load_eval_dataset, select_split
from ..inference.loading import LoadedModel
from ..inference.multi_size import check_sizes
from ..inference.tta import TTA, TTAPredictor
from .common import print_result, resolve_sizes

# Arguments of the command that need one label per image.
UNSUPPORTED = ("sizes", "crops", "ensemble", "calibrate", "precise_bn")


def unsupported_multilabel_argument(args: argparse.Namespace) -> str | None:
    """Return an error message if an argument needs one label per image."""
    used = [name for name in UNSUPPORTED if getattr(args, name) not in (None, False, [])]
    return f"--{used[0].replace('_', '-')} is for one label per image, and this network has several" if used else None


def evaluate_multilabel(args: argparse.Namespace, model: LoadedModel[Predictor]) -> None:
    """Evaluate the center crop at one size, with the network's own thresholds."""
    predictor, tta = model.predictor, TTA(args.tta_flip, args.tta_shift)
    (size,) = resolve_sizes(args, predictor.preprocess.size)
    check_sizes(predictor.min_size, [size], tta.shift)
    data = load_eval_dataset(model, max(size, model.stored_size), args.data, args.data_root, args.max_images)
    name, split = select_split(data, args.split)
    groups = group_column(split, args.group) if args.group else None
    with ProgressDisplay(len(split)) as progress:
        progress.describe(name)
        augmented = TTAPredictor(predictor, tta) if tta.num_views > 1 else predictor
        predictions = predict_split(augmented, split, size, progress.advance)
    thresholds = get_thresholds(predictor)
    document = multilabel_report(predictions, predictor.classes, thresholds)
    document |= {"split": name, "size": size, "engine": f"{predictor.name}:{predictor.precision}"}
    document |= {"tta_flip": tta.flip, "tta_shift": tta.shift}
    lines = [f"{name}, {document['images']:,} images at {size} px{tta}", *format_multilabel(document)]
    if groups is not None:
        document["groups"] = {
            group: multilabel_report(rows, predictor.classes, thresholds)
            for group, rows in split_by_group(predictions, groups).items()
        }
        lines += [
            f"{args.group} {group}: {row['images']:,} images, mAP {row['map']:.4f}, macro F1 {row['f1']:.4f}"
            for group, row in document["groups"].items()
        ]
    print_result(args.json, document, lines)
