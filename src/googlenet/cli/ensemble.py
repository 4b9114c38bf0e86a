"""``googlenet ensemble``: train several networks of one recipe whose predictions are averaged."""

import argparse
import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .common import CommandParser, make_parser, positive_int, print_result
from .recipe_flags import add_recipe_flags, print_recipe_help, read_recipe_argument

if TYPE_CHECKING:
    from ..training.ensemble import EnsembleResult


def run(argv: list[str]) -> None:
    """Parse the arguments, train the members, and print the result."""
    parser = _make_parser()
    if "-h" in argv or "--help" in argv:
        print_recipe_help(parser)
        return
    # argparse would assign the optional recipe before it has seen the flags in front of it.
    if argv[:1] != ["train"]:
        parser.error("missing action: googlenet ensemble train RECIPE")
    args, flags = parser.parse_known_args(argv[1:])

    from ..checkpoint.ensemble import EnsembleInfo
    from ..checkpoint.format import read_run_recipe
    from ..devices import pick_device
    from ..kernels import keep_freed_memory
    from ..training import distributed
    from ..training.ensemble import (
        LAST_WIDTH_MULT,
        NUM_MODELS,
        create_cross_validation,
        create_ensemble,
        train_ensemble,
    )

    if distributed.is_distributed_launch():
        parser.error("members are trained one after another by one process: start it without a launcher")
    own = ("num_models", "last_width_mult", "folds", "group", "repeats")
    if args.folds and (args.num_models is not None or args.last_width_mult is not None):
        parser.error("--folds trains one network per fold: leave out --num-models and --last-width-mult")
    if not args.folds and not args.resume and (args.group or args.repeats):
        parser.error("--group and --repeats require --folds N")
    if args.resume:
        if args.recipe or args.out or flags or any(getattr(args, name) is not None for name in own):
            parser.error("--resume DIR takes no other arguments: the recipe is in the folder")
        folder = Path(args.resume)
        EnsembleInfo.read(folder)
    else:
        num_models = NUM_MODELS if args.num_models is None else args.num_models
        width = {None: LAST_WIDTH_MULT, "none": None}.get(args.last_width_mult, args.last_width_mult)
        recipe = read_recipe_argument(parser, args, flags, argv)
        folder = Path(args.out or f"runs/{Path(args.recipe).stem}-ensemble-{time.strftime('%Y%m%d-%H%M%S')}")
        if args.folds:
            if args.group:
                recipe = replace(recipe, data=replace(recipe.data, group_column=args.group))
            create_cross_validation(recipe, folder, args.folds, args.repeats or 1)
        else:
            create_ensemble(recipe, folder, num_models, width)
    keep_freed_memory(pick_device(read_run_recipe(folder).device).type)
    result = train_ensemble(folder, command=shlex.join(["googlenet", "ensemble", *argv]))
    print_result(args.json, *(_summarize(result) if result.folds is None else _summarize_folds(result)))


def _make_parser() -> CommandParser:
    parser = make_parser(
        "ensemble train",
        "Train several networks of one recipe as in ILSVRC14: the same initial weights, another order and other\n"
        "augmentation of the images, the last network wider. predict and evaluate take the folder like a run.",
        "googlenet ensemble train fashion-mnist-fast --num-models 7 --out runs/seven",
    )
    add_recipe_flags(parser)
    parser.add_argument("--num-models", type=int, metavar="N", help="networks to train (default: 7)")
    width_help = "width factor of the last network, or none to make it like the others (default: 1.25)"
    parser.add_argument("--last-width-mult", type=_width, metavar="X", help=width_help)
    parser.add_argument(
        "--folds", type=positive_int, metavar="N",
        help="cross-validation: train one network per fold of the training and validation images, and predict each "
        "image by the network that was not trained on it; the networks are an ensemble",
    )  # fmt: skip
    parser.add_argument("--group", metavar="COLUMN", help="with --folds: images of equal value stay in one fold")
    parser.add_argument("--repeats", type=positive_int, metavar="N", help="with --folds: times, with other folds")
    parser.add_argument("--out", metavar="DIR", help="ensemble folder (default: runs/RECIPE-ensemble-TIME)")
    parser.add_argument("--resume", metavar="DIR", help="resume an interrupted ensemble")
    return parser


