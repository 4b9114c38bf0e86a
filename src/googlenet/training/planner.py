"""Choose the settings of a training for a data set, a machine and a time: a function of numbers alone.

The rules and their limits come from experiments: docs/finetune.md, "Where the rules come from".
"""

from collections.abc import Mapping
from typing import NamedTuple


class DataFacts(NamedTuple):
    """What the plan depends on: counts of images, classes and channels, and sizes in pixels.

    `smallest_class` and `largest_class` are numbers of training images, `median_side` is the median of the shorter
    sides of some images.
    """

    num_train: int
    num_validation: int
    num_test: int
    num_classes: int
    channels: int
    smallest_class: int
    largest_class: int
    median_side: int


class Network(NamedTuple):
    """A candidate: image size in pixels, and the factor of GoogLeNet's channel counts."""

    size: int
    width_mult: float


class Plan(NamedTuple):
    """The chosen values by recipe key, and five lines that say what was chosen and why."""

    values: dict[str, object]
    lines: tuple[str, ...]


INF = float("inf")

# Candidates by increasing cost of a training step.
LADDER = (
    Network(32, 0.25), Network(32, 0.5), Network(48, 0.5), Network(64, 0.5), Network(96, 0.5), Network(96, 0.75),
    Network(128, 0.75), Network(160, 1.0), Network(224, 1.0),
)  # fmt: skip

# A network is affordable if the time allows this many epochs: of a larger data set fewer are needed. (Images up to
# which the row applies, epochs.)
MIN_EPOCHS = ((1000, 40.0), (5000, 12.0), (20_000, 6.0), (100_000, 3.0), (INF, 1.5))
# Networks above this one need more epochs, by this power of the ratio of their sizes and channels, both squared: a
# longer time should buy both a larger network and more epochs.
REFERENCE, EPOCHS_EXPONENT = Network(96, 0.5), 0.75
# Images larger than the photographs themselves add nothing.
MAX_ENLARGEMENT = 1.25
# Steps per epoch should not be too few: the batch size by the number of training images.
BATCH_SIZES = ((1500, 32), (10_000, 64), (INF, 128))
# The augmentation by the number of epochs: more repetitions need more variation.
CROP_SCALES = ((2.0, 1.0), (8.0, 0.5), (INF, 0.25))
# Classes as different as this in their numbers of images are weighted.
MAX_IMBALANCE = 10.0
# Validations in a run, and its length in epochs if the time is unknown.
NUM_VALIDATIONS = 10


def lookup(table: tuple[tuple[float, float], ...], number: float) -> float:
    """Return the value of the first row whose limit is at least `number`."""
    return next(value for limit, value in table if number <= limit)


def candidates(facts: DataFacts, size: int | None = None, width_mult: float | None = None) -> list[Network]:
    """Return the networks that make sense for images of this size; a given `size` or `width_mult` is kept."""
    sizes = [network for network in LADDER if network.size <= MAX_ENLARGEMENT * facts.median_side] or [LADDER[0]]
    fixed = [network._replace(size=size or network.size, width_mult=width_mult or network.width_mult) for network in
             (LADDER if size else sizes)]  # fmt: skip
    return list(dict.fromkeys(fixed))


def min_epochs(facts: DataFacts, network: Network) -> float:
    """Return the epochs that a network must be able to train."""
    ratio = (network.size * network.width_mult) / (REFERENCE.size * REFERENCE.width_mult)
    factor: float = max(1.0, ratio**2) ** EPOCHS_EXPONENT
    return lookup(MIN_EPOCHS, facts.num_train) * factor


def batch_size_for(facts: DataFacts) -> int:
    """Return the images per step."""
    return int(lookup(BATCH_SIZES, facts.num_train))


def epochs_within(facts: DataFacts, seconds_per_image: float, seconds: float) -> float:
    """Return the epochs that fit into a time, with the evaluation of the held-out images."""
    held_out = facts.num_test + NUM_VALIDATIONS * facts.num_validation
    return max(seconds / seconds_per_image - 0.4 * held_out, 1.0) / facts.num_train


def choose_network(facts: DataFacts, speeds: Mapping[Network, float], seconds: float) -> Network:
    """Return the costliest measured network that can train its `min_epochs`, else the cheapest.

    `speeds` are seconds per training image of each network.
    """
    by_cost = sorted(speeds, key=lambda network: speeds[network])
    affordable = [n for n in by_cost if epochs_within(facts, speeds[n], seconds) >= min_epochs(facts, n)]
    return affordable[-1] if affordable else by_cost[0]


def plan(facts: DataFacts, speeds: Mapping[Network, float], seconds: float) -> Plan:
    """Choose the network, the epochs and the regularization for `seconds` of training."""
    network = choose_network(facts, speeds, seconds)
    epochs = epochs_within(facts, speeds[network], seconds)
    batch_size = batch_size_for(facts)
    crop_scale = lookup(CROP_SCALES, epochs)
    imbalance = facts.largest_class / max(facts.smallest_class, 1)
    weighted = imbalance > MAX_IMBALANCE
    values: dict[str, object] = {
        "size.train": network.size,
        "model.width_mult": network.width_mult,
        "epochs": max(round(epochs, 2), 0.01),
        "eval_every_epochs": round(max(epochs / NUM_VALIDATIONS, 0.01), 3),
        "batch_size": batch_size,
        "augment.min_crop_scale": crop_scale,
        "loss.class_weights": "balanced" if weighted else "none",
    }
    return Plan(values, _explain(facts, speeds, network, epochs, values))


def _explain(
    facts: DataFacts, speeds: Mapping[Network, float], network: Network, epochs: float, values: dict[str, object]
) -> tuple[str, ...]:
    """Return the five lines."""
    needed, held_out = min_epochs(facts, network), facts.num_validation + facts.num_test
    kind = "gray" if facts.channels == 1 else "RGB" if facts.channels == 3 else f"{facts.channels} channels"
    costlier = [other for other in speeds if speeds[other] > speeds[network]]
    if epochs < needed:
        why = f"the smallest, although {needed:.3g} epochs are recommended: give more minutes"
    elif costlier:
        why = f"the largest that can train enough epochs ({needed:.3g} or more)"
    else:
        why = "the largest that suits the size of the images"
    crops = values["augment.min_crop_scale"]
    cropped = "no crops" if crops == 1.0 else f"crops of {crops:.0%} to 100 % of the area"
    weighted = "classes weighted" if values["loss.class_weights"] == "balanced" else "classes not weighted"
    return (
        f"data: {facts.num_train:,} training images ({held_out:,} held out), {facts.num_classes} classes of "
        f"{facts.smallest_class:,} to {facts.largest_class:,}, {kind}, shorter side {facts.median_side} px (median)",
        f"speed: {1 / speeds[network]:,.0f} images/s, measured; {len(speeds)} networks compared",
        f"network: googlenet_bn, {network.size} px, {network.width_mult:g} of the channels: {why}",
        f"training: about {epochs:.3g} epochs in batches of {values['batch_size']} (by the number of images); the "
        "number of steps follows the speed",
        f"regularization: {cropped} (by the number of epochs), {weighted} (largest/smallest class "
        f"{facts.largest_class / max(facts.smallest_class, 1):.1f})",
    )
