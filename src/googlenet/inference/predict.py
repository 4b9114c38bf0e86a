"""Classify image files: class names with probabilities."""

import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.accounting import Accounting
from ..data.decode import ImageError, decode_pixels
from ..data.image_files import image_files
from ..data.preprocess import Preprocess
from ..evaluation.metrics import check_logits
from ..evaluation.predictor import Predictor, get_thresholds
from ..models.ensemble import average_logits
from .tta import TTA, predict_views

BATCH_SIZE = 64
STDIN = "-"


class ClassProbability(NamedTuple):
    """A class and its probability in 0..1."""

    label: str
    probability: float


class Prediction(NamedTuple):
    """The most probable classes of an image and a description of its preprocessing; or why it cannot be read.

    `labels` are the classes with at least their threshold, if an image may have any number of labels; else None.
    """

    path: str
    top: list[ClassProbability]
    preprocessing: str
    error: str | None = None
    labels: list[str] | None = None


class PredictOptions(NamedTuple):
    """The number of classes to return, and the sizes (pixels; default: the predictor's) and views to average."""

    top_k: int = 5
    sizes: tuple[int, ...] = ()
    tta: TTA = TTA()


def expand_paths(names: Iterable[str]) -> list[str]:
    """Return the images in folders, at any depth, and all other names unchanged.

    Other files in the folders are named on standard error.
    """
    paths, accounting = [], Accounting()
    for name in names:
        files = list(image_files(Path(name), accounting)) if name != STDIN and os.path.isdir(name) else []
        # A file called - in the current folder is not standard input.
        paths += [os.path.join(".", STDIN) if str(path) == STDIN else str(path) for path in files] or [name]
    for line in accounting.lines():
        print(line, file=sys.stderr)
    return paths


def predict_images(
    predictor: Predictor, paths: Iterable[str], options: PredictOptions | None = None
) -> Iterator[Prediction]:
    """Predict each path in order, in batches; ``-`` reads standard input.

    Probabilities are averaged over the sizes and views of `options`. Raises ValueError if one is not finite.
    """
    options = options or PredictOptions()
    options = options._replace(sizes=options.sizes or (predictor.preprocess.size,))
    remaining, thresholds = iter(paths), get_thresholds(predictor)
    while batch := list(islice(remaining, BATCH_SIZE)):
        images = [_load(path, predictor.preprocess, options) for path in batch]
        readable = [image.pixels for image in images if image.error is None]
        probabilities: Iterator[Tensor] = iter(())
        if readable:
            by_size = [torch.cat(pixels) for pixels in zip(*readable, strict=True)]
            logits = [predict_views(predictor, pixels, options.tta) for pixels in by_size]
            averaged = average_logits(logits, multilabel=bool(thresholds))
            probabilities = iter(averaged.sigmoid() if thresholds else averaged.exp())
        for path, image in zip(batch, images, strict=True):
            if image.error:
                yield Prediction(path, [], "", image.error)
                continue
            values = next(probabilities)
            check_logits(values, path)
            top = values.sort(descending=True, stable=True)  # equal classes in their order, as in the server
            pairs = itertools.islice(zip(top.indices.tolist(), top.values.tolist(), strict=True), options.top_k)
            classes = [ClassProbability(predictor.classes[i], p) for i, p in pairs]
            labels = labels_above(values.tolist(), predictor.classes, thresholds)
            yield Prediction(path, classes, image.description, labels=labels)


def labels_above(
    probabilities: Sequence[float], classes: Sequence[str], thresholds: Sequence[float]
) -> list[str] | None:
    """Return the classes with at least their threshold, the most probable first; None without thresholds."""
    if not thresholds:
        return None
    rows = zip(probabilities, thresholds, classes, strict=True)
    above = [(-value, index, name) for index, (value, limit, name) in enumerate(rows) if value >= limit]
    return [name for _, _, name in sorted(above)]


class _LoadedImage(NamedTuple):
    """An image at every size, (1, channels, size, size) each, and a description of the steps; or the error."""

    pixels: list[Tensor]
    description: str
    error: str | None = None


def _load(path: str, preprocess: Preprocess, options: PredictOptions) -> _LoadedImage:
    try:
        source, name = (sys.stdin.buffer.read(), "standard input") if path == STDIN else (Path(path), None)
        min_size = preprocess.min_decode_size(max(options.sizes))
        image = decode_pixels(source, preprocess.channels, name, min_size, max_value=preprocess.max_value)
        results = [preprocess.from_decoded(image, size) for size in options.sizes]
    except ImageError as error:
        is_url = "://" in path and not os.path.exists(path)
        return _LoadedImage([], "", f"{path}: a URL; download the image and name the file" if is_url else str(error))
    description = results[0][1]
    if len(results) > 1:
        description += f", averaged with {', '.join(map(str, options.sizes[1:]))} px"
    return _LoadedImage([pixels for pixels, _ in results], f"{description}{options.tta}")
