"""The steps of a run: which images each step uses, at which size and learning rate.

Everything is a function of the recipe, the number of training images and the step number, so a resumed run continues
with the same steps. With a time budget it is also a function of the changes of the number of steps, which the run
folder records; see `time_budget`.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from ..config.schema import Recipe
from ..data.batch_slice import split_step
from ..data.loader import SampleRange, UpcomingBatch, sample_range, steps_per_epoch
from .schedules import image_size, learning_rate_factor


class Replan(NamedTuple):
    """A change of the number of steps: from `step` on, the run has `total_steps`."""

    step: int
    total_steps: int


class StepSchedule(NamedTuple):
    """All steps of a run: `planned_steps` in `epochs` passes over `num_images` images, changed by `replans`."""

    recipe: Recipe
    num_images: int
    epochs: float
    planned_steps: int
    steps_per_epoch: int
    replans: tuple[Replan, ...] = ()

    @property
    def total_steps(self) -> int:
        """The number of steps by the last replan."""
        return self.replans[-1].total_steps if self.replans else self.planned_steps

    def position(self, step: float) -> float:
        """Return the step of the plan that `step` corresponds to, from 0 to `planned_steps`.

        A replan distributes the rest of the plan evenly over the steps that are left, so nothing jumps.
        """
        start, reached, total = 0, 0.0, self.planned_steps
        for replan in self.replans:
            if replan.step > step:
                break
            reached += (self.planned_steps - reached) * (replan.step - start) / (total - start)
            start, total = replan
        if not start:
            return step
        return reached + (self.planned_steps - reached) * (step - start) / max(total - start, 1)

    def samples(self, step: int) -> SampleRange:
        """Return the images of `step`, which counts from 0."""
        return sample_range(self.num_images, self.recipe.batch_size, step)

    def image_size(self, step: int) -> int:
        """Return the height and width in pixels of the images of `step`, which counts from 0; the log counts from 1."""
        return image_size(self.recipe.size, int(self.position(step)), self.planned_steps, self.recipe.seed)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of `step`, before each parameter group's `lr_scale`."""
        position = self.position(step)
        factor = learning_rate_factor(self.recipe.schedule, position, self.planned_steps, self.steps_per_epoch)
        return self.recipe.optimizer.lr * factor

    def microbatches(self, step: int, rank: int, world_size: int) -> Iterator[UpcomingBatch]:
        """Yield what process `rank` reads from `step` on, micro-batch by micro-batch."""
        for number in range(step, self.total_steps):
            samples = self.samples(number)
            for part in split_step(samples.num_images, self.recipe.grad_accum_steps, rank, world_size):
                yield UpcomingBatch(samples, part, self.image_size(number))

    @property
    def eval_every_steps(self) -> int:
        """Steps between two validations; `min_steps` stretches the interval together with the run."""
        return max(1, round(self.recipe.eval_every_epochs * self.planned_steps / self.recipe.epochs))

    def images_seen(self, steps: int) -> int:
        """Return the number of images in the first `steps` steps."""
        passes, rest = divmod(steps, self.steps_per_epoch)
        batch_size = self.recipe.batch_size
        return passes * min(self.num_images, self.steps_per_epoch * batch_size) + rest * batch_size


def build_step_schedule(recipe: Recipe, num_images: int) -> StepSchedule:
    """Lay out the steps of `recipe` over `num_images` training images.

    If `recipe.min_steps` exceeds the steps of its epochs, the smallest sufficient whole number of epochs is used.
    """
    per_epoch = steps_per_epoch(num_images, recipe.batch_size)
    epochs = max(recipe.epochs, math.ceil(recipe.min_steps / per_epoch))
    return StepSchedule(recipe, num_images, epochs, max(1, round(epochs * per_epoch)), per_epoch)
