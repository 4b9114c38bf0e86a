"""The interface between `fit` and a task such as classification or detection."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from ...config.schema import Recipe
from ...data.augment import Augment
from ...data.calibration import Calibration
from ...data.dataset import COLUMN_OPTIONS, LoadOptions
from ...data.loader import BatchSpec
from ...data.preprocess import Preprocess, storage_size
from ...data.random_view import full_image_size, uses_views
from ...evaluation.report import ReportInfo
from .. import distributed


class LossOutput(NamedTuple):
    """The `loss` to differentiate and the number of correct predictions; both scalars on the device."""

    loss: Tensor
    correct: Tensor


class Task(Protocol):
    """A kind of problem: batches, loss, predictions, metrics and report.

    A split is whatever the task's data set has; it is false if it is empty.
    """

    @property
    def monitor(self) -> str:
        """The validation metric that early stopping maximizes."""

    @property
    def headline_metrics(self) -> dict[str, str]:
        """The metrics shown during training, with their display names."""

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The probabilities from which an image has a label, one per class; empty unless images have several labels."""

    def with_thresholds(self, validation: Any) -> "Task":
        """Return the task with thresholds chosen on predictions of the validation images, None without any."""

    def batch(self, train: Any, preprocess: Preprocess, spec: BatchSpec) -> Any:
        """Return the training batch of `spec`; its `num_images` is the number of images."""

    def loss(self, model: Any, batch: Any) -> LossOutput:
        """Compute the training loss of a batch."""

    def predict(self, model: Any, split: Any, preprocess: Preprocess) -> Any:
        """Run the network on every image of `split`.

        Every process of the run calls it: each evaluates its share and returns the predictions of all, in order.
        """

    def compute_metrics(self, predictions: Any) -> dict[str, float]:
        """Compute the metrics of such predictions; rates are fractions 0..1."""

    def clean_batches(self, train: Any, preprocess: Preprocess, recipe: Recipe) -> Iterator[Tensor]:
        """Yield training images without augmentation, at the evaluation size, for `precise_bn`."""

    def calibration(self, split: Any, preprocess: Preprocess) -> Calibration | None:
        """Select images of `split` to compare precisions on; None if the task has no such comparison."""

    def report(self, info: ReportInfo, split: Any, predictions: Any) -> str:
        """Render the run's report (HTML); `predictions` are those of `split`, None without held-out images."""


class TaskSetup(NamedTuple):
    """What a task contributes to a run; `data_digest` identifies the images, so it is not resumed with others."""

    task: Task
    model: nn.Module
    preprocess: Preprocess
    num_images: int
    data_digest: str


class LossModule(nn.Module):
    """A network with its loss, as the one module that is distributed, autocast and compiled."""

    def __init__(self, task: Task, model: nn.Module):
        super().__init__()
        self.task, self.model = task, model

    def forward(self, batch: Any) -> LossOutput:
        """Compute the task's loss on a batch."""
        return self.task.loss(self.model, batch)


def load_options(recipe: Recipe) -> LoadOptions:
    """Return how to load the recipe's images."""
    data = recipe.data
    size = storage_size(recipe.stored_size, data.crop_mode, data.crop_pct or 1.0)
    # Images that are held out after the data set is loaded are decoded with all others.
    is_resplit = data.num_folds is not None or data.group_column is not None or recipe.task == "multilabel"
    is_augmented = uses_views(Augment(**vars(recipe.augment)))
    full_size = max(size, full_image_size(max(recipe.size.sizes), recipe.augment.min_crop_scale))
    return LoadOptions(
        root=data.root, validation=data.val_split, size=size,
        crop_mode=data.crop_mode, interpolation=data.interpolation or "bilinear", max_value=data.max_value,
        channels=data.channels, on_error=data.on_error, max_samples=data.max_samples, seed=recipe.split_seed,
        in_memory=data.in_memory, num_workers=data.num_workers, full_size=full_size if is_augmented else None,
        check=is_resplit,
        group_column=data.group_column, num_folds=data.num_folds, fold=data.fold,
        **{name: getattr(data, name) for name in COLUMN_OPTIONS},
    )  # fmt: skip


def data_digest(content: Any, source: str) -> str:
    """Return a digest of training data (as for JSON); ValueError if the processes of a run see different data."""
    digest = hashlib.sha256()
    for chunk in json.JSONEncoder().iterencode(content):  # in pieces: the text has the names of all images
        digest.update(chunk.encode())
    distributed.check_same_data(digest.hexdigest(), source)
    return digest.hexdigest()
