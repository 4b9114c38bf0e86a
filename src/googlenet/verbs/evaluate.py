"""``googlenet evaluate``: a trained network's figures, at one picture size or several."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .command import add_sizes, answer, chosen_sizes, verb_parser

if TYPE_CHECKING:
    from ..data.dataset import Dataset, Split


def evaluate(argv: list[str]) -> None:
    """Measure a run."""
    parser = verb_parser(
        "evaluate",
        "Measure a trained network, at one picture size or at several and averaged over them.",
        "googlenet evaluate runs/demo --sizes 24,28,32 --split validation",
    )
    parser.add_argument(
        "run", help="a run folder, a .safetensors file, or published weights such as torchvision:googlenet"
    )
    parser.add_argument(
        "--data", metavar="SOURCE", help="fashion-mnist, folder:PATH or shards:PATH (default: the run's own)"
    )
    parser.add_argument("--root", help="where the data lies, looked at first")
    parser.add_argument("--split", choices=["test", "validation", "train"], help="default: test where there is one")
    add_sizes(parser)
    parser.add_argument("--out", metavar="DIR", help="where the plot of --sizes goes (default: the run's folder)")
    parser.add_argument("--limit", type=int, metavar="N", help="at most so many pictures")
    args = parser.parse_args(argv)
    if args.out and not args.sizes:
        parser.error("--out is for the plot of --sizes")
    if args.limit is not None and args.limit < 1:
        parser.error("--limit must be 1 or more")

    from ..data.sources import absolute_source, load_dataset
    from ..evaluation.metrics import per_class_accuracy, scores
    from ..evaluation.scales import answer_at_sizes, average, best_row, check_sizes, plot, size_row, table
    from ..files import write_atomically
    from ..training.checkpoint import load
    from ..training.devices import pick_device

    checkpoint = load(args.run)
    sizes = chosen_sizes(args, checkpoint.preprocess.size)
    check_sizes(checkpoint.model, sizes)
    picture = _plot_file(args) if args.sizes else None
    options = checkpoint.recipe.data
    source = absolute_source(args.data or options.source, args.root)
    data = load_dataset(
        source,
        root=args.root or options.root,
        validation=options.validation if source == options.source else 0,
        size=max(*sizes, checkpoint.recipe.stored_size),
        fit=checkpoint.preprocess.fit,
        channels=checkpoint.preprocess.channels,
        unreadable=options.unreadable,
        limit=args.limit or (options.limit if source == options.source else None),
        seed=checkpoint.recipe.seed,
        resident=options.resident,
        workers=options.workers,
    )
    for skipped in data.skipped:
        print(f"skipped: {skipped}", file=sys.stderr)
    if data.classes != checkpoint.classes:
        raise ValueError(
            f"{source} has the classes {_few(data.classes)}, the network knows {_few(checkpoint.classes)}"
        )
    name, split = _split(data, args.split)
    device = pick_device("auto")
    model = checkpoint.model.to(device)
    answers = list(answer_at_sizes(model, split, checkpoint.preprocess, sizes, flip=args.flip))
    outputs = average([answer.outputs for answer in answers]) if args.sizes else answers[0].outputs
    figures = scores(outputs)
    per_class = dict(zip(checkpoint.classes, per_class_accuracy(outputs), strict=True))
    document = {**figures, "split": name, "flip": args.flip, "per_class": per_class}
    mirrored = ", each with its mirror image" if args.flip else ""
    at = f"{', '.join(map(str, sizes))} px{mirrored}"
    lines = [f"{name}, {figures['images']:,} pictures at {at}"]
    if args.sizes:
        rows = [size_row(model, answer, flip=args.flip) for answer in answers]
        mean = {key: figures[key] for key in ("top1", "top5", "loss")}
        document |= {"sizes": sizes, "rows": [row._asdict() for row in rows]}
        document["average"] = {**mean, "best_size": best_row(rows).size}
        lines += table(rows, mean)
        if picture:
            title = f"{args.run}: {name}, {figures['images']:,} pictures{mirrored}"
            write_atomically(picture, plot(rows, mean, title))
            lines.append(f"plot: {picture}")
        document["plot"] = str(picture) if picture else None
    else:
        document["size"] = sizes[0]
        lines.append(f"top-1 {figures['top1']:.4f}   top-5 {figures['top5']:.4f}   loss {figures['loss']:.4f}")
    lines += [f"  {label:<20}{value:.4f}" for label, value in per_class.items() if value is not None]
    answer(args.json, document, lines)


def _plot_file(args: argparse.Namespace) -> Path | None:
    """Where the plot goes; None for weights in a file of their own, unless `--out` says where."""
    if not args.out and not Path(args.run).is_dir():
        return None
    folder = Path(args.out or args.run)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: a file; name a folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{folder}: you may not write there; name another folder with --out")
    return folder / "sizes.png"


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _split(data: "Dataset", name: str | None) -> "tuple[str, Split]":
    for candidate in [name] if name else ["test", "validation", "train"]:
        if getattr(data, candidate):
            return candidate, getattr(data, candidate)
    raise ValueError(f"{data.source} has no {name} pictures")
