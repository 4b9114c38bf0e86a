"""The tasks that a recipe can name, and the module of each.

A new task is one module with the functions of `TaskModule` and one line in `TASKS`. Modules are imported when they are
first needed.
"""

import importlib
from typing import Any, Protocol, cast

from torch import nn

from .schema import Recipe

TASKS: dict[str, str] = {
    "classification": "googlenet.training.tasks.classification",
    "multilabel": "googlenet.training.tasks.multilabel",
    "detection": "googlenet.detection.task",
    "rcnn": "googlenet.detection.rcnn.task",
}


class TaskModule(Protocol):
    """The functions of a task's module."""

    def load_data(self, recipe: Recipe) -> Any:
        """Load the data set: `train`, `validation`, `test`, `classes`, `accounting`, and ``to(device)``."""

    def build_task(self, recipe: Recipe, data: Any, init: Any, saved: dict[str, Any] | None) -> Any:
        """Return the `training.tasks.base.TaskSetup` of a run.

        `init` is the checkpoint that the run starts from and `saved` the training state that it resumes from; either
        or both are None. Raises ValueError if recipe, data and weights do not fit together.
        """

    def build_model(self, recipe: Recipe, num_classes: int, in_channels: int) -> nn.Module:
        """Build the recipe's network with initial weights from the recipe's seed."""


def get_task_module(recipe: Recipe) -> TaskModule:
    """Import the module of the recipe's task; R-CNN is a task of its own."""
    name = "rcnn" if recipe.task == "detection" and recipe.detection.head == "rcnn" else recipe.task
    return cast(TaskModule, importlib.import_module(TASKS[name]))
