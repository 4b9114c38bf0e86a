"""Object detection: labeled boxes per image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checkpoint.format import Checkpoint, build_network, load_strictly
from ..checkpoint.interop.convert import AUX_PREFIX
from ..config.schema import AugmentConfig, LossConfig, Recipe
from ..data.batch_slice import split_batches
from ..data.loader import BatchSpec, full_batch_spec, steps_per_epoch
from ..data.preprocess import Preprocess
from ..evaluation.report import ReportInfo
from ..training import distributed
from ..training.finetune import adapt_input_channels, first_conv_weight, freeze_layers, run_preprocess
from ..training.tasks.base import LossOutput, TaskSetup, data_digest, load_options
from .data.dataset import DetectionDataset, Sample, load_detection_dataset, training_images
from .detector import Detector
from .heads import get_head_module
from .metrics import EvaluatedSplit, coco_metrics, detect_samples
from .predict import DetectorPredictor


@dataclass(frozen=True)
class DetectionTask:
    """The head's loss plus `loss_config.aux_weight` times that of each auxiliary head; see `training_images`.

    `sizes` are the test sizes of the longer side in pixels.
    """

    loss_config: LossConfig
    classes: tuple[str, ...]
    sizes: tuple[int, ...]
    min_side: int = 1
    flip: bool = False
    thresholds: ClassVar[tuple[float, ...]] = ()
    monitor: ClassVar[str] = "ap"
    headline_metrics: ClassVar[dict[str, str]] = {"ap": "AP", "ap50": "AP50"}

    def with_thresholds(self, validation: EvaluatedSplit | None) -> "DetectionTask":
        """Return the task unchanged: its threshold of scores is an option of the recipe."""
        return self

    def batch(self, train: Sequence[Sample], preprocess: Preprocess, spec: BatchSpec) -> Any:
        """Return letterboxed images with their boxes."""
        return training_images(train, preprocess, spec, flip=self.flip, min_side=self.min_side)

    def loss(self, model: Any, batch: Any) -> LossOutput:
        """Compute the training loss of a batch."""
        output: LossOutput = model.losses(batch, self.loss_config.aux_weight)
        return output

    def predict(self, model: Any, split: Sequence[Sample], preprocess: Preprocess) -> EvaluatedSplit:
        """Detect the objects on every image of `split`, and compute the metrics; see `Task.predict`."""
        predictor = DetectorPredictor(model, preprocess, self.classes, self.sizes)
        start, stop = split_batches(len(split), 1, distributed.rank(), distributed.world_size())
        parts = distributed.run_on_all(lambda: detect_samples(predictor, split[start:stop]))
        detections = [result for part in parts for result in part]
        return EvaluatedSplit(detections, coco_metrics(split, detections, self.classes))

    def compute_metrics(self, predictions: EvaluatedSplit) -> dict[str, float]:
        """Return COCO's metrics and the number of images."""
        return {**predictions.metrics.summary, "images": len(predictions.detections)}

    def clean_batches(self, train: Sequence[Sample], preprocess: Preprocess, recipe: Recipe) -> Iterator[Tensor]:
        """Yield training images without augmentation, at the evaluation size, in the order of the first epoch."""
        num_steps = steps_per_epoch(len(train), recipe.batch_size)
        for step in range(min(recipe.precise_bn_batches or num_steps, num_steps)):
            spec = full_batch_spec(len(train), recipe.batch_size, step=step, size=preprocess.size, seed=recipe.seed)
            yield training_images(train, preprocess, spec, flip=False, min_side=self.min_side).images

    def calibration(self, split: Sequence[Sample], preprocess: Preprocess) -> None:
        """Return None: a detector's precision is chosen by name, because it is compared by its boxes."""

    def report(self, info: ReportInfo, split: Sequence[Sample], predictions: EvaluatedSplit | None) -> str:
        """Render metrics, curves, precision and recall, and the worst errors."""
        from .report import render_detection_report  # imports matplotlib

        return render_detection_report(info, split, predictions)


