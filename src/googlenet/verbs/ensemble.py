"""``googlenet ensemble``: several networks of one recipe, trained to answer as one."""

import argparse
import shlex
import time
from pathlib import Path
from typing import Literal

from .command import answer, verb_parser
from .train import named_recipe


def ensemble(argv: list[str]) -> None:
    """Train several networks that answer as one."""
    from ..training.recipe_file import list_recipes, recipe_parser

    parser = verb_parser(
        "ensemble train",
        "Train several networks of one recipe, as ILSVRC14's seven: the same initial weights, another order and\n"
        "other random changes of the pictures, the last one wider. predict and evaluate take the folder like a run.\n"
        f"Shipped recipes: {', '.join(list_recipes())}.\n"
        "Any value of the recipe can be replaced by a flag; googlenet train --help lists them.",
        "googlenet ensemble train fashion-mnist-fast --members 7 --out runs/seven",
    )
    parser.add_argument("recipe", nargs="?", help="the name of a shipped recipe, or a YAML file")
    parser.add_argument("--members", type=int, metavar="N", help="networks to train (default: 7)")
    parser.add_argument(
        "--wider", type=_times, metavar="X", help="channels of the last one, times; or none (default: 1.25)"
    )
    parser.add_argument("--out", metavar="DIR", help="the ensemble's folder (default: runs/RECIPE-ensemble-TIME)")
    parser.add_argument("--resume", metavar="DIR", help="go on with an interrupted ensemble, to the same weights")
    if "-h" in argv or "--help" in argv:
        print(parser.format_help())
        print(recipe_parser().format_help().partition("\n\n")[2])
        return
    # argparse would give the optional recipe away before it has seen the flags that stand between.
    if argv[:1] != ["train"]:
        parser.error("what to do with an ensemble is to train it: googlenet ensemble train RECIPE")
    args, flags = parser.parse_known_args(argv[1:])

    from ..training import processes
    from ..training.ensemble import MEMBERS, WIDER, start_ensemble, train_ensemble

    if processes.launched():
        parser.error("members are trained one after the other by one process: start it without a launcher")
    members = MEMBERS if args.members is None else args.members
    wider = {None: WIDER, "none": None}.get(args.wider, args.wider)
    if args.resume:
        if args.recipe or args.out or flags or args.members is not None or args.wider is not None:
            parser.error("--resume takes the folder alone: the recipe is in it")
        out = Path(args.resume)
    else:
        recipe = named_recipe(parser, args.recipe, flags, argv)
        out = Path(args.out or f"runs/{Path(args.recipe).stem}-ensemble-{time.strftime('%Y%m%d-%H%M%S')}")
        start_ensemble(recipe, out, members, wider)
    fitted = train_ensemble(out, command=shlex.join(["googlenet", "ensemble", *argv]))
    name = "test" if "test" in fitted.metrics else "validation"
    final = fitted.metrics.get(name)
    rows = [
        {
            "run": str(member.run),
            "seed": member.seed,
            "width": member.width,
            "top1": member.metrics[name]["top1"] if final else None,
            "seconds": round(member.seconds, 3),
        }
        for member in fitted.members
    ]
    document = {
        "ensemble": str(out),
        "top1": final["top1"] if final else None,
        "split": name if final else None,
        "seconds": round(sum(member.seconds for member in fitted.members), 3),
        "metrics": fitted.metrics,
        "members": rows,
    }
    lines = [
        f"{row['run']}: " + (f"{name} top-1 {row['top1']:.4f}" if final else "trained")
        + f", {row['seconds']:.0f} s" + (f", width {row['width']:g}" if row["width"] not in (None, 1.0) else "")
        for row in rows
    ]  # fmt: skip
    lines.append(
        f"all {len(rows)} together: {name} top-1 {final['top1']:.4f}"
        if final
        else "nothing was held out to measure accuracy on"
    )
    answer(args.json, document, [*lines, f"ensemble: {out}"])


def _times(text: str) -> float | Literal["none"]:
    """ "1.25" -> 1.25, for an argument's type."""
    try:
        return "none" if text == "none" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a number such as 1.25, or none, not {text!r}") from None
