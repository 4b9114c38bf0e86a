"""``googlenet evaluate --crops`` and ``--ensemble``: the table of ILSVRC14, and comparisons of several runs."""

import argparse
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from ..checkpoint.format import single_label_only
from ..checkpoint.load import load
from ..data.dataset import Split
from ..devices import pick_device
from ..evaluation.confidence import mcnemar
from ..evaluation.metrics import Predictions, average_predictions, is_correct
from ..evaluation.predictor import NetworkPredictor, Predictor, predict_split
from ..evaluation.progress import ProgressDisplay
from ..evaluation.report_metrics import full_report
from ..inference.datasets import load_eval_dataset, select_split, truncate_list
from ..inference.ilsvrc import format_crops, format_table, predict_crops, results_table
from ..inference.loading import LoadedModel
from ..inference.multi_size import check_sizes
from ..models.ensemble import get_networks
from .common import print_result, resolve_sizes


class Member(NamedTuple):
    """A network, its input size in pixels, and the index of its run: an ensemble's run has several."""

    predictor: NetworkPredictor
    size: int
    run: int


def evaluate_multicrop(args: argparse.Namespace, model: LoadedModel[Predictor]) -> None:
    """Evaluate one network, and all together, with each number of crops; and compare the runs."""
    members = load_members(args, model)
    name, predictions = predict_members(args, model, members)
    table = results_table(predictions)
    first, last = table[0], table[-1]
    cells = [entry.cell._asdict() | {"interval": list(entry.cell.interval)} for entry in table]
    document = full_report(last.predictions, model.predictor.classes) | {"split": name, "table": cells}
    lines = [f"{name}, {document['images']:,} images", *format_table([entry.cell for entry in table])]
    if len(table) > 1:
        test = mcnemar(is_correct(first.predictions), is_correct(last.predictions))
        document["gain"] = {"top1": last.cell.top1 - first.cell.top1, **test._asdict()}
        lines.append(f"first and last cell: {test}")
    document["mcnemar"], comparisons = compare_runs([args.run, *args.ensemble], members, predictions)
    print_result(args.json, document, lines + comparisons)


def load_members(args: argparse.Namespace, model: LoadedModel[Predictor]) -> list[Member]:
    """Return the networks of all runs; ValueError if they do not have the same classes."""
    members, expected, device = [], model.predictor.classes, pick_device("auto")
    checkpoints = [model.checkpoint, *(load(path, task="classification") for path in args.ensemble)]
    for index, (path, checkpoint) in enumerate(zip([args.run, *args.ensemble], checkpoints, strict=True)):
        assert checkpoint is not None
        single_label_only(checkpoint.recipe, path, "--ensemble")
        classes, preprocess = checkpoint.classes, checkpoint.preprocess
        if classes != expected:
            actual = truncate_list(classes)
            raise ValueError(f"{path} has the classes {actual}, but {args.run} {truncate_list(expected)}")
        size = resolve_sizes(args, preprocess.size)[0]
        check_sizes(checkpoint.model.min_size, [size])
        networks = [network.to(device) for network in get_networks(checkpoint.model)]
        members += [Member(NetworkPredictor(network, preprocess, classes), size, index) for network in networks]
    return members


def predict_members(
    args: argparse.Namespace, model: LoadedModel[Predictor], members: list[Member]
) -> tuple[str, dict[int, list[Predictions]]]:
    """Return the name of the split, and the predictions of each member by number of crops.

    The images are those of the first run, preprocessed for each member.
    """
    loaded: dict[Any, tuple[str, Split]] = {}

    def load_split(member: Member) -> tuple[str, Split]:
        key = (member.predictor.preprocess, member.size)
        if key not in loaded:
            loaded.clear()
            own, options = replace(model, predictor=member.predictor), (args.data, args.data_root, args.max_images)
            data = load_eval_dataset(own, member.size, *options, on_disk=bool(args.crops))
            loaded[key] = select_split(data, args.split)
        return loaded[key]

    crops = args.crops or [1]
    predictions: dict[int, list[Predictions]] = {num_crops: [] for num_crops in crops}
    name, split = load_split(members[0])
    with ProgressDisplay(len(members) * len(split.labels) * sum(crops)) as progress:
        for number, member in enumerate(members, start=1):
            _, split = load_split(member)
            for num_crops in crops:
                progress.describe(f"network {number} of {len(members)}, {format_crops(num_crops)}")
                predict = predict_split if num_crops == 1 else partial(predict_crops, num_crops=num_crops)
                predictions[num_crops].append(predict(member.predictor, split, member.size, progress=progress.advance))
    return name, predictions


def compare_runs(
    paths: list[str], members: list[Member], predictions: dict[int, list[Predictions]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Compare the first run with each other one by McNemar's test, for JSON and as text."""
    rows, lines = [], []
    for num_crops, results in predictions.items():
        first, *others = (
            average_predictions([result for result, member in zip(results, members, strict=True) if member.run == run])
            for run in range(len(paths))
        )
        for path, other in zip(paths[1:], others, strict=True):
            test = mcnemar(is_correct(first), is_correct(other))
            rows.append({"run": path, "crops": num_crops, **test._asdict()})
            lines.append(f"{paths[0]} and {path}, {format_crops(num_crops)}: {test}")
    return rows, lines