def _summarize(result: "EnsembleResult") -> tuple[dict[str, Any], list[str]]:
    """Return the JSON document and the lines of a trained ensemble."""
    split = "test" if "test" in result.metrics else "validation"
    final = result.metrics.get(split)
    key, title = ("map", "mAP") if final and "map" in final else ("top1", "top-1")
    members = [
        {
            "run": str(member.run), "seed": member.seed, "width_mult": member.width_mult,
            key: member.metrics[split][key] if final else None, "seconds": round(member.seconds, 3),
        }
        for member in result.members
    ]  # fmt: skip
    document = {
        "run": str(result.folder), key: final[key] if final else None, "split": split if final else None,
        "seconds": round(sum(member.seconds for member in result.members), 3), "metrics": result.metrics,
        "members": members,
    }  # fmt: skip
    lines = [
        f"{row['run']}: "
        + (f"{split} {title} {row[key]:.4f}" if final else "trained")
        + f", {row['seconds']:.0f} s"
        + (f", width factor {row['width_mult']:g}" if row["width_mult"] not in (None, 1.0) else "")
        for row in members
    ]
    total = f"average of {len(members)}: {split} {title} {final[key]:.4f}" if final else "accuracy not measured"
    return document, [*lines, total, f"ensemble: {result.folder}"]


# The metrics of the folds that are printed, with their display names.
FOLD_COLUMNS = {
    "map": "mAP", "top1": "top-1", "precision": "precision", "recall": "recall", "f1": "F1", "auroc": "AUROC",
    "average_precision": "AP", "loss": "loss",
}  # fmt: skip


def _summarize_folds(result: "EnsembleResult") -> tuple[dict[str, Any], list[str]]:
    """Return the JSON document and the lines of a cross-validation."""
    from ..training.cross_validation import OUT_OF_FOLD_FILE, mean_and_deviation

    assert result.folds is not None
    summary, table = mean_and_deviation(result.folds), result.folder / OUT_OF_FOLD_FILE
    document = {
        "run": str(result.folder), "folds": result.folds, "mean": {key: mean for key, (mean, _) in summary.items()},
        "sd": {key: deviation for key, (_, deviation) in summary.items()}, "metrics": result.metrics,
        "predictions": str(table), "seconds": round(sum(member.seconds for member in result.members), 3),
        "members": [{"run": str(member.run), "seed": member.seed} for member in result.members],
    }  # fmt: skip
    columns = {key: title for key, title in FOLD_COLUMNS.items() if key in summary}
    lines = [f"{'':<12}{'images':>8}" + "".join(f"{title:>11}" for title in columns.values())]
    lines += [
        f"{member.run.name:<12}{row['images']:>8}" + "".join(f"{row[key]:>11.4f}" for key in columns)
        for member, row in zip(result.members, result.folds, strict=True)
    ]
    lines += [
        f"{title:<20}" + "".join(f"{summary[key][index]:>11.4f}" for key in columns)
        for index, title in enumerate(("mean", "sd"))
    ]
    if test := result.metrics.get("test"):
        key, title = ("map", "mAP") if "map" in test else ("top1", "top-1 accuracy")
        lines.append(f"average of the {len(result.members)} networks on the test images: {title} {test[key]:.4f}")
    return document, [*lines, f"out-of-fold predictions: {table}", f"ensemble: {result.folder}"]


def _width(text: str) -> float | Literal["none"]:
    """Parse a width factor such as "1.25", or "none"."""
    try:
        return "none" if text == "none" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number such as 1.25, or none, not {text!r}") from None
