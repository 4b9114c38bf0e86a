"""What a network has learned and what its parts do: the answers of ``googlenet explain`` that need no picture."""

import statistics
from functools import partial

import numpy as np
import torch

from ..insight import charts, depth, filters, gradients, paths, units
from ..insight.page import Picture
from ..insight.stages import stages
from ..models.catalogue import create
from ..training.checkpoint import build_model
from .asked import Asked, Found

# Of the fresh networks whose gradients are measured.
BATCH, STEPS = 32, 20
INITS = {"truncated_normal": "He", "xavier": "Xavier"}


def filters_answer(asked: Asked) -> Found:
    """The first layer's filters and their Gabor functions, beside the same of shuffled filters."""
    weights = filters.first_filters(asked.model)
    fits, chance = filters.fit_filters(weights), filters.fit_filters(filters.shuffled(weights))
    middle, by_chance = (statistics.median(fit.residual for fit in each) for each in (fits, chance))
    count, channels, height, width = weights.shape
    figures = {
        "filters": [{**fit.gabor._asdict(), "colour": list(fit.colour), "residual": fit.residual} for fit in fits],
        "residual_median": middle,
        "residual_median_shuffled": by_chance,
    }
    lines = [
        f"{count} filters of {height}x{width} over {channels} channel{'s' if channels > 1 else ''}: median residual "
        f"{middle:.3f}; the same numbers in random order {by_chance:.3f}",
        f"{sum(fit.residual < 0.2 for fit in fits)} of {count} have a residual under 0.2; "
        f"of those in random order {sum(fit.residual < 0.2 for fit in chance)}",
    ]
    if height * width < filters.ENOUGH:
        lines.append(f"{height * width} numbers a channel are too few for a function of 8 parameters to miss")
    picture = Picture(
        "filters.png",
        charts.draw_filters(weights, fits, chance),
        "The first layer's filters and their Gabor functions.",
    )
    return Found("The first layer's filters, and the Gabor functions closest to them", figures, [picture], lines)


def paths_answer(asked: Asked) -> Found:
    """Every path's share of its block's activation, and the accuracy lost without it."""
    name, split = asked.split
    found = paths.contributions(asked.model, asked.batches(split))
    worst = sorted(found.rows, key=lambda row: -row.lost)[:3]
    lines = [f"{name}, {found.images:,} pictures: top-1 {found.top1:.4f} with every path"]
    lines.append(f"{'block':<16}{'path':<12}{'channels':>9}{'share':>8}{'lost':>9}{'(se)':>9}")
    lines += [
        f"{r.block:<16}{r.path:<12}{r.channels:>9}{r.share:>8.3f}{r.lost:>9.4f}{r.error:>9.4f}" for r in found.rows
    ]
    lines.append("most is lost without " + ", ".join(f"{r.block} {r.path} ({r.lost:.3f})" for r in worst))
    figures = {
        "split": name, "images": found.images, "top1": found.top1, "rows": [row._asdict() for row in found.rows],
    }  # fmt: skip
    picture = Picture(
        "paths.png", charts.draw_paths(found), "Each path's part of the activation, and what is lost without it."
    )
    return Found("What each path contributes", figures, [picture], lines)


def depth_answer(asked: Asked) -> Found:
    """Linear probes of every layer, and the network's own heads."""
    name, split = asked.split
    fit = asked.data.train
    if name == "train":
        # Never the pictures that the probes are asked about.
        half = len(split.labels) // 2
        fit, split = split.part(0, half), split.part(half, None)
    classes = len(asked.checkpoint.classes)
    fresh = build_model(asked.checkpoint.recipe, classes, asked.checkpoint.preprocess.channels)
    rows, untrained = (
        depth.probes(
            depth.pooled_features(model, asked.batches(fit)),
            depth.pooled_features(model, asked.batches(split)),
            classes,
        )
        for model in (asked.model, fresh.to(asked.device).eval())
    )
    heads = depth.heads_top1(asked.model, asked.batches(split))
    guess = torch.bincount(split.labels, minlength=classes).max().item() / len(split.labels)
    lines = [
        f"{name}, {len(split.labels):,} pictures; probes fitted on {len(fit.labels):,} training pictures; "
        f"the commonest class {guess:.3f}"
    ]
    lines.append(f"{'probe on':<20}{'features':>9}{'top-1':>9}{'untrained':>11}")
    lines += [
        f"{row.layer:<20}{row.features:>9}{row.top1:>9.4f}{other.top1:>11.4f}"
        for row, other in zip(rows, untrained, strict=True)
    ]
    lines += [f"own head {row.head:<20}{row.top1:>9.4f}" for row in heads]
    if len(heads) == 1:
        lines.append("the run has no auxiliary heads: the probes stand for them")
    figures = {
        "split": name, "images": len(split.labels), "fitted_on": len(fit.labels), "commonest": guess,
        "probes": [row._asdict() for row in rows],
        "untrained": [row._asdict() for row in untrained], "heads": [row._asdict() for row in heads],
    }  # fmt: skip
    picture = Picture("depth.png", charts.draw_depth(rows, untrained, heads, guess), "Accuracy by depth.")
    return Found("What depth buys", figures, [picture], lines)


