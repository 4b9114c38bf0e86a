"""``googlenet tune``: search for better recipe values within a time."""

import argparse
import csv
import io
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import make_parser, positive_int, print_result
from .recipe_flags import add_recipe_flags, print_recipe_help, read_recipe_argument

if TYPE_CHECKING:
    from ..training.tune import Limits, TrialRow

DEFAULT_MINUTES = 60.0
PLOT_FILE, TABLE_FILE = "tune.png", "trials.csv"


def run(argv: list[str]) -> None:
    """Parse the arguments, search, and print the table of trials."""
    parser = make_parser(
        "tune",
        "Search for better values of a recipe: train with other values and compare on the validation images.\n"
        "The first trial is the recipe itself; the test images are not used.",
        "googlenet tune folder-finetune --data folder:PHOTOS --model.init_from RUN --minutes 60",
    )
    add_recipe_flags(parser)
    parser.add_argument(
        "--search", action="append", default=[], metavar="KEY=VALUES",
        help="search this recipe key in LOW..HIGH, or among A,B,C (repeatable; default: learning rate, weight decay, "
        "label smoothing, crops and flips)",
    )  # fmt: skip
    parser.add_argument("--minutes", type=float, metavar="N", help="end after this time (default: 60)")
    parser.add_argument("--trials", type=positive_int, metavar="N", help="end after this number of trials")
    parser.add_argument("--out", metavar="DIR", help="folder of the search (default: runs/tune-RECIPE-TIME)")
    parser.add_argument("--resume", metavar="DIR", help="continue a search, also one that has ended, with more minutes")
    if "-h" in argv or "--help" in argv:
        print_recipe_help(parser)
        return
    args, flags = parser.parse_known_args(argv)

    from ..devices import pick_device
    from ..kernels import keep_freed_memory
    from ..training import distributed
    from ..training.tune import run_search, trial_recipe

    if distributed.is_distributed_launch():
        parser.error("trials run one after another in one process: start it without a launcher")
    if args.minutes is not None and not 0 < args.minutes < float("inf"):
        parser.error(f"--minutes must be above 0, not {args.minutes:g}")
    if args.resume:
        if args.recipe or args.out or flags or args.search:
            parser.error("--resume DIR takes --minutes and --trials only: recipe and search are in the folder")
        folder = Path(args.resume)
        limits = _resumed_limits(args, folder)
    else:
        folder, limits = _create(parser, args, flags, argv)
    keep_freed_memory(pick_device(trial_recipe(folder, {}).device).type)
    rows = run_search(folder, limits)
    print_result(args.json, *_summarize(folder, rows))


def _create(parser: Any, args: argparse.Namespace, flags: list[str], argv: list[str]) -> tuple[Path, "Limits"]:
    """Create the folder of a new search."""
    from ..training.tune import Limits, create_search
    from ..training.tune_space import default_search, parse_search

    recipe = read_recipe_argument(parser, args, flags, argv)
    try:
        search = parse_search(args.search, recipe) or default_search(recipe)
    except ValueError as error:
        parser.error(str(error))
    minutes = DEFAULT_MINUTES if args.minutes is None and args.trials is None else args.minutes
    limits = Limits(None if minutes is None else 60 * minutes, args.trials)
    folder = Path(args.out or f"runs/tune-{Path(args.recipe).stem}-{time.strftime('%Y%m%d-%H%M%S')}")
    create_search(recipe, search, folder, limits)
    return folder, limits


def _resumed_limits(args: argparse.Namespace, folder: Path) -> "Limits":
    """Return the limits of the arguments, else those that the search was started with."""
    from ..training.tune import Limits, read_search

    _, limits = read_search(folder)
    if args.minutes is None and args.trials is None:
        return limits
    return Limits(None if args.minutes is None else 60 * args.minutes, args.trials)


def _summarize(folder: Path, rows: list["TrialRow"]) -> tuple[dict[str, Any], list[str]]:
    """Write the plot and the table; return the JSON document and the lines."""
    from ..evaluation.plots import draw_search
    from ..files import write_atomically
    from ..training.tune import BEST_FILE, read_search, recipe_values, trial_recipe

    search, _ = read_search(folder)
    keys = list(search)
    table = [{**row._asdict(), "values": recipe_values(trial_recipe(folder, row.values), keys)} for row in rows]
    write_atomically(folder / PLOT_FILE, draw_search(table, keys))
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["trial", "state", "validation", "seconds", *keys, "note"])
    for row in table:
        writer.writerow(
            [row["number"], row["state"], row["value"], row["seconds"], *row["values"].values(), row["note"]]
        )
    write_atomically(folder / TABLE_FILE, buffer.getvalue())
    document = {"folder": str(folder), "best_recipe": str(folder / BEST_FILE), "trials": table}
    widths = [max(len(key), 8) for key in keys]
    head = "  ".join(f"{key:>{width}}" for key, width in zip(keys, widths, strict=True))
    lines = [f"{'trial':>5}  {'state':<8}  {'validation':>10}  {'seconds':>7}  {head}"]
    for row in table:
        cells = "  ".join(f"{_cell(row['values'][key]):>{width}}" for key, width in zip(keys, widths, strict=True))
        value = "-" if row["value"] is None else f"{row['value']:.4f}"
        state = f"{row['number']:>5}  {row['state']:<8}  {value:>10}  {row['seconds']:>7.0f}  {cells}"
        lines.append(state + (f"  ({row['note']})" if row["note"] else ""))
    lines.append(
        f"best recipe: {folder / BEST_FILE} (googlenet train {folder / BEST_FILE}); plot: {folder / PLOT_FILE}"
    )
    return document, lines


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
