"""What each verb of the command line does: reads its arguments, calls the package, prints an answer.

Heavy imports stand in the functions, so that a verb loads what it uses and `--help` stays quick.
"""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import FailedError, InterruptedRunError, NonFiniteLossError

if TYPE_CHECKING:
    from .data.dataset import Dataset, Split


class _Parser(argparse.ArgumentParser):
    """One line for wrong usage, instead of the whole usage text."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser(verb: str, what: str, example: str) -> _Parser:
    parser = _Parser(
        prog=f"googlenet {verb}",
        description=what,
        epilog=f"example: {example}",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _answer(as_json: bool, document: Any, lines: Iterable[str]) -> None:
    print(json.dumps(document, indent=2) if as_json else "\n".join(lines))


def models(argv: list[str]) -> None:
    """List the networks of the family."""
    from .models.catalogue import MODELS

    args = _parser("models", "List the networks of the family.", "googlenet models --json").parse_args(argv)
    rows = [
        {key: value for key, value in entry._asdict().items() if key != "build"} | {"name": name}
        for name, entry in MODELS.items()
    ]
    head = f"{'name':<16}{'parameters':>12}{'multiply-adds':>16}{'input':>7}{'least':>7}  paper"
    table = [
        f"{r['name']:<16}{r['parameters']:>12,}{r['macs']:>16,}{r['input_size']:>7}{r['min_size']:>7}  {r['paper']}"
        for r in rows
    ]
    note = "Counted for 1000 classes, RGB, at the input size, without auxiliary heads. Sizes in pixels."
    _answer(args.json, rows, [head, *table, note])


def summary(argv: list[str]) -> None:
    """Count a network layer by layer."""
    parser = _parser(
        "summary",
        "Layer table of a network: output shapes, parameters, multiply-adds, receptive fields.",
        "googlenet summary googlenet_d2l --size 96 --channels 1 --classes 10",
    )
    parser.add_argument("model", help="a name that `googlenet models` lists")
    parser.add_argument("--size", type=int, help="input height and width in pixels (default: the model's own)")
    parser.add_argument("--channels", type=int, default=3, help="input channels (default 3)")
    parser.add_argument("--classes", type=int, default=1000, help="number of classes (default 1000)")
    parser.add_argument("--aux", action="store_true", help="with the auxiliary classifiers")
    args = parser.parse_args(argv)

    from .models.catalogue import create, spec
    from .models.summary import alexnet_parameters, summarise

    size = spec(args.model).input_size if args.size is None else args.size
    counted = summarise(create(args.model, args.classes, args.channels, args.aux), size)
    alexnet = alexnet_parameters(args.classes)
    document = {
        "model": args.model,
        "size": size,
        "parameters": counted.parameters,
        "macs": counted.macs,
        "alexnet_parameters": alexnet,
        "alexnet_ratio": round(alexnet / counted.parameters, 3),
        "stages": [{"name": name, "output": list(output)} for name, output in counted.stages],
        "layers": [row._asdict() for row in counted.rows],
    }
    head = f"{'layer':<20}{'output':<22}{'parameters':>12}{'multiply-adds':>16}{'receptive field':>17}"
    lines = [head]
    for row in counted.rows:
        shape = " x ".join(str(n) for n in row.output)
        lines.append(f"{row.name:<20}{shape:<22}{row.parameters:>12,}{row.macs:>16,}{row.receptive_field:>17,}")
    lines.append(f"{'total':<42}{counted.parameters:>12,}{counted.macs:>16,}")
    lines.append(
        f"AlexNet, for {args.classes} classes too, has {alexnet:,} parameters: "
        f"{alexnet / counted.parameters:.2f} times as many"
    )
    _answer(args.json, document, lines)


def fetch(argv: list[str]) -> None:
    """Find or download a data set."""
    parser = _parser("fetch", "Find a data set or download it; check its digests.", "googlenet fetch fashion-mnist")
    parser.add_argument("dataset", choices=["fashion-mnist"])
    parser.add_argument("--root", help="the folder to look in first")
    args = parser.parse_args(argv)

    from .data.fashion_mnist import fetched_files, find_fashion_mnist

    root = find_fashion_mnist(args.root)
    files = [str(path) for path in fetched_files(root)]
    _answer(args.json, {"root": str(root), "files": files}, [f"intact: {file}" for file in files])


def train(argv: list[str]) -> None:
    """Train as a recipe says."""
    from .training.checkpoint import load_recipe
    from .training.recipe_file import list_recipes, read_recipe, recipe_parser

    parser = _parser(
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
        if not args.recipe:
            parser.error("name a recipe: " + ", ".join(list_recipes()))
        if flags and argv.index(flags[0]) < argv.index(args.recipe):
            parser.error("name the recipe first, then the flags that change it")
        read_recipe(args.recipe)
        try:
            recipe = read_recipe(args.recipe, flags)
        except ValueError as error:
            parser.error(str(error))
        out = Path(args.out or f"runs/{Path(args.recipe).stem}-{time.strftime('%Y%m%d-%H%M%S')}")

    from .training import processes
    from .training.loop import fit

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
    document = {
        "run": str(fitted.run),
        "top1": final["top1"] if final else None,
        "split": name if final else None,
        "seconds": round(fitted.seconds, 3),
        "images_per_second": round(fitted.images_per_second, 1),
        "metrics": fitted.metrics,
    }
    _answer(
        args.json,
        document,
        [
            f"{name} top-1 accuracy: {final['top1']:.4f}" if final else "nothing was held out to measure accuracy on",
            f"training time: {fitted.seconds:.0f} s ({fitted.images_per_second:.0f} images/s)",
            f"run: {fitted.run} (open {fitted.run / 'report.html'})",
        ],
    )


def evaluate(argv: list[str]) -> None:
    """Measure a run."""
    parser = _parser(
        "evaluate",
        "Measure a trained network, at one picture size or at several and averaged over them.",
        "googlenet evaluate runs/demo --sizes 24,28,32 --split validation",
    )
    parser.add_argument("run", help="a run folder or a .safetensors file")
    parser.add_argument(
        "--data", metavar="SOURCE", help="fashion-mnist, folder:PATH or shards:PATH (default: the run's own)"
    )
    parser.add_argument("--root", help="where the data lies, looked at first")
    parser.add_argument("--split", choices=["test", "validation", "train"], help="default: test where there is one")
    _add_sizes(parser)
    parser.add_argument("--out", metavar="DIR", help="where the plot of --sizes goes (default: the run's folder)")
    parser.add_argument("--limit", type=int, metavar="N", help="at most so many pictures")
    args = parser.parse_args(argv)
    if args.out and not args.sizes:
        parser.error("--out is for the plot of --sizes")
    if args.limit is not None and args.limit < 1:
        parser.error("--limit must be 1 or more")

    from .data.sources import absolute_source, load_dataset
    from .evaluation.metrics import per_class_accuracy, scores
    from .evaluation.scales import answer_at_sizes, average, best_row, check_sizes, plot, size_row, table
    from .training.checkpoint import load, write_atomically
    from .training.loop import pick_device

    checkpoint = load(args.run)
    sizes = _sizes(args, checkpoint.preprocess.size)
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
    _answer(args.json, document, lines)


def predict(argv: list[str]) -> None:
    """Classify pictures."""
    parser = _parser(
        "predict",
        "Classify pictures: files, folders, or - for one on standard input.",
        "googlenet predict runs/demo photo.jpg holiday/ --top 3",
    )
    parser.add_argument("run", help="a run folder or a .safetensors file")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a picture file, a folder, or -")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="classes to name (default 5)")
    _add_sizes(parser)
    args = parser.parse_args(argv)
    if args.top < 1:
        parser.error("--top must be 1 or more")

    from .evaluation.predict import expand, predict_pictures
    from .evaluation.scales import check_sizes
    from .training.checkpoint import load
    from .training.loop import pick_device

    checkpoint = load(args.run)
    sizes = _sizes(args, checkpoint.preprocess.size)
    check_sizes(checkpoint.model, sizes)
    answers = predict_pictures(
        checkpoint.model.to(pick_device("auto")),
        checkpoint.preprocess,
        checkpoint.classes,
        expand(args.images),
        top=args.top,
        sizes=sizes,
        flip=args.flip,
    )
    documents, problems = [], []
    for answer in answers:
        if answer.problem:
            problems.append(answer.problem)
            print(f"googlenet predict: {answer.problem}", file=sys.stderr)
            continue
        documents.append({"path": answer.path, "top": [t._asdict() for t in answer.top], "did": answer.did})
        if not args.json:
            best = "  ".join(f"{t.label} {t.probability:.3f}" for t in answer.top)
            print(f"{answer.path}: {best}\n  ({answer.did})")
    if args.json:
        print(json.dumps(documents, indent=2))
    if problems:
        total = len(problems) + len(documents)
        raise FailedError(f"{len(problems)} of {total} pictures could not be used" if total > 1 else "")


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    one_of = parser.add_mutually_exclusive_group()
    one_of.add_argument("--size", type=int, help="height and width in pixels (default: the run's)")
    one_of.add_argument("--sizes", type=_whole_numbers, metavar="A,B,...", help="several; probabilities are averaged")
    parser.add_argument("--flip", action="store_true", help="average each picture with its mirror image")


def _whole_numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"whole numbers and commas, such as 24,28,32, not {text!r}") from None


def _sizes(args: argparse.Namespace, usual: int) -> list[int]:
    return args.sizes or [usual if args.size is None else args.size]


def _plot_file(args: argparse.Namespace) -> Path | None:
    """Where the plot goes; None for weights in a file of their own, unless `--out` says where."""
    if not args.out and not Path(args.run).is_dir():
        return None
    folder = Path(args.out or args.run)
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
