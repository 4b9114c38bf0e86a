"""Which tasks a recipe can name. A task's file is named here and imported when it is first needed: detection stands
on the training, not the training on it."""

import importlib
from typing import Any, Protocol, cast

from torch import nn

from .recipe import Recipe
from .task import Ingredients

HOMES = {
    "classification": "googlenet.training.prepare",
    "detection": "googlenet.detection.task",
    "rcnn": "googlenet.detection.region_task",
}


class Home(Protocol):
    """What a task's file offers."""

    def load(self, recipe: Recipe) -> Any:
        """The data set: `train`, `validation`, `test`, `classes`, `skipped`; ``to(device)`` brings it to a device."""
        ...

    def ingredients(self, recipe: Recipe, data: Any, start: Any, state: dict[str, Any] | None) -> Ingredients:
        """The task, and the network from `start` or anew, checked to fit together; ValueError where they do not."""
        ...

    def build_model(self, recipe: Recipe, num_classes: int, in_channels: int) -> nn.Module:
        """The recipe's network, its weights drawn from the recipe's seed."""
        ...


def home(recipe: Recipe) -> Home:
    """The file of the recipe's task."""
    by_regions = recipe.task == "detection" and recipe.detection.head == "rcnn"
    return cast(Home, importlib.import_module(HOMES["rcnn" if by_regions else recipe.task]))
