"""The images that an export is compared, measured and calibrated on."""

from dataclasses import replace
from pathlib import Path

import torch

from ..checkpoint.format import Checkpoint
from ..data.decode import decode_pixels
from ..detection.data.dataset import subsample
from ..detection.predict import DetectorPredictor
from ..evaluation.predictor import NetworkPredictor, Predictor
from ..export.exporter import ExportData
from ..inference.datasets import load_detection_eval_dataset, load_eval_dataset, select_split
from ..inference.loading import Detectors, LoadedModel
from ..inference.predict import expand_paths

# Images that the files are compared with PyTorch on: of a classifier, and of a detector.
SAMPLE_SIZE, DETECTION_SAMPLE_SIZE = 7, 20


def select_export_data(
    checkpoint: Checkpoint, source: str | None, root: str | None, folder: str | None, max_images: int | None
) -> ExportData:
    """Load the unlabeled images of `folder`, or those of `source` or of the run."""
    preprocess, is_detector = checkpoint.preprocess, checkpoint.recipe.task == "detection"
    num_images = min(max_images or DETECTION_SAMPLE_SIZE, 1000) if is_detector else SAMPLE_SIZE
    if folder:
        min_size = None if is_detector else preprocess.min_decode_size()
        files = [Path(file) for file in expand_paths([folder])[:num_images] if file != folder]
        images = [
            decode_pixels(file, preprocess.channels, min_size=min_size, max_value=preprocess.max_value).pixels
            for file in files
        ]
        if not images:
            raise ValueError(f"{folder}: no images; name a folder with --images")
        if is_detector:
            return ExportData(images)
        squash = replace(preprocess, crop_mode="squash", crop_pct=1.0)
        return ExportData(torch.stack([squash.to_uint8(image) for image in images]))
    if is_detector:
        detector: Detectors = DetectorPredictor(checkpoint.model, preprocess, checkpoint.classes)
        data = load_detection_eval_dataset(LoadedModel.of(detector, checkpoint), source, root, max_images)
        name, split = select_split(data, None)
        sample = [image.read(preprocess.channels) for image in subsample(split, num_images)]
        return ExportData(sample, split, f"{name} of {data.source}", data.train)
    return load_export_data(checkpoint, source, root, max_images)


def load_export_data(
    checkpoint: Checkpoint, source: str | None = None, root: str | None = None, max_images: int | None = None
) -> ExportData:
    """Load the images of a classifier's run, or of `source`: a sample to compare on, the test and training images."""
    predictor: Predictor = NetworkPredictor(
        checkpoint.model, checkpoint.preprocess, checkpoint.classes, checkpoint.thresholds
    )
    model = LoadedModel.of(predictor, checkpoint)
    try:
        data = load_eval_dataset(model, model.stored_size, source, root, max_images)
    except ValueError as error:
        raise ValueError(f"{error}; name its data with --data, or any images with --images DIR") from None
    name, split = select_split(data, None)
    (sample,) = split.subsample(SAMPLE_SIZE).pixels([torch.arange(min(SAMPLE_SIZE, len(split.labels)))])
    return ExportData(sample, split, f"{name} of {data.source}", data.train)
