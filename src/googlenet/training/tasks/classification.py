"""Image classification: one label per image."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...checkpoint.format import Checkpoint, build_network
from ...config.schema import LossConfig, Recipe
from ...data.augment import Augment, build_auto_augment
from ...data.batch_slice import split_batches
from ...data.calibration import Calibration, select_calibration
from ...data.dataset import Dataset, Split
from ...data.loader import Batch, BatchSpec, eval_batch_size, evaluation_batches, training_batch
from ...data.photometric import distorts_colors
from ...data.preprocess import Preprocess
from ...data.sources import load_dataset
from ...evaluation.metrics import Predictions, classification_metrics, run_inference
from ...evaluation.report import ReportInfo
from ...evaluation.report.classification import render_report
from ...models.network import Network
from .. import distributed
from ..finetune import init_from_checkpoint, run_preprocess
from ..losses import balanced_class_weights, balanced_sampling_weights, single_label_loss
from ..precise_bn import clean_batches
from .base import LossOutput, TaskSetup, data_digest, load_options

build_model = build_network


@dataclass(frozen=True)
class ClassificationTask:
    """The loss of the classifier plus `loss_config.aux_weight` times that of each auxiliary head.

    `class_weights` (classes,) weight each image's loss by its class; `augment` is applied to the training images, which
    are drawn in proportion to `sampling_weights` (n,), if they are set.
    """

    loss_config: LossConfig
    class_weights: Tensor | None = None
    augment: Augment = field(default_factory=Augment)
    thresholds: tuple[float, ...] = ()
    sampling_weights: Tensor | None = None
    monitor: ClassVar[str] = "top1"
    headline_metrics: ClassVar[dict[str, str]] = {"top1": "top-1", "loss": "loss"}

    def with_thresholds(self, validation: Predictions | None) -> "ClassificationTask":
        """Return the task unchanged: the most probable class needs no threshold."""
        return self

    def batch(self, train: Split, preprocess: Preprocess, spec: BatchSpec) -> Batch:
        """Return images with one label each, or class probabilities with mixup and CutMix."""
        return training_batch(replace(train, weights=self.sampling_weights), preprocess, self.augment, spec)

    def loss(self, model: Network, batch: Batch) -> LossOutput:
        """Compute the training loss of a batch ("Going Deeper with Convolutions", section 5)."""
        logits, aux_logits = model.forward_aux(batch.images)
        loss = single_label_loss(logits, batch.labels, self.loss_config, self.class_weights)
        for aux in aux_logits:
            aux_loss = single_label_loss(aux, batch.labels, self.loss_config, self.class_weights)
            loss = loss + self.loss_config.aux_weight * aux_loss
        targets = batch.labels if batch.labels.ndim == 1 else batch.labels.argmax(dim=1)
        return LossOutput(loss, (logits.detach().argmax(dim=1) == targets).sum())

    def predict(self, model: Network, split: Split, preprocess: Preprocess) -> Predictions:
        """Run the network on every image of `split`; see `Task.predict`."""
        device, count = next(model.parameters()).device, len(split.labels)
        batch_size = eval_batch_size(preprocess.size, split.images.device)
        start, stop = split_batches(count, batch_size, distributed.rank(), distributed.world_size())

        def predict_slice() -> list[Predictions]:
            batches = evaluation_batches(split.slice(start, stop), preprocess)
            return [run_inference(model, batches, device)] if start < stop else []

        slices = [predictions for slices in distributed.run_on_all(predict_slice) for predictions in slices]
        return Predictions(*map(torch.cat, zip(*slices, strict=True)))

    def compute_metrics(self, predictions: Predictions) -> dict[str, float]:
        """Compute top-1, top-5 and the loss."""
        return classification_metrics(predictions)

    def clean_batches(self, train: Split, preprocess: Preprocess, recipe: Recipe) -> Iterator[Tensor]:
        """Yield training images without augmentation."""
        return clean_batches(recipe, train, preprocess)

    def calibration(self, split: Split, preprocess: Preprocess) -> Calibration:
        """Select evenly spaced images, as they enter the network."""
        return select_calibration(split, preprocess)

    def report(self, info: ReportInfo, split: Split, predictions: Predictions | None) -> str:
        """Render metrics, curves, confusion matrix and the most confident errors."""
        return render_report(info, split.to(torch.device("cpu")), predictions)


def load_data(recipe: Recipe) -> Dataset:
    """Load the recipe's images."""
    return load_dataset(recipe.data.source, load_options(recipe))


def build_task(recipe: Recipe, data: Dataset, init: Checkpoint | None, saved: dict[str, Any] | None) -> TaskSetup:
    """Return task, network and preprocessing of a classification run; see `config.tasks.TaskModule`."""
    model = init_from_checkpoint(recipe, init, data.classes, data.channels)
    check_fit(recipe, model, data)
    preprocess = run_preprocess(recipe, data, init, saved)
    balanced = recipe.loss.class_weights == "balanced"
    weights = balanced_class_weights(data.train.labels, len(data.classes)) if balanced else None
    augment = build_augment(recipe, data, preprocess)
    task = ClassificationTask(recipe.loss, weights, augment, sampling_weights=sampling_weights(recipe, data))
    content = [data.classes, list(data.train.names), data.train.labels.tolist(), data.mean, data.std]
    return TaskSetup(task, model, preprocess, len(data.train.labels), data_digest(content, data.source))


def sampling_weights(recipe: Recipe, data: Dataset) -> Tensor | None:
    """Return the weights with which the training images are drawn; None if every epoch has each once."""
    if recipe.data.sampling == "shuffle":
        return None
    return balanced_sampling_weights(data.train.labels.cpu(), len(data.classes))


def check_fit(recipe: Recipe, model: Network, data: Dataset) -> None:
    """Raise ValueError for images below the network's minimum size and for too few images."""
    if not data.train:
        raise ValueError(f"{data.source} has no training images")
    smallest = min(*recipe.size.sizes, recipe.eval_size)
    if smallest < model.min_size:
        hint = ", or model.pool_mode same" if recipe.model.pool_mode == "ceil" else ""
        needed = f"{recipe.model.name} needs at least {model.min_size} pixels"
        raise ValueError(f"size {smallest} is too small: {needed}{hint}")
    if recipe.early_stopping_patience and not data.validation:
        raise ValueError("early_stopping_patience needs a validation split: set data.val_split, such as 0.2")
    has_batchnorm = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    if has_batchnorm and min(recipe.batch_size, len(data.train.labels)) < 2:
        raise ValueError(f"{recipe.model.name} has batch normalization: it needs at least 2 images per step")


def build_augment(recipe: Recipe, data: Dataset, preprocess: Preprocess) -> Augment:
    """Return the recipe's augmentation; ValueError for a policy unknown to timm."""
    options = recipe.augment
    augment = Augment(**vars(options), num_classes=len(data.classes))
    if data.channels not in (1, 3) and (options.auto_augment or distorts_colors(augment)):
        raise ValueError(
            f"augment.auto_augment and photometric distortions are for gray and RGB images, not for {data.channels} "
            "channels: unset them"
        )
    if options.auto_augment:
        build_auto_augment(options.auto_augment, preprocess.size, preprocess.mean)
    return augment
