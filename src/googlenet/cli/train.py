"""``googlenet train``: train a network from a recipe, or resume an interrupted run."""

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FailedError, InterruptedRunError, NonFiniteLossError
from .common import CommandParser, make_parser, print_result
from .recipe_flags import add_recipe_flags, flag_keys, print_recipe_help, read_recipe_argument

if TYPE_CHECKING:
    from ..config.schema import Recipe
    from ..training.fit import TrainResult
    from ..training.setup import Resume

# In a run folder: what was chosen and why.
PLAN_FILE = "plan.txt"

# The metrics that summarize a run, with their display names.
HEADLINES = {
    "classification": {"top1": "top-1 accuracy"},
    "multilabel": {"map": "mAP", "f1": "macro F1"},
    "detection": {"ap": "AP", "ap50": "AP50"},
}


def run(argv: list[str]) -> None:
    """Parse the arguments, train, and print the result."""
    parser = _make_parser()
    if "-h" in argv or "--help" in argv:
        print_recipe_help(parser)
        return
    started = time.monotonic()
    args, flags = parser.parse_known_args(argv)

    from ..checkpoint.format import RECIPE_FILE, read_run_recipe
    from ..devices import pick_device
    from ..files import write_atomically
    from ..kernels import keep_freed_memory
    from ..training import distributed
    from ..training.fit import fit

    resume_folder = args.resume if args.resume != "auto" else None
    if resume_folder:
        if args.recipe or args.out or args.weights or flags or flag_keys(args, flags):
            parser.error("--resume RUN takes no other arguments: the recipe is in the run folder")
        out, recipe = Path(resume_folder), read_run_recipe(Path(resume_folder))
    else:
        args.data = _as_source(args.data)
        recipe = read_recipe_argument(parser, args, flags, argv)
        out = Path(args.out or f"runs/{Path(args.recipe).stem}-{time.strftime('%Y%m%d-%H%M%S')}")
        if not args.out and (args.resume or distributed.is_distributed_launch()):
            parser.error("name the run folder with --out: every process and every restart needs the same one")
    automatic = args.resume == "auto" or distributed.is_restart()
    resume: Resume = True if resume_folder else ("auto" if automatic else False)
    keep_freed_memory(pick_device(recipe.device).type)
    if args.weights and not recipe.auto_plan:
        parser.error("--weights needs a recipe that plans, such as folder; for others use --model.init_from")
    lines: list[str] = []
    if recipe.auto_plan and resume == "auto" and (out / RECIPE_FILE).is_file():
        recipe = read_run_recipe(out)  # it is planned
    elif recipe.auto_plan:
        recipe, lines = _plan(recipe, args, flag_keys(args, flags), started)
    try:
        result = fit(recipe, out, resume=resume, command=shlex.join(["googlenet", "train", *argv]))
    except (NonFiniteLossError, InterruptedRunError) as error:
        # All processes stop for the same reason; the main one prints it.
        raise error if distributed.is_main_process() else FailedError("") from None
    finally:
        if lines and out.is_dir():
            write_atomically(out / PLAN_FILE, "\n".join(lines) + "\n")
    if not distributed.is_main_process():
        return
    document, summary = summarize(result, HEADLINES[recipe.task])
    print_result(args.json, document | ({"plan": lines} if lines else {}), summary)


def _make_parser() -> CommandParser:
    parser = make_parser(
        "train",
        "Train a network from a recipe; write weights, metrics and a report into a run folder.",
        "googlenet train fashion-mnist-fast --epochs 4 --seed 1 --out runs/longer",
    )
    add_recipe_flags(parser)
    minutes_help = "end after this time (recipe key budget_minutes)"
    parser.add_argument("--minutes", dest="budget_minutes", metavar="N", help=minutes_help)
    parser.add_argument(
        "--weights", metavar="RUN",
        help="with a recipe that plans, such as folder: compare starting from these weights with starting from "
        "scratch, and continue with the better one",
    )  # fmt: skip
    parser.add_argument("--out", metavar="RUN", help="run folder (default: runs/RECIPE-TIME)")
    parser.add_argument(
        "--resume", metavar="RUN",
        help="resume an interrupted run; or auto: resume the run in --out if there is one (implied when torchrun "
        "restarts the processes)",
    )  # fmt: skip
    return parser


def _as_source(data: str | None) -> str | None:
    """Return a data source: the path of a folder stands for folder:PATH."""
    from ..data.sources import SOURCES

    if data is None or data.partition(":")[0] in SOURCES or not Path(data).expanduser().is_dir():
        return data
    return f"folder:{data}"


def _plan(recipe: "Recipe", args: argparse.Namespace, fixed: set[str], started: float) -> tuple["Recipe", list[str]]:
    """Plan a recipe, and print what was chosen and why."""
    from ..training import distributed
    from ..training.own_images import compare_starts, plan_training

    if distributed.is_distributed_launch():
        raise ValueError(
            "planning measures one process: plan without a launcher, then train the run's recipe.yaml with it"
        )
    recipe, plan, facts = plan_training(recipe, fixed, lambda: time.monotonic() - started)
    lines = list(plan.lines)
    print("\n".join(lines), file=sys.stderr, flush=True)
    if args.weights:
        recipe, report = compare_starts(recipe, args.weights, fixed, facts.num_validation)
        print("\n".join(report), file=sys.stderr, flush=True)
        lines += report
    return recipe, lines


def summarize(result: "TrainResult", headline: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Return the JSON document and the lines of a finished run."""
    split = "test" if "test" in result.metrics else "validation"
    final = result.metrics.get(split)
    document = {
        "run": str(result.run), **{key: final.get(key) if final else None for key in headline},
        "split": split if final else None, "seconds": round(result.seconds, 3),
        "images_per_second": round(result.images_per_second, 1), "metrics": result.metrics,
    }  # fmt: skip
    text = ", ".join(f"{label}: {final[key]:.4f}" for key, label in headline.items() if final and key in final)
    return document, [
        f"{split} {text}" if final else "no held-out images: the accuracy was not measured",
        f"training time: {result.seconds:.0f} s ({result.images_per_second:.0f} images/s)",
        f"run: {result.run} (open {result.run / 'report.html'})",
    ]
