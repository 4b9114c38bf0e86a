"""The evaluation of ILSVRC14: errors by number of models and crops ("Going Deeper with Convolutions", table 3)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.dataset import Split
from ..data.decode import decode_to_tensor
from ..data.lazy import LazyImages
from ..data.loader import eval_batch_pixels
from ..data.preprocess import MARGIN
from ..evaluation.confidence import ConfidenceInterval, wilson_interval
from ..evaluation.metrics import Predictions, average_predictions, check_logits, classification_metrics, is_correct
from ..evaluation.predictor import Predictor, predictor_device
from ..evaluation.progress import ProgressCallback, no_progress
from .multi_crop import NumCrops, crop_scales, predict_multi_crop

# Crops of a square image that form one batch: those of one scale, computed once instead of three times.
CROPS_PER_BATCH = 12


def predict_crops(
    predictor: Predictor, split: Split, base: int, num_crops: NumCrops, progress: ProgressCallback = no_progress
) -> Predictions:
    """Predict every image of `split` from `num_crops` crops of `base` pixels; `progress` counts crops.

    Images on disk are decoded one by one with their aspect ratio. Images in memory are square and form batches.
    """
    logits = []
    for images in _image_batches(split, predictor, base, num_crops):
        logits.append(predict_multi_crop(predictor, images, base, num_crops).cpu())
        progress(len(images) * num_crops)
    return Predictions(torch.cat(logits), split.labels.cpu())


def _image_batches(split: Split, predictor: Predictor, base: int, num_crops: NumCrops) -> Iterator[Tensor]:
    images = split.images
    if isinstance(images, LazyImages):
        preprocess, ranges = predictor.preprocess, images.ranges
        min_size = MARGIN * max(crop_scales(base, num_crops))
        for index in range(len(split.labels)):
            data, name = ranges.read(index), ranges.name(index)
            yield decode_to_tensor(data, preprocess.channels, name, min_size, preprocess.max_value).unsqueeze(0)
        return
    pixels = eval_batch_pixels(predictor_device(predictor))
    yield from torch.split(images, max(1, pixels // (CROPS_PER_BATCH * base * base)))


class ResultCell(NamedTuple):
    """A cell of the table: the metrics of `models` models with `crops` crops each; `interval` is that of top-1."""

    models: int
    crops: int
    top1: float
    top5: float
    loss: float
    interval: ConfidenceInterval


class TableEntry(NamedTuple):
    """A cell of the table and the predictions that it summarizes."""

    cell: ResultCell
    predictions: Predictions


def results_table(predictions: Mapping[int, Sequence[Predictions]]) -> list[TableEntry]:
    """Evaluate, for each number of crops, the first model, and the average of all models if there are several."""
    return [
        TableEntry(_cell(num_models, num_crops, average), average)
        for num_crops, models in sorted(predictions.items())
        for num_models in sorted({1, len(models)})
        for average in [average_predictions(models[:num_models])]
    ]


def _cell(num_models: int, num_crops: int, predictions: Predictions) -> ResultCell:
    check_logits(predictions.logits, "evaluation")
    metrics = classification_metrics(predictions)
    interval = wilson_interval(is_correct(predictions))
    return ResultCell(num_models, num_crops, metrics["top1"], metrics["top5"], metrics["loss"], interval)


def format_table(cells: Sequence[ResultCell]) -> list[str]:
    """Format the table as in the paper, models by row and crops by column: top-1 error, its interval, top-5 error."""
    crops = sorted({cell.crops for cell in cells})
    lines = {cell.models: f"{cell.models:>7}" for cell in sorted(cells)}
    for cell in sorted(cells, key=lambda cell: cell.crops):
        low, high = 1 - cell.interval.high, 1 - cell.interval.low
        text = f"{1 - cell.top1:.4f} [{low:.4f}, {high:.4f}]  {1 - cell.top5:.4f}"
        lines[cell.models] += f"{text:>34}"
    header = f"{'models':>7}" + "".join(f"{format_crops(num_crops):>34}" for num_crops in crops)
    return [header, *lines.values(), "top-1 error with its 95 % confidence interval, top-5 error"]


def format_crops(num_crops: int) -> str:
    """Return "1 crop", "10 crops", ..."""
    return f"{num_crops} crop{'s' if num_crops > 1 else ''}"