def gradients_answer(asked: Asked) -> Found:
    """Gradients by depth of fresh networks: the plain GoogLeNet with and without heads, and the run's own."""
    train, preprocess, seed = asked.data.train, asked.checkpoint.preprocess, asked.checkpoint.recipe.seed
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(seed))
    plan = [rows for rows in torch.split(order, BATCH)[: STEPS + 1] if len(rows) > 1]
    batches = [
        (preprocess(pixels, asked.size), train.labels[rows])
        for rows, pixels in zip(plan, train.pixels(plan), strict=True)
    ]
    own = asked.checkpoint.recipe.model
    pools = "ceil" if asked.size >= 31 else "padded"
    variant = {"pools": pools, "width": own.width or 1.0, "stem_stride": own.stem_stride or 4}
    classes, channels = len(asked.checkpoint.classes), preprocess.channels
    networks = {}
    for init in ("truncated_normal", "xavier"):
        for aux in (False, True):
            label = f"googlenet, {INITS[init]}{', side heads' if aux else ''}"
            networks[label] = partial(create, "googlenet", classes, channels, aux, init=init, seed=seed, **variant)
    networks[f"{own.name}, as the run's"] = partial(build_model, asked.checkpoint.recipe, classes, channels)
    found = {name: gradients.train_and_measure(build, batches) for name, build in networks.items()}
    after = f"after {len(batches) - 1} steps"
    lines = [
        "length of the gradient / of the weights, at the first and the last layer:",
        f"{'':<40}{'before the first step':>24}{after:>24}{'loss':>8}",
    ]
    for name, moments in found.items():
        ends = "".join(f"{f'{m.relative[0]:.4f}  {m.relative[-1]:.4f}':>24}" for m in (moments[0], moments[-1]))
        lines.append(f"{name:<40}{ends}{moments[-1].loss:>8.3f}")
    lines.append(f"fresh networks; SGD 0.01, momentum 0.9, batches of {len(plan[0])}")
    figures = [{"network": name, **moment._asdict()} for name, moments in found.items() for moment in moments]
    picture = Picture(
        "gradients.png", charts.draw_gradients(found), "Gradients by depth, with and without auxiliary heads."
    )
    return Found("Gradients by depth", figures, [picture], lines)


def units_answer(asked: Asked) -> Found:
    """A layer's correlations, clustered, beside those of independent units."""
    name, split = asked.split
    layer = asked.args.stage or stages(asked.model)[len(stages(asked.model)) // 2]
    activity = units.correlations(units.layer_samples(asked.model, layer, asked.batches(split)))
    found = units.cluster(activity.matrix)
    noise = units.cluster(units.independent(len(activity.units), min(activity.samples, 5000)), len(found.sizes))
    classes, channels = len(asked.checkpoint.classes), asked.checkpoint.preprocess.channels
    model = build_model(asked.checkpoint.recipe, classes, channels)
    before = units.correlations(units.layer_samples(model.to(asked.device).eval(), layer, asked.batches(split)))
    untrained = units.cluster(before.matrix, len(found.sizes))
    figures = {
        "split": name, "layer": layer, "units": len(activity.units), "dead": activity.dead,
        "samples": activity.samples, "blocks": found.sizes, "held": found.held, "by_chance": found.by_chance,
        "independent": {"held": noise.held, "by_chance": noise.by_chance},
        "untrained": {"units": len(before.units), "held": untrained.held, "by_chance": untrained.by_chance},
        "order": [activity.units[place] for place in found.order],
    }  # fmt: skip
    lines = [
        f"{layer}: {len(activity.units)} units at {activity.samples:,} positions of {name}",
        f"{len(found.sizes)} blocks of {min(found.sizes)} to {max(found.sizes)} units hold {found.held:.3f} of the "
        f"squared correlation, {found.held / found.by_chance:.2f} times as much as in a random order "
        f"({found.by_chance:.3f})",
        *(
            f"{what}: {other.held:.3f}, {other.held / other.by_chance:.2f} times as much"
            for what, other in (
                ("the network before training", untrained),
                ("independent units, clustered alike", noise),
            )
        ),
    ]
    if activity.dead:
        lines.append(f"{activity.dead} units never change and are left out")
    pixels = next(iter(asked.batches(split)))[0][:2].to(asked.device)
    stops = np.cumsum([0, *(widths := paths.path_widths(asked.model, layer, pixels)).values()])
    alive = np.diff(np.searchsorted(activity.units, stops)).tolist()
    picture = Picture(
        "units.png",
        charts.draw_units(activity.matrix, found, layer, dict(zip(widths, alive, strict=True))),
        f"Correlations of the units of {layer}.",
    )
    return Found("Which units go together", figures, [picture], lines)