def load_data(recipe: Recipe) -> DetectionDataset:
    """Load the recipe's images; ValueError for options that detection does not have."""
    if recipe.detection.head != "rcnn":
        get_head_module(recipe.detection.head)
    data = recipe.data
    options = ("crop_pct", "interpolation", "in_memory", "num_workers")
    if data.crop_mode != "center" or any(getattr(data, option) is not None for option in options):
        raise ValueError(f"data.crop_mode, {', '.join(f'data.{option}' for option in options)} are for classification: "
                         "leave them unset")  # fmt: skip
    return load_detection_dataset(data.source, load_options(recipe))


def build_task(
    recipe: Recipe, data: DetectionDataset, init: Checkpoint | None, saved: dict[str, Any] | None
) -> TaskSetup:
    """Return task, network and preprocessing of a detection run; see `config.tasks.TaskModule`."""
    check_recipe(recipe, data)
    model = build_model(recipe, len(data.classes), data.channels)
    if init is not None:
        load_init_weights(model, init, data, f"model.init_from: {recipe.model.init_from}")
    freeze_layers(model.backbone, recipe.model.freeze)
    sizes = recipe.detection.test_sizes or (recipe.eval_size,)
    task = DetectionTask(recipe.loss, data.classes, sizes, model.min_size, recipe.augment.flip == "random")
    return TaskSetup(task, model, run_preprocess(recipe, data, init, saved), len(data.train), digest(data))


def build_model(recipe: Recipe, num_classes: int, in_channels: int) -> Detector:
    """Build the recipe's detector with initial weights from the recipe's seed."""
    backbone = build_network(recipe, num_classes, in_channels)
    # PyTorch and torchvision draw the weights of pyramid and head from the global generator: restore it afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed if recipe.model.seed is None else recipe.model.seed)
        return Detector(backbone, num_classes, recipe.detection)


def load_init_weights(model: Detector, init: Checkpoint, data: DetectionDataset, origin: str) -> None:
    """Load the weights of `init` into `model`; every tensor must fit.

    A detector with the same classes and channels is loaded completely. Otherwise its backbone, or the classifier, is
    adapted to the channels, and loaded without the last layer and, unless the classes are the same, auxiliary heads.
    """
    is_detector, same_classes = init.recipe.task == "detection", init.classes == data.classes
    if is_detector and same_classes and data.channels == init.preprocess.channels:
        load_strictly(model, dict(init.model.state_dict()), origin)
        return
    source = (init.model.backbone if is_detector else init.network).state_dict()
    tensors = {key: value for key, value in source.items() if not key.startswith("classifier.")}
    new_aux = {key: value for key, value in model.backbone.state_dict().items() if key.startswith(AUX_PREFIX)}
    if not (same_classes and new_aux and any(key.startswith(AUX_PREFIX) for key in source)):
        tensors = {key: value for key, value in tensors.items() if not key.startswith(AUX_PREFIX)} | new_aux
    first = first_conv_weight(model.backbone)
    tensors[first] = adapt_input_channels(tensors[first], data.channels)
    load_strictly(model.backbone, tensors, origin)


def check_recipe(recipe: Recipe, data: DetectionDataset) -> None:
    """Raise ValueError for options that detection does not have, and for batches too small for batch normalization."""
    if recipe.augment not in (AugmentConfig(), replace(AugmentConfig(), flip="random")):
        raise ValueError("detection supports augment.flip none and random only: leave the other augmentations unset")
    if recipe.loss.class_weights != "none" or recipe.loss.label_smoothing:
        raise ValueError("loss.label_smoothing and loss.class_weights are for classification: leave them unset")
    if any(value is not None for value in (recipe.data.max_value, recipe.data.crop_pct, recipe.data.interpolation)):
        raise ValueError("data.max_value, crop_pct and interpolation are for classification: leave them unset")
    if recipe.early_stopping_patience and not data.validation:
        raise ValueError("early_stopping_patience needs a validation split: set data.val_split, such as 0.2")
    if min(recipe.batch_size, len(data.train)) < 2:
        raise ValueError("detection needs at least 2 images per step")


def digest(data: DetectionDataset) -> str:
    """Return a digest of the training images' names, boxes, labels and statistics; see `data_digest`."""
    samples = [[item.name, item.boxes.tolist(), item.labels.tolist(), item.crowd.tolist()] for item in data.train]
    return data_digest([data.classes, samples, data.mean, data.std], data.source)
