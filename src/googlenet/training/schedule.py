"""Learning rate and image size as pure functions of the step."""

import math

import torch

from .recipe import Schedule, Size


def learning_rate_factor(schedule: Schedule, step: float, total: int, per_epoch: int) -> float:
    """What to multiply the peak learning rate by at `step` of `total` (steps count from 0, and may be in between).

    ``step`` and ``exponential`` decay every `schedule.every` epochs, at once or continuously (GoogLeNet:
    x0.96 every 8 epochs); ``cosine`` falls from 1 to the floor along half a cosine; ``one_cycle`` in a
    straight line. Each may be preceded by a linear warm-up over the part `schedule.warmup` of the run.
    """
    rise = schedule.warmup * total
    if step < rise:
        return (step + 1) / (rise + 1)
    epochs = step / per_epoch / schedule.every
    progress = (step - rise) / max(total - rise, 1)
    match schedule.name:
        case "constant":
            return 1.0
        case "step":
            return float(schedule.decay ** math.floor(epochs))
        case "exponential":
            return float(schedule.decay**epochs)
        case "cosine":
            return schedule.floor + (1 - schedule.floor) * 0.5 * (1 + math.cos(math.pi * progress))
        case "one_cycle":
            return 1 - (1 - schedule.floor) * progress


def image_size(size: Size, step: int, total: int, seed: int) -> int:
    """Height and width in pixels of the batch of `step` of `total`."""
    sizes = size.sizes
    match size.kind:
        case "fixed":
            return sizes[0]
        case "progressive":
            return sizes[min(step * len(sizes) // total, len(sizes) - 1)]
        case "random":
            return sizes[_draw(len(sizes), step // size.every, seed)]
        case "progressive_random":
            reached = min(step * len(sizes) // total, len(sizes) - 1) + 1
            return sizes[_draw(reached, step // size.every, seed)]


def _draw(count: int, number: int, seed: int) -> int:
    """One of 0..count-1 by chance, the same for the same `number` and `seed`."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    return int(torch.randint(count, (), generator=generator))
