"""``googlenet evaluate`` at one image size, or at several sizes and averaged over them; calibration."""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..data.dataset import Dataset, Split
from ..evaluation.calibration import calibrate
from ..evaluation.metrics import Predictions, average_predictions, classification_metrics
from ..evaluation.plots import reliability_diagram
from ..evaluation.predictor import Predictor
from ..evaluation.progress import ProgressDisplay
from ..evaluation.report_metrics import format_class_metrics, format_groups, format_overall, full_report, split_by_group
from ..files import write_atomically
from ..inference import multi_size
from ..inference.datasets import group_column, load_eval_dataset, select_split
from ..inference.loading import LoadedModel
from ..inference.tta import TTA
from ..training.precise_bn import clean_batches, recompute_bn_stats
from .common import print_result, resolve_sizes, writable_folder


class Evaluated(NamedTuple):
    """The results at each size, and their average, of one split."""

    by_size: list[multi_size.SizeResult]
    average: Predictions


def evaluate_sizes(args: argparse.Namespace, model: LoadedModel[Predictor]) -> None:
    """Evaluate the center crop at one size, or at several sizes and averaged over them."""
    predictor, tta = model.predictor, TTA(args.tta_flip, args.tta_shift)
    sizes = resolve_sizes(args, predictor.preprocess.size)
    multi_size.check_sizes(predictor.min_size, sizes, tta.shift)
    has_folder = args.out or Path(args.run).is_dir()
    plots = writable_folder(args.out or args.run) if has_folder and (args.sizes or args.calibrate) else None
    data = load_eval_dataset(model, max(*sizes, model.stored_size), args.data, args.data_root, args.max_images)
    name, split = select_split(data, args.split)
    groups = group_column(split, args.group) if args.group else None
    splits = {name: split}
    if args.calibrate:
        if name == "validation" or not data.validation:
            missing = f"{data.source} has no {'test' if name == 'validation' else 'validation'} split"
            raise ValueError(f"{missing}: --calibrate fits on validation, and evaluates test")
        splits["validation"] = data.validation
    before_size = None if args.precise_bn is None else precise_bn(model, data, args.precise_bn)
    evaluate = partial(multi_size.evaluate_at_sizes, predictor, tta=tta, before_size=before_size)
    evaluated, *validation = predict_splits(evaluate, splits, sizes)
    metrics = full_report(evaluated.average, predictor.classes)
    engine = f"{model.predictor.name}:{model.predictor.precision}"
    document = metrics | {
        "split": name,
        "engine": engine,
        "tta_flip": tta.flip,
        "tta_shift": tta.shift,
        "precise_bn": args.precise_bn,
    }
    description = f"{name}, {metrics['images']:,} images"
    title = f"{args.run}: {description}"
    lines = [f"{description} at {', '.join(map(str, sizes))} px{tta}"]
    if args.sizes:
        size_document, size_lines = report_sizes(model, evaluated, tta, title, plots)
        document |= size_document
        lines += size_lines
    else:
        document["size"] = sizes[0]
        low, high = metrics["interval"]
        lines += [
            f"top-1 {metrics['top1']:.4f}   top-5 {metrics['top5']:.4f}   loss {metrics['loss']:.4f}",
            f"95 % interval of top-1: {low:.4f} to {high:.4f}   calibration error (ECE) {metrics['ece']:.4f}",
            *format_overall(metrics),
        ]
    for fitted in validation:
        document["calibration"], calibration_lines = report_calibration(fitted, evaluated, title, plots)
        lines += calibration_lines
    lines += format_class_metrics(metrics)
    if groups is not None:
        parts = split_by_group(evaluated.average, groups)
        document["groups"] = {group: full_report(rows, predictor.classes) for group, rows in parts.items()}
        lines += format_groups(args.group, document["groups"])
    print_result(args.json, document, lines)


def predict_splits(
    evaluate: Callable[..., Iterator[multi_size.SizeResult]], splits: dict[str, Split], sizes: list[int]
) -> list[Evaluated]:
    """Predict splits at each size."""
    results = []
    total = sum(len(split.labels) * size**2 for split in splits.values() for size in sizes)
    with ProgressDisplay(total) as progress:
        for name, split in splits.items():
            progress.describe(name)
            by_size = list(evaluate(split=split, sizes=sizes, progress=progress.advance))
            results.append(Evaluated(by_size, average_predictions([size.predictions for size in by_size])))
    return results


def report_sizes(
    model: LoadedModel[Predictor], evaluated: Evaluated, tta: TTA, title: str, plots: Path | None
) -> tuple[dict[str, Any], list[str]]:
    """Return the table of several sizes for JSON and as text, and write its plot to the folder `plots`."""
    assert model.checkpoint is not None
    rows = [multi_size.size_row(model.checkpoint.model, result, tta) for result in evaluated.by_size]
    average = classification_metrics(evaluated.average)
    plot = save_plot(plots, "sizes.png", lambda: multi_size.plot_sizes(rows, average, f"{title}{tta}"))
    means = {key: average[key] for key in ("top1", "top5", "loss")} | {"best_size": multi_size.best_row(rows).size}
    table = [row._asdict() for row in rows]
    document = {"sizes": [row.size for row in rows], "rows": table, "average": means, "plot": plot}
    return document, multi_size.format_sizes(rows, average) + ([f"plot: {plot}"] if plot else [])


def report_calibration(
    validation: Evaluated, evaluated: Evaluated, title: str, plots: Path | None
) -> tuple[dict[str, Any], list[str]]:
    """Fit the temperature; return its effect for JSON and as text, and write its plot to the folder `plots`."""
    result = calibrate(validation.average, evaluated.average)
    num_images = len(validation.average.labels)
    plot = save_plot(plots, "reliability.png", lambda: reliability_diagram(result, title))
    bins, bins_after = ([row._asdict() for row in rows] for rows in (result.bins, result.bins_after))
    document = result._asdict() | {"bins": bins, "bins_after": bins_after}
    document |= {"validation_images": num_images, "plot": plot}
    line = (
        f"temperature {result.temperature:.4f}, fitted on {num_images:,} validation images: "
        f"ECE {result.ece:.4f} -> {result.ece_after:.4f}, loss {result.loss:.4f} -> {result.loss_after:.4f}"
    )
    return document, [line, f"reliability diagram: {plot}"] if plot else [line]


def save_plot(folder: Path | None, name: str, draw: Callable[[], bytes]) -> str | None:
    """Write a chart to `folder` and return its path; None without a folder."""
    if folder is None:
        return None
    write_atomically(folder / name, draw())
    return str(folder / name)


def precise_bn(model: LoadedModel[Predictor], data: Dataset, num_batches: int) -> Callable[[int], None]:
    """Return a function that recomputes the network's batch normalization statistics at a size."""
    checkpoint = model.checkpoint
    assert checkpoint is not None
    network, recipe = checkpoint.network, replace(checkpoint.recipe, precise_bn_batches=num_batches)

    def before_size(size: int) -> None:
        recompute_bn_stats(network, clean_batches(recipe, data.train, replace(checkpoint.preprocess, size=size)))

    return before_size
