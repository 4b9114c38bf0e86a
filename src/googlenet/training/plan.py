"""A run's steps, laid out before the first: which pictures each sees, at which size, how far the run has come.

With batches of a fixed size, step n is a function of n. Where smaller pictures come in larger batches
(``size.batch: constant_memory``) the steps before it say where a step starts, so the whole list is made at once; it
is a function of the recipe and the number of pictures, and a resumed run makes the same one.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from ..data.loader import Turn, fixed_turn, steps_per_epoch
from ..data.rows import Rows, rows_of_step
from .recipe import Recipe
from .schedule import image_size, learning_rate_factor


class Planned(NamedTuple):
    """One step: its pictures, their `size` in pixels, and the `progress` of the run before it, in steps of the
    recipe's batch size."""

    turn: Turn
    size: int
    progress: float


class Plan(NamedTuple):
    """All steps of a run.

    `total` steps in `epochs` passes over the `pictures`. `nominal` is the length of a pass in steps of the recipe's
    batch size; learning rate and size go by it, so that they are functions of the pictures seen. `steps` is None
    where every batch has the recipe's size.
    """

    recipe: Recipe
    pictures: int
    epochs: float
    total: int
    nominal: int
    steps: tuple[Planned, ...] | None

    def at(self, step: int) -> Planned:
        """What step `step`, counted from 0, sees."""
        if self.steps is not None:
            return self.steps[step]
        size = image_size(self.recipe.size, step, self.total, self.recipe.seed)
        return Planned(fixed_turn(self.pictures, self.recipe.batch_size, step), size, step)

    def pieces(self, step: int, process: int, processes: int) -> Iterator[tuple[Turn, Rows]]:
        """What `process` of `processes` asks for from `step` on: of each micro-batch the pictures and its rows."""
        for number in range(step, self.total):
            turn = self.at(number).turn
            for rows in rows_of_step(turn.stop - turn.start, self.recipe.accumulate, process, processes):
                yield turn, rows

    def learning_rate(self, step: int) -> float:
        """The learning rate of step `step`."""
        length = round(self.epochs * self.nominal)
        factor = learning_rate_factor(self.recipe.schedule, self.at(step).progress, length, self.nominal)
        return self.recipe.optimiser.lr * factor

    @property
    def per_epoch(self) -> float:
        """Steps in a pass over the pictures, on average."""
        return self.total / self.epochs

    @property
    def validate_every(self) -> int:
        """Steps from one validation to the next: a stretched run is validated as often as it would have been."""
        return max(1, round(self.recipe.validate_every * self.total / self.recipe.epochs))

    def images(self, steps: int) -> int:
        """Pictures that the first `steps` steps see together."""
        if self.steps is not None:
            return sum(step.turn.stop - step.turn.start for step in self.steps[:steps])
        passes, rest = divmod(steps, self.nominal)
        batch_size = self.recipe.batch_size
        return passes * min(self.pictures, self.nominal * batch_size) + rest * batch_size


def plan_run(recipe: Recipe, count: int) -> Plan:
    """The steps of `recipe` over `count` training pictures.

    Where `recipe.min_steps` are more than its epochs have, there are as many whole epochs as make them up.
    """
    nominal = steps_per_epoch(count, recipe.batch_size)
    least = math.ceil(recipe.min_steps / nominal)
    epochs = recipe.epochs if recipe.epochs >= least else least
    if recipe.size.batch == "fixed":
        return Plan(recipe, count, epochs, max(1, round(epochs * nominal)), nominal, None)
    whole = int(epochs)
    steps = tuple(step for epoch in range(whole) for step in _epoch(recipe, count, epoch, whole, nominal))
    return Plan(recipe, count, whole, len(steps), nominal, steps)


def batch_at(recipe: Recipe, size: int) -> int:
    """Pictures a step at `size`: `batch_size` of the largest training size, as many pixels of any other."""
    return recipe.batch_size * max(recipe.size.sizes) ** 2 // size**2


def _epoch(recipe: Recipe, count: int, epoch: int, epochs: int, nominal: int) -> list[Planned]:
    """The steps of one pass. A remainder of one picture is left out, as in `steps_per_epoch`."""
    steps: list[Planned] = []
    start = 0
    while start < count - (1 if count > 1 else 0):
        progress = epoch * nominal + min(start / recipe.batch_size, nominal - 1)
        size = image_size(recipe.size, int(progress), epochs * nominal, recipe.seed)
        stop = min(start + batch_at(recipe, size), count)
        steps.append(Planned(Turn(epoch, start, stop), size, progress))
        start = stop
    return steps
