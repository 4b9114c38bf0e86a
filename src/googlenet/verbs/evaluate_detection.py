"""``googlenet evaluate`` for a network that finds objects: COCO's figures."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from .command import answer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..detection.dataset import Picture
    from ..detection.rcnn import RegionDetector
    from ..training.checkpoint import Checkpoint

# Arguments of the verb that ask about classification.
NOT_HERE = ("flip", "shift", "crops", "calibrate", "reestimate", "out", "engine", "threads")


def wrong_argument(args: argparse.Namespace) -> str | None:
    """What was asked for that detection has not."""
    asked = [name for name in NOT_HERE if getattr(args, name, None) not in (None, False, [])]
    if not asked:
        return None
    return f"--{asked[0]} is for classification, and this run finds objects"


def evaluate_detection(args: argparse.Namespace, checkpoint: "Checkpoint") -> None:
    """The boxes of a split's pictures, at one size or merged from several, against COCO's measures."""
    from ..detection.task import Finding
    from ..training.devices import pick_device

    recipe = checkpoint.recipe
    sizes = tuple(args.sizes or ([args.size] if args.size else recipe.detection.sizes or (recipe.test_size,)))
    name, split = pictures_of(checkpoint, args.data, args.root, args.split, args.limit)
    model = _together(args, checkpoint) if args.others else checkpoint.model.to(pick_device("auto"))
    task = Finding(recipe.loss, checkpoint.classes, sizes)
    answers = task.score(model, split, checkpoint.preprocess)
    figures = task.figures(answers)
    document: dict[str, Any] = {
        **figures,
        "split": name,
        "networks": 1 + len(args.others),
        "sizes": list(sizes),
        "per_class": {one.label: one._asdict() for one in answers.scores.per_class},
    }
    seen = "regions of" if recipe.detection.head == "rcnn" else "longer side"
    lines = [f"{name}, {len(split):,} pictures, {seen} {', '.join(map(str, sizes))} px"]
    lines.append("   ".join(f"{called} {figures[key]:.4f}" for key, called in SHOWN if key in figures))
    lines += [
        f"  {one.label:<20}AP {one.ap:.4f}   AP50 {one.ap50:.4f}   {one.objects:,} objects"
        for one in answers.scores.per_class
        if one.ap is not None
    ]
    answer(args.json, document, lines)


def _together(args: argparse.Namespace, checkpoint: "Checkpoint") -> "RegionDetector":
    """Several runs of R-CNN, whose answers to each region are averaged."""
    from ..detection.rcnn import RegionDetector, RegionNetwork
    from ..training.checkpoint import load
    from ..training.devices import pick_device

    every = [checkpoint, *(load(path, task="detection") for path in args.others)]
    for path, one in zip([args.run, *args.others], every, strict=True):
        if not isinstance(one.model, RegionNetwork):
            raise ValueError(f"{path} is no R-CNN: --with averages what R-CNNs say of the same regions")
        if (one.classes, one.preprocess) != (checkpoint.classes, checkpoint.preprocess):
            raise ValueError(f"{path} knows other classes than {args.run}, or sees regions made in another way")
    device = pick_device("auto")
    return RegionDetector.of([one.model.to(device) for one in every], checkpoint.preprocess)


SHOWN = (
    ("ap", "AP"), ("ap50", "AP50"), ("ap75", "AP75"), ("ap_small", "small"), ("ap_medium", "medium"),
    ("ap_large", "large"), ("recall", "recall"),
)  # fmt: skip


def pictures_of(
    checkpoint: "Checkpoint",
    source: str | None = None,
    root: str | None = None,
    name: str | None = None,
    limit: int | None = None,
) -> "tuple[str, Sequence[Picture]]":
    """A split of the run's own pictures, or of `source`, with its name: `name`, else test, validation or train.

    ValueError where the classes are not the network's. What is wrong with the source is told on standard error.
    """
    from ..data.sources import absolute_source
    from ..detection.sources import load_detection
    from .data_of_run import few

    options = checkpoint.recipe.data
    wanted = absolute_source(source or options.source, root)
    own = wanted == options.source
    data = load_detection(
        wanted,
        root=root or options.root,
        validation=options.validation if own else 0,
        channels=checkpoint.preprocess.channels,
        unreadable=options.unreadable,
        limit=limit or (options.limit if own else None),
        seed=checkpoint.recipe.split_seed,
    )
    for skipped in data.skipped:
        print(f"{wanted}: {skipped}", file=sys.stderr)
    if data.classes != checkpoint.classes:
        raise ValueError(f"{wanted} has the classes {few(data.classes)}, the network knows {few(checkpoint.classes)}")
    for candidate in [name] if name else ["test", "validation", "train"]:
        if len(getattr(data, candidate)):
            return candidate, getattr(data, candidate)
    raise ValueError(f"{wanted} has no {name or 'such'} pictures")
