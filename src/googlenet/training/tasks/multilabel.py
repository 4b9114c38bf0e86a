"""Image classification with any number of labels per image, each with a probability of its own."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ...checkpoint.format import Checkpoint, build_network
from ...config.schema import Recipe
from ...data.dataset import Dataset, Split
from ...data.loader import Batch
from ...data.preprocess import Preprocess
from ...data.sources import load_dataset
from ...evaluation.metrics import Predictions
from ...evaluation.multilabel import choose_thresholds, multilabel_metrics
from ...evaluation.report import ReportInfo
from ...evaluation.report.multilabel import render_multilabel_report
from ...models.network import Network
from ..finetune import init_from_checkpoint, run_preprocess
from ..losses import balanced_positive_weights, multilabel_loss
from .base import LossOutput, TaskSetup, data_digest, load_options
from .classification import ClassificationTask, build_augment, check_fit, sampling_weights

build_model = build_network


@dataclass(frozen=True)
class MultilabelTask(ClassificationTask):
    """The loss of the classifier plus `loss_config.aux_weight` times that of each auxiliary head.

    Labels are bool (n, classes). `class_weights` (classes,) weight the images that have a label.
    """

    monitor: ClassVar[str] = "map"
    headline_metrics: ClassVar[dict[str, str]] = {"map": "mAP", "f1": "F1", "loss": "loss"}

    def with_thresholds(self, validation: Predictions | None) -> "MultilabelTask":
        """Return the task with the thresholds of the best F1 of each class on `validation`."""
        return replace(self, thresholds=choose_thresholds(validation, len(self.thresholds)))

    def loss(self, model: Network, batch: Batch) -> LossOutput:
        """Compute the training loss; the number of correct images is the sum of their fractions of correct labels."""
        logits, aux_logits = model.forward_aux(batch.images)
        loss = multilabel_loss(logits, batch.labels, self.loss_config, self.class_weights)
        for aux in aux_logits:
            aux_loss = multilabel_loss(aux, batch.labels, self.loss_config, self.class_weights)
            loss = loss + self.loss_config.aux_weight * aux_loss
        is_correct = (logits.detach() > 0) == batch.labels.bool()
        return LossOutput(loss, is_correct.float().mean(dim=1).sum())

    def compute_metrics(self, predictions: Predictions) -> dict[str, float]:
        """Compute mAP, AUROC, F1 and the loss."""
        return multilabel_metrics(predictions, self.thresholds)

    def report(self, info: ReportInfo, split: Split, predictions: Predictions | None) -> str:
        """Render metrics, curves and the images with the largest loss."""
        return render_multilabel_report(info, split.to(torch.device("cpu")), predictions, self.thresholds)


def load_data(recipe: Recipe) -> Dataset:
    """Load the recipe's images."""
    return load_dataset(recipe.data.source, load_options(recipe), "multilabel")


def build_task(recipe: Recipe, data: Dataset, init: Checkpoint | None, saved: dict[str, Any] | None) -> TaskSetup:
    """Return task, network and preprocessing of a run; see `config.tasks.TaskModule`."""
    model = init_from_checkpoint(recipe, init, data.classes, data.channels)
    check_fit(recipe, model, data)
    preprocess: Preprocess = run_preprocess(recipe, data, init, saved)
    balanced = recipe.loss.class_weights == "balanced"
    weights = balanced_positive_weights(data.train.labels) if balanced else None
    augment = build_augment(recipe, data, preprocess)
    thresholds = choose_thresholds(None, len(data.classes))
    task = MultilabelTask(recipe.loss, weights, augment, thresholds, sampling_weights(recipe, data))
    content = [data.classes, list(data.train.names), data.train.labels.tolist(), data.mean, data.std]
    return TaskSetup(task, model, preprocess, len(data.train.labels), data_digest(content, data.source))
