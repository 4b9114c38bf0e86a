"""``googlenet evaluate``: a trained network's figures, at one picture size, at several, or as ILSVRC14 asked."""

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .asked_run import add_engine, asked_run
from .command import VerbParser, add_sizes, answer, chosen_sizes, verb_parser, whole_numbers
from .data_of_run import data_of_run, split_of
from .evaluate_detection import evaluate_detection, wrong_argument
from .protocol import by_protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..data.dataset import Dataset
    from ..evaluation.metrics import Outputs
    from ..training.checkpoint import Checkpoint


def evaluate(argv: list[str]) -> None:
    """Measure a run."""
    parser = verb_parser(
        "evaluate",
        "Measure a trained network or an ensemble: at one picture size, at several and averaged over them, or in\n"
        "the crops of ILSVRC14.",
        "googlenet evaluate runs/demo --sizes 24,28,32 --split validation",
    )
    parser.add_argument(
        "run",
        help="a run, ensemble or exported folder, a .safetensors file, or published weights such as "
        "torchvision:googlenet",
    )
    parser.add_argument(
        "--data",
        metavar="SOURCE",
        help="fashion-mnist, folder:PATH, imagenet:PATH or shards:PATH (default: the run's own)",
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
        "--with", dest="others", nargs="+", default=[], metavar="RUN",
        help="more networks: each is compared with this one, and all answer together",
    )  # fmt: skip
    parser.add_argument(
        "--average", choices=["probability", "logit", "max"], default="probability",
        help="of what the crops' and the networks' answers are one (default: probability, as in the paper)",
    )  # fmt: skip
    parser.add_argument(
        "--calibrate", action="store_true",
        help="fit a temperature to the validation part, say what it does to the test part's probabilities, draw both",
    )  # fmt: skip
    parser.add_argument(
        "--reestimate",
        type=int,
        metavar="N",
        help="with --size or --sizes: average batch normalisation's statistics anew for each size, over N batches of "
        "training pictures (0: all of them)",
    )
    parser.add_argument(
        "--out", metavar="DIR", help="where the plots of --sizes and --calibrate go (default: the run's folder)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="at most so many pictures")
    add_engine(parser)
    args = parser.parse_args(argv)
    _check_usage(parser, args)

    from ..deployment.asked import Asked
    from ..training.checkpoint import load

    checkpoint = asked_run(args.run, args.engine, args.threads)
    if isinstance(checkpoint.model, Asked) and (args.sizes or args.crops or args.others):
        raise ValueError(f"{args.run}: an exported folder is measured at one --size; name its run for more")
    if checkpoint.recipe.task == "detection":
        if wrong := wrong_argument(args):
            parser.error(wrong)
        evaluate_detection(args, checkpoint)
    elif args.crops or args.others:
        by_protocol(args, [checkpoint, *(load(other, task="classification") for other in args.others)])
    else:
        _at_sizes(args, checkpoint)


def _check_usage(parser: VerbParser, args: argparse.Namespace) -> None:
    for wrong, said in (
        (args.out and not (args.sizes or args.calibrate), "--out is for the plots of --sizes and --calibrate"),
        (args.limit is not None and args.limit < 1, "--limit must be 1 or more"),
        (args.reestimate is not None and (args.crops or args.others),
         "--reestimate goes with --size or --sizes alone"),
        (args.reestimate is not None and args.reestimate < 0, "--reestimate must be 0 or more"),
        (args.engine and (args.sizes or args.crops or args.others or args.reestimate is not None),
         "--engine goes with --size: leave --sizes, --crops, --with and --reestimate off"),
        (args.crops and not set(args.crops) <= {1, 10, 144}, "--crops takes 1, 10 and 144"),
        (args.crops and (args.sizes or args.flip or args.shift),
         "--crops are of the paper's scales and mirrored: leave --sizes, --shift and --flip off"),
        (args.others and (args.sizes or args.flip or args.shift), "--with goes with --size or --crops"),
        (args.calibrate and (args.crops or args.others),
         "--calibrate is for one run or ensemble folder, at --size or --sizes: leave --crops and --with off"),
        (args.calibrate and args.split == "validation",
         "--calibrate fits to the validation part: measure on another, with --split test"),
    ):  # fmt: skip
        if wrong:
            parser.error(said)


def _at_sizes(args: argparse.Namespace, checkpoint: "Checkpoint") -> None:
    """The network's own square, at one size or averaged over several."""
    from ..evaluation.figures import figures
    from ..evaluation.progress import Progress
    from ..evaluation.scales import answer_at_sizes, average, best_row, check_sizes, plot, size_row, table
    from ..files import write_atomically
    from ..training.devices import pick_device

    sizes = chosen_sizes(args, checkpoint.preprocess.size)
    check_sizes(checkpoint.model, sizes, args.shift)
    plots = _plot_folder(args) if args.sizes or args.calibrate else None
    stored = max(*sizes, checkpoint.recipe.stored_size)
    data = data_of_run(checkpoint, stored, source=args.data, root=args.root, limit=args.limit)
    name, split = split_of(data, args.split)
    if args.calibrate:
        _check_validation(data, name)
    model = checkpoint.model.to(pick_device("auto"))
    fit_to = None if args.reestimate is None else _norms_for(checkpoint, data, args.reestimate)
    parts = {name: split, **({"validation": data.validation} if args.calibrate else {})}
    with Progress(sum(len(part.labels) * size**2 for part in parts.values() for size in sizes)) as progress:

        def answers_to(part: str) -> Any:
            progress.at(part)
            asked = answer_at_sizes(
                model, parts[part], checkpoint.preprocess, sizes,
                flip=args.flip, shift=args.shift, fit_to=fit_to, advance=progress.advance,
            )  # fmt: skip
            each = list(asked)
            return each, average([one.outputs for one in each]) if args.sizes else each[0].outputs

        answers, outputs = answers_to(name)
        held = answers_to("validation")[1] if args.calibrate else None
    found = figures(outputs, checkpoint.classes)
    document = {**found, "split": name, "flip": args.flip, "shift": args.shift, "reestimate": args.reestimate}
    views = f", each also moved by {args.shift} px" if args.shift else ""
    views += ", each with its mirror image" if args.flip else ""
    about = f"{name}, {found['images']:,} pictures"
    lines = [f"{about} at {', '.join(map(str, sizes))} px{views}"]
    if args.sizes:
        rows = [size_row(model, one, flip=args.flip, shift=args.shift) for one in answers]
        mean = {key: found[key] for key in ("top1", "top5", "loss")}
        document |= {"sizes": sizes, "rows": [row._asdict() for row in rows]}
        document["average"] = {**mean, "best_size": best_row(rows).size}
        lines += table(rows, mean)
        document["plot"] = None
        if plots:
            picture = plots / "sizes.png"
            write_atomically(picture, plot(rows, mean, f"{args.run}: {about}{views}"))
            document["plot"] = str(picture)
            lines.append(f"plot: {picture}")
    else:
        document["size"] = sizes[0]
        low, high = found["interval"]
        lines += [
            f"top-1 {found['top1']:.4f}   top-5 {found['top5']:.4f}   loss {found['loss']:.4f}",
            f"95 % interval of top-1: {low:.4f} to {high:.4f}   calibration error (ECE) {found['ece']:.4f}",
        ]
    if held:
        document["calibration"], said = _calibrated(args.run, about, held, outputs, plots)
        lines += said
    lines += [f"  {label:<20}{value:.4f}" for label, value in found["per_class"].items() if value is not None]
    answer(args.json, document, lines)


def _check_validation(data: "Dataset", name: str) -> None:
    """ValueError unless there is something to fit a temperature to that is not measured on."""
    if not data.validation:
        raise ValueError(
            f"{data.source} has no validation part to fit a temperature to: train with one, such as "
            "--data.validation 5000"
        )
    if name == "validation":
        raise ValueError(
            f"{data.source} has no test part: --calibrate fits to the one part and measures on the other"
        )


def _calibrated(
    run: str, about: str, held: "Outputs", outputs: "Outputs", plots: Path | None
) -> tuple[dict[str, Any], list[str]]:
    """The temperature fitted to the answers `held` and what it does to `outputs`: for the document and in lines."""
    from ..evaluation.calibration import calibrate, plot
    from ..files import write_atomically

    found = calibrate(held, outputs)
    document = {
        **found._asdict(),
        "bins": [bin._asdict() for bin in found.bins],
        "bins_after": [bin._asdict() for bin in found.bins_after],
        "fitted_to": len(held.labels),
        "plot": None,
    }
    lines = [
        f"temperature {found.temperature:.4f}, fitted to {len(held.labels):,} validation pictures: "
        f"ECE {found.ece:.4f} -> {found.ece_after:.4f}, loss {found.loss:.4f} -> {found.loss_after:.4f}"
    ]
    if plots:
        picture = plots / "reliability.png"
        write_atomically(picture, plot(found, f"{run}: {about}"))
        document["plot"] = str(picture)
        lines.append(f"reliability diagram: {picture}")
    return document, lines


def _norms_for(checkpoint: "Checkpoint", data: "Dataset", batches: int) -> "Callable[[int], None]":
    """What fits the network's batch normalisation to a size, from training pictures as they are."""
    from ..training.norms import plain_batches, reestimate

    recipe = replace(checkpoint.recipe, reestimate_norm=batches)

    def fit_to(size: int) -> None:
        like = replace(checkpoint.preprocess, size=size)
        reestimate(checkpoint.network, plain_batches(recipe, data.train, like))

    return fit_to


def _plot_folder(args: argparse.Namespace) -> Path | None:
    """Where plots go; None for weights in a file of their own, unless `--out` says where."""
    if not args.out and not Path(args.run).is_dir():
        return None
    folder = Path(args.out or args.run)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: a file; name a folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{folder}: you may not write there; name another folder with --out")
    return folder
