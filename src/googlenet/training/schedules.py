"""Learning rate and image size as pure functions of the step."""

import math

import torch

from ..config.schema import ScheduleConfig, SizeConfig


def learning_rate_factor(schedule: ScheduleConfig, step: float, total: int, per_epoch: int) -> float:
    """Return the factor of the peak learning rate at `step` of `total`; steps count from 0.

    ``step`` and ``exponential`` multiply by `gamma` every `step_epochs` epochs, at once or continuously (GoogLeNet:
    0.96 every 8 epochs); ``cosine`` and ``linear`` decrease from 1 to `min_lr_factor`. All may start with a linear
    warm-up over `warmup_fraction` of the run.
    """
    warmup_steps = schedule.warmup_fraction * total
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    decays = step / per_epoch / schedule.step_epochs
    progress = (step - warmup_steps) / max(total - warmup_steps, 1)
    match schedule.name:
        case "constant":
            return 1.0
        case "step":
            return float(schedule.gamma ** math.floor(decays))
        case "exponential":
            return float(schedule.gamma**decays)
        case "cosine":
            return schedule.min_lr_factor + (1 - schedule.min_lr_factor) * 0.5 * (1 + math.cos(math.pi * progress))
        case "linear":
            return 1 - (1 - schedule.min_lr_factor) * progress


def image_size(size: SizeConfig, step: int, total: int, seed: int) -> int:
    """Return the height and width in pixels of the images of `step` of `total`."""
    sizes = size.sizes
    match size.schedule:
        case "fixed":
            return sizes[0]
        case "progressive":
            return sizes[min(step * len(sizes) // total, len(sizes) - 1)]
        case "random":
            return sizes[_draw(len(sizes), step // size.change_every_n_steps, seed)]
        case "progressive_random":
            available = min(step * len(sizes) // total, len(sizes) - 1) + 1
            return sizes[_draw(available, step // size.change_every_n_steps, seed)]


def _draw(count: int, index: int, seed: int) -> int:
    """Return a random integer in 0..count-1, a function of `index` and `seed`."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
    return int(torch.randint(count, (), generator=generator))
