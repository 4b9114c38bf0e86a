"""Load the images on which a model is evaluated, explained or calibrated."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import overload

from ..config.schema import DataConfig
from ..data.dataset import COLUMN_OPTIONS, Dataset, LoadOptions, Split
from ..data.preprocess import storage_size
from ..data.sources import Kind, absolute_source, load_dataset
from ..data.sources.imagenet import classes_match
from ..data.table_file import cell_text
from ..detection.data.dataset import DetectionDataset, Sample, load_detection_dataset
from ..errors import nearest
from ..evaluation.predictor import Predictor, get_thresholds
from .loading import Detectors, LoadedModel


def resolve_source(
    model: LoadedModel[Predictor] | LoadedModel[Detectors], source: str | None, root: str | None, max_images: int | None
) -> tuple[str, LoadOptions]:
    """Return the source to evaluate on, and how to load it: like the data of the run, with the model's channels."""
    if source is None and model.data is None:
        raise ValueError("an exported folder contains no data source: choose one with --data")
    config = model.data or DataConfig()
    name = absolute_source(source or config.source, root)
    is_own = model.data is not None and name == config.source
    # Another table has the same columns as that of the run.
    is_same_kind = name.partition(":")[0] == config.source.partition(":")[0]
    columns = {key: getattr(config, key) for key in COLUMN_OPTIONS} if is_same_kind else {}
    if not is_own:
        columns.pop("validation_fold", None)
    return name, LoadOptions(
        root=root or config.root,
        validation=config.val_split if is_own else 0,
        channels=model.predictor.preprocess.channels,
        max_value=model.predictor.preprocess.max_value,
        on_error=config.on_error,
        max_samples=max_images or (config.max_samples if is_own else None),
        seed=config.split_seed or 0,
        group_column=config.group_column if is_own else None,
        num_folds=config.num_folds if is_own else None,
        fold=config.fold if is_own else None,
        **columns,
    )


def load_eval_dataset(
    model: LoadedModel[Predictor],
    size: int,
    source: str | None = None,
    root: str | None = None,
    max_images: int | None = None,
    on_disk: bool = False,
) -> Dataset:
    """Load the data of the model's run, or `source`, with the model's channels, crop and class names.

    Images are stored at height and width `size`, or with `on_disk` decoded later, so that their original size is
    accessible; `root` is searched first; `max_images` limits each split (None: as in the run). Prints unreadable files
    on standard error. Raises ValueError if the classes are not those of the model (ImageNet's may also be named by
    their synsets), or if neither `source` nor the run names the data.
    """
    predictor, config = model.predictor, model.data or DataConfig()
    name, options = resolve_source(model, source, root, max_images)
    preprocess, in_memory = predictor.preprocess, False if on_disk else config.in_memory
    options = replace(
        options, size=storage_size(size, preprocess.crop_mode, preprocess.crop_pct), crop_mode=preprocess.crop_mode,
        interpolation=preprocess.interpolation, in_memory=in_memory, num_workers=config.num_workers,
    )  # fmt: skip
    kind: Kind = "multilabel" if get_thresholds(predictor) else "classification"
    if options.num_folds is None:
        data = load_dataset(name, options, kind)
    else:
        # Folds are those of all images of the run: a selection of them would have other folds.
        data = load_dataset(name, replace(options, max_samples=config.max_samples), kind)
        data = data if max_images is None else data.subsample(max_images)
    _check_data(name, data, predictor.classes, classes_match(data, predictor.classes))
    return replace(data, classes=predictor.classes)


@overload
def select_split(data: Dataset, name: str | None) -> tuple[str, Split]: ...
@overload
def select_split(data: DetectionDataset, name: str | None) -> tuple[str, Sequence[Sample]]: ...
def select_split(data: Dataset | DetectionDataset, name: str | None) -> tuple[str, Split | Sequence[Sample]]:
    """Return the split `name`, or the first of test, validation and train that is not empty, with its name."""
    for candidate in [name] if name else ["test", "validation", "train"]:
        split: Split | Sequence[Sample] = getattr(data, candidate)
        if split:
            return candidate, split
    raise ValueError(f"{data.source} has no {name} images")


def group_column(split: Split, name: str) -> list[str]:
    """Return the values of a column of the data's table for each image of a split; ValueError if it has none."""
    if name not in split.columns:
        columns = f"the columns are {', '.join(split.columns)}" if split.columns else "only table: sources have columns"
        raise ValueError(f"no column {name!r}{nearest(name, split.columns)}; {columns}")
    return [cell_text(value) for value in split.columns[name]]


def load_detection_eval_dataset(
    model: LoadedModel[Detectors], source: str | None = None, root: str | None = None, max_images: int | None = None
) -> DetectionDataset:
    """Load the images and boxes of the detector's run, or `source`; compare `load_eval_dataset`."""
    name, options = resolve_source(model, source, root, max_images)
    data = load_detection_dataset(name, options)
    _check_data(name, data, model.predictor.classes, data.classes == model.predictor.classes)
    return data


def _check_data(source: str, data: Dataset | DetectionDataset, expected: Sequence[str], is_match: bool) -> None:
    """Print unreadable files; raise ValueError for data with other classes than those of the network."""
    for message in data.accounting.lines():
        print(message, file=sys.stderr)
    if not is_match:
        actual = truncate_list(data.classes)
        raise ValueError(f"{source} has the classes {actual}, but the network has {truncate_list(expected)}")


def truncate_list(names: Sequence[str], limit: int = 4) -> str:
    """Return the first names, and the number of the remaining ones, for a message."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
