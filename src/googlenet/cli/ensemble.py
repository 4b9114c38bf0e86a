"""``googlenet ensemble``: train several networks of one recipe whose predictions are averaged."""

import argparse
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .common import make_parser, print_result
from .recipe_flags import add_recipe_flags, print_recipe_help, read_recipe_argument

if TYPE_CHECKING:
    from ..training.ensemble import EnsembleResult


def run(argv: list[str]) -> None:
    """Parse the arguments, train the members, and print the result."""
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
    parser.add_argument("--out", metavar="DIR", help="ensemble folder (default: runs/RECIPE-ensemble-TIME)")
    parser.add_argument("--resume", metavar="DIR", help="resume an interrupted ensemble")
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
    from ..training.ensemble import LAST_WIDTH_MULT, NUM_MODELS, create_ensemble, train_ensemble

    if distributed.is_distributed_launch():
        parser.error("members are trained one after another by one process: start it without a launcher")
    if args.resume:
        if args.recipe or args.out or flags or args.num_models is not None or args.last_width_mult is not None:
            parser.error("--resume DIR takes no other arguments: the recipe is in the folder")
        folder = Path(args.resume)
        EnsembleInfo.read(folder)
    else:
        num_models = NUM_MODELS if args.num_models is None else args.num_models
        width = {None: LAST_WIDTH_MULT, "none": None}.get(args.last_width_mult, args.last_width_mult)
        recipe = read_recipe_argument(parser, args, flags, argv)
        folder = Path(args.out or f"runs/{Path(args.recipe).stem}-ensemble-{time.strftime('%Y%m%d-%H%M%S')}")
        create_ensemble(recipe, folder, num_models, width)
    keep_freed_memory(pick_device(read_run_recipe(folder).device).type)
    result = train_ensemble(folder, command=shlex.join(["googlenet", "ensemble", *argv]))
    print_result(args.json, *_summarize(result))


def _summarize(result: "EnsembleResult") -> tuple[dict[str, Any], list[str]]:
    """Return the JSON document and the lines of a trained ensemble."""
    split = "test" if "test" in result.metrics else "validation"
    final = result.metrics.get(split)
    members = [
        {
            "run": str(member.run), "seed": member.seed, "width_mult": member.width_mult,
            "top1": member.metrics[split]["top1"] if final else None, "seconds": round(member.seconds, 3),
        }
        for member in result.members
    ]  # fmt: skip
    document = {
        "run": str(result.folder), "top1": final["top1"] if final else None, "split": split if final else None,
        "seconds": round(sum(member.seconds for member in result.members), 3), "metrics": result.metrics,
        "members": members,
    }  # fmt: skip
    lines = [
        f"{row['run']}: "
        + (f"{split} top-1 {row['top1']:.4f}" if final else "trained")
        + f", {row['seconds']:.0f} s"
        + (f", width factor {row['width_mult']:g}" if row["width_mult"] not in (None, 1.0) else "")
        for row in members
    ]
    total = f"average of {len(members)}: {split} top-1 {final['top1']:.4f}" if final else "accuracy not measured"
    return document, [*lines, total, f"ensemble: {result.folder}"]


def _width(text: str) -> float | Literal["none"]:
    """Parse a width factor such as "1.25", or "none"."""
    try:
        return "none" if text == "none" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number such as 1.25, or none, not {text!r}") from None
