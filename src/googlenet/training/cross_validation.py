"""Cross-validation: one network per fold, measured on the images that it was not trained on."""

import io
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checkpoint.format import Checkpoint
from ..config.schema import Recipe
from ..config.tasks import get_task_module
from ..data.dataset import Dataset
from ..data.folds import image_folds
from ..data.loader import evaluation_batches
from ..devices import pick_device
from ..evaluation.class_metrics import class_metrics, one_vs_rest
from ..evaluation.metrics import Predictions, average_predictions, classification_metrics, run_inference
from ..evaluation.multilabel import choose_thresholds, label_outcomes, multilabel_metrics, multilabel_report
from ..evaluation.report_metrics import full_report
from ..files import write_atomically
from ..models.ensemble import to_probabilities
from .tasks.base import load_options

OUT_OF_FOLD_FILE = "out-of-fold.parquet"


class OutOfFold(NamedTuple):
    """The predictions of one repeat: each image by the network that has it in its validation fold, `folds` (n,)."""

    predictions: Predictions
    folds: Tensor


class CrossValidation(NamedTuple):
    """The metrics of each fold of each repeat, all images together, and the thresholds of an ensemble of the folds.

    `pooled` are the metrics of `full_report` or `multilabel_report`, of the mean probability over the repeats.
    """

    folds: list[dict[str, float]]
    pooled: dict[str, Any]
    thresholds: tuple[float, ...]


def fold_recipes(recipe: Recipe, num_folds: int, repeats: int) -> list[Recipe]:
    """Return the recipe of each fold of each repeat; a repeat has other folds and another seed.

    Raises ValueError for fewer than 2 folds or 1 repeat.
    """
    if num_folds < 2:
        raise ValueError(f"cross-validation needs 2 or more folds, not {num_folds}")
    if repeats < 1:
        raise ValueError(f"cross-validation needs 1 or more repeats, not {repeats}")
    return [
        replace(
            recipe,
            seed=recipe.seed + repeat,
            data=replace(recipe.data, num_folds=num_folds, fold=fold, split_seed=recipe.split_seed + repeat),
        )
        for repeat in range(repeats)
        for fold in range(num_folds)
    ]


def require_pyarrow() -> None:
    """Raise ValueError if the predictions cannot be written."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise ValueError("the predictions are written as Parquet: install pyarrow, pip install 'pyarrow>=15'") from None


def load_pool(recipe: Recipe) -> Dataset:
    """Load the images of all folds as the training split."""
    data: Dataset = get_task_module(recipe).load_data(replace(recipe, data=replace(recipe.data, fold=None)))
    return data


def check_folds(recipe: Recipe, repeats: int) -> None:
    """Raise ValueError if the data of `recipe` cannot be divided into its folds."""
    data = load_pool(recipe)
    image_folds(data, load_options(recipe))
    if data.fold_column is not None and repeats > 1:
        raise ValueError(f"{recipe.data.source}: the folds of column {data.fold_column!r} cannot be repeated")


def cross_validate(members: Sequence[Checkpoint], folder: Path) -> CrossValidation:
    """Predict every image by the networks that were not trained on it, and write the predictions as Parquet.

    `members` are trained networks of `fold_recipes`, in order.
    """
    first = members[0].recipe
    num_folds = first.data.num_folds
    assert num_folds is not None
    device = pick_device(first.device)
    data = load_pool(first).to(device)
    repeats = [
        _predict_folds(members[start : start + num_folds], data, device) for start in range(0, len(members), num_folds)
    ]
    write_atomically(folder / OUT_OF_FOLD_FILE, _to_parquet(data, repeats))
    folds = [fold_metrics(repeat, fold) for repeat in repeats for fold in range(num_folds)]
    pooled = average_predictions([repeat.predictions for repeat in repeats])
    if pooled.labels.ndim == 1:
        return CrossValidation(folds, full_report(pooled, data.classes), ())
    thresholds = choose_thresholds(pooled, len(data.classes))
    return CrossValidation(folds, multilabel_report(pooled, data.classes, thresholds), thresholds)


def _predict_folds(members: Sequence[Checkpoint], data: Dataset, device: torch.device) -> OutOfFold:
    """Predict each fold of one repeat by its network."""
    folds = image_folds(data, load_options(members[0].recipe))
    logits = torch.empty(len(folds), len(data.classes))
    for fold, member in enumerate(members):
        mine = folds == fold
        batches = evaluation_batches(data.train.select(mine).stored(), member.preprocess)
        logits[mine] = run_inference(member.model.to(device), batches, device).logits
    return OutOfFold(Predictions(logits, data.train.labels.cpu()), folds)


def fold_metrics(repeat: OutOfFold, fold: int) -> dict[str, float]:
    """Return the metrics of the images of one fold; thresholds of labels are chosen on the other folds."""
    mine = repeat.folds == fold
    inside, outside = (Predictions(*(values[rows] for values in repeat.predictions)) for rows in (mine, ~mine))
    if inside.labels.ndim == 2:
        thresholds = choose_thresholds(outside, inside.logits.shape[1])
        metrics, outcomes = multilabel_metrics(inside, thresholds), label_outcomes(inside, thresholds)
    else:
        metrics, outcomes = classification_metrics(inside), one_vs_rest(inside)
    macro = class_metrics(outcomes, multilabel=inside.labels.ndim == 2).averages["macro"]
    values = {name: macro[name].value for name in ("precision", "recall", "f1", "auroc", "average_precision")}
    return {**metrics, **{name: value for name, value in values.items() if value is not None}}


def mean_and_deviation(folds: Sequence[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """Return mean and standard deviation (of a sample) over the folds of each metric that all folds have."""
    names = [name for name in folds[0] if name != "images" and all(name in row for row in folds)]
    columns = {name: [row[name] for row in folds] for name in names}
    return {name: (statistics.fmean(column), statistics.stdev(column)) for name, column in columns.items()}


def _to_parquet(data: Dataset, repeats: Sequence[OutOfFold]) -> bytes:
    """Return one row per image and repeat: image, repeat, fold, true and predicted label, probabilities."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    classes, tables = data.classes, []
    for number, (predictions, folds) in enumerate(repeats):
        multilabel = predictions.labels.ndim == 2
        probabilities = to_probabilities(predictions.logits, multilabel)
        if multilabel:
            thresholds = choose_thresholds(predictions, len(classes))
            _, targets, predicted = label_outcomes(predictions, thresholds)
            true, guessed = (
                [[classes[index] for index in row.nonzero().flatten().tolist()] for row in rows]
                for rows in (targets, predicted)
            )
        else:
            true, guessed = (
                [classes[index] for index in rows.tolist()]
                for rows in (predictions.labels, predictions.logits.argmax(1))
            )
        columns = {
            "image": list(data.train.names), "repeat": [number] * len(folds), "fold": folds.tolist(), "label": true,
            "predicted": guessed,
        }  # fmt: skip
        columns |= {f"p_{name}": column.tolist() for name, column in zip(classes, probabilities.T, strict=True)}
        tables.append(pa.table(columns))
    buffer = io.BytesIO()
    pq.write_table(pa.concat_tables(tables), buffer)
    return buffer.getvalue()
