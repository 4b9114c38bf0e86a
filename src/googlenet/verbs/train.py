"""``googlenet train``: a recipe, or an interrupted run, to a trained network."""

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FailedError, InterruptedRunError, NonFiniteLossError
from .command import VerbParser, answer, verb_parser

if TYPE_CHECKING:
    from ..training.recipe import Recipe


def train(argv: list[str]) -> None:
    """Train as a recipe says."""
    from ..training.checkpoint import load_recipe
    from ..training.recipe_file import list_recipes, recipe_parser

    parser = verb_parser(
        "train",
        "Train as a recipe says; leave weights, metrics and a report in a run folder.\n"
        f"Shipped recipes: {', '.join(list_recipes())}.\n"
        "Any value of the recipe can be replaced by a flag; they are listed below.",
        "googlenet train fashion-mnist-fast --epochs 4 --seed 1 --out runs/longer",
    )
    parser.add_argument("recipe", nargs="?", help="the name of a shipped recipe, or a YAML file")
    parser.add_argument("--out", help="the run folder (default: runs/RECIPE-TIME)")
    parser.add_argument("--resume", metavar="RUN", help="go on with an interrupted run, to the same weights")
    parser.add_argument(
        "--restartable",
        action="store_true",
        help="where --out holds this run already, go on with it; implied when torchrun restarts the processes",
    )
    if "-h" in argv or "--help" in argv:
        print(parser.format_help())
        print(recipe_parser().format_help().partition("\n\n")[2])
        return
    args, flags = parser.parse_known_args(argv)
    if args.resume:
        if args.recipe or args.out or args.restartable or flags:
            parser.error("--resume takes the run folder alone: the recipe is in it")
        out, recipe = Path(args.resume), load_recipe(Path(args.resume))
    else:
        recipe = named_recipe(parser, args.recipe, flags, argv)
        out = Path(args.out or f"runs/{Path(args.recipe).stem}-{time.strftime('%Y%m%d-%H%M%S')}")

    from ..training import processes
    from ..training.loop import fit

    if not (args.out or args.resume) and (args.restartable or processes.launched()):
        parser.error("name the run folder with --out: every process and every restart must find the same one")
    try:
        fitted = fit(
            recipe,
            out,
            resume=bool(args.resume),
            restartable=args.restartable or processes.restarted(),
            command=shlex.join(["googlenet", "train", *argv]),
            progress=True,
        )
    except (NonFiniteLossError, InterruptedRunError) as error:
        # All processes stop for the same reason; one says it.
        raise error if processes.is_main() else FailedError("") from None
    if not processes.is_main():
        return
    name = "test" if "test" in fitted.metrics else "validation"
    final = fitted.metrics.get(name)
    told = HEADLINES[recipe.task]
    document = {
        "run": str(fitted.run),
        **{key: final.get(key) if final else None for key in told},
        "split": name if final else None,
        "seconds": round(fitted.seconds, 3),
        "images_per_second": round(fitted.images_per_second, 1),
        "metrics": fitted.metrics,
    }
    figures = ", ".join(f"{called}: {final[key]:.4f}" for key, called in told.items() if final and key in final)
    answer(
        args.json,
        document,
        [
            f"{name} {figures}" if final else "nothing was held out to measure accuracy on",
            f"training time: {fitted.seconds:.0f} s ({fitted.images_per_second:.0f} images/s)",
            f"run: {fitted.run} (open {fitted.run / 'report.html'})",
        ],
    )


# The figures that a task's run is told by, and what a reader calls them.
HEADLINES = {"classification": {"top1": "top-1 accuracy"}, "detection": {"ap": "AP", "ap50": "AP50"}}


def named_recipe(parser: VerbParser, name: str | None, flags: list[str], argv: list[str]) -> "Recipe":
    """The recipe that the command line names, with the flags that it has for it."""
    from ..training.recipe_file import list_recipes, read_recipe

    if not name:
        parser.error("name a recipe: " + ", ".join(list_recipes()))
    if flags and argv.index(flags[0]) < argv.index(name):
        parser.error("name the recipe first, then the flags that change it")
    read_recipe(name)
    try:
        return read_recipe(name, flags)
    except ValueError as error:
        parser.error(str(error))
