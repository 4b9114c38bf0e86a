"""``googlenet evaluate``: a trained network's figures, at one picture size or several."""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .command import add_sizes, answer, chosen_sizes, verb_parser, whole_numbers
from .data_of_run import data_of_run, few, split_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..data.dataset import Dataset
    from ..training.checkpoint import Checkpoint


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
    parser.add_argument(
        "--crops",
        type=whole_numbers,
        metavar="1,10,144",
        help="crops of each picture as in ILSVRC14, averaged; 1 is the run's own square",
    )
    parser.add_argument(
        "--with", dest="others", nargs="+", default=[], metavar="RUN", help="more networks, answering with this one"
    )
    parser.add_argument(
        "--average", choices=["probability", "logit", "max"], default="probability",
        help="of what the crops' and the networks' answers are one (default: probability, as in the paper)",
    )  # fmt: skip
    parser.add_argument(
        "--reestimate",
        type=int,
        metavar="N",
        help="with --size or --sizes: average batch normalisation's statistics anew for each size, over N batches of "
        "training pictures (0: all of them)",
    )
    parser.add_argument("--out", metavar="DIR", help="where the plot of --sizes goes (default: the run's folder)")
    parser.add_argument("--limit", type=int, metavar="N", help="at most so many pictures")
    args = parser.parse_args(argv)
    if args.out and not args.sizes:
        parser.error("--out is for the plot of --sizes")
    if args.limit is not None and args.limit < 1:
        parser.error("--limit must be 1 or more")
    if args.reestimate is not None and (args.crops or args.others):
        parser.error("--reestimate goes with --size or --sizes alone")
    if args.reestimate is not None and args.reestimate < 0:
        parser.error("--reestimate must be 0 or more")
    if args.crops and not set(args.crops) <= {1, 10, 144}:
        parser.error("--crops takes 1, 10 and 144")
    if args.crops and (args.sizes or args.flip):
        parser.error("--crops are of the paper's scales and mirrored: leave --sizes and --flip off")
    if args.others and args.sizes:
        parser.error("--with goes with --size or --crops")

    from ..evaluation.metrics import per_class_accuracy, scores
    from ..evaluation.scales import answer_at_sizes, average, best_row, check_sizes, plot, size_row, table
    from ..files import write_atomically
    from ..training.checkpoint import load
    from ..training.devices import pick_device

    checkpoint = load(args.run)
    if args.crops or args.others:
        _by_protocol(args, [checkpoint, *map(load, args.others)])
        return
    sizes = chosen_sizes(args, checkpoint.preprocess.size)
    check_sizes(checkpoint.model, sizes)
    picture = _plot_file(args) if args.sizes else None
    stored = max(*sizes, checkpoint.recipe.stored_size)
    data = data_of_run(checkpoint, stored, source=args.data, root=args.root, limit=args.limit)
    name, split = split_of(data, args.split)
    device = pick_device("auto")
    model = checkpoint.model.to(device)
    fit_to = None if args.reestimate is None else _norms_for(checkpoint, data, args.reestimate)
    answers = list(answer_at_sizes(model, split, checkpoint.preprocess, sizes, flip=args.flip, fit_to=fit_to))
    outputs = average([answer.outputs for answer in answers]) if args.sizes else answers[0].outputs
    figures = scores(outputs)
    per_class = dict(zip(checkpoint.classes, per_class_accuracy(outputs), strict=True))
    document = {**figures, "split": name, "flip": args.flip, "reestimate": args.reestimate, "per_class": per_class}
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


def _norms_for(checkpoint: "Checkpoint", data: "Dataset", batches: int) -> "Callable[[int], None]":
    """What fits the network's batch normalisation to a size, from training pictures as they are."""
    from ..training.norms import plain_batches, reestimate

    recipe = replace(checkpoint.recipe, reestimate_norm=batches)

    def fit_to(size: int) -> None:
        like = replace(checkpoint.preprocess, size=size)
        reestimate(checkpoint.network, plain_batches(recipe, data.train, like))

    return fit_to


def _by_protocol(args: argparse.Namespace, checkpoints: "list[Checkpoint]") -> None:
    """The paper's table: one network and all of them, by the number of crops."""
    from ..data.loader import evaluation_batches
    from ..evaluation.metrics import Outputs, collect, per_class_accuracy
    from ..evaluation.protocol import Member, cell, combine, crop_outputs, layout
    from ..evaluation.scales import check_sizes
    from ..training.devices import pick_device

    for path, other in zip(args.others, checkpoints[1:], strict=True):
        if other.classes != checkpoints[0].classes:
            raise ValueError(
                f"{path} knows the classes {few(other.classes)}, {args.run} {few(checkpoints[0].classes)}"
            )
    device = pick_device("auto")
    answers: dict[int, list[Outputs]] = {}
    name = ""
    for number, checkpoint in enumerate(checkpoints, start=1):
        preprocess = checkpoint.preprocess
        base = preprocess.size if args.size is None else args.size
        check_sizes(checkpoint.model, [base])
        member = Member(checkpoint.model.to(device).eval(), preprocess)
        # The pictures are those of the first run's split, made as this network wants them.
        like = replace(checkpoints[0], preprocess=preprocess)
        data = data_of_run(like, base, source=args.data, root=args.root, limit=args.limit, whole=bool(args.crops))
        name, split = split_of(data, args.split)
        for crops in args.crops or [1]:
            print(f"network {number} of {len(checkpoints)}, {crops} crops", file=sys.stderr)
            if crops == 1:
                batches = evaluation_batches(split, preprocess, base)
                found = collect(member.model, batches, device)
            else:
                found = crop_outputs(member, split, base, crops, args.average)
            answers.setdefault(crops, []).append(found)
    cells, last = [], answers[max(answers)][0]
    for crops, each in sorted(answers.items()):
        last = each[0]
        cells.append(cell(1, crops, last))
        if len(each) > 1:
            last = Outputs(combine([one.logits for one in each], args.average), last.labels)
            cells.append(cell(len(each), crops, last))
    final = cells[-1]
    per_class = dict(zip(checkpoints[0].classes, per_class_accuracy(last), strict=True))
    document = {
        "top1": final.top1,
        "top5": final.top5,
        "loss": final.loss,
        "images": len(last.labels),
        "split": name,
        "average": args.average,
        "table": [{**each._asdict(), "interval": list(each.interval)} for each in cells],
        "per_class": per_class,
    }
    answer(args.json, document, [f"{name}, {len(last.labels):,} pictures", *layout(cells)])


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
