"""``googlenet fid``: compare generated with real images by FID, KID and related metrics."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import CommandParser, make_parser, name_list, print_result, warn

if TYPE_CHECKING:
    from ..fidelity.compare import Comparison, FeatureSet

# Those of `fidelity.compare.METRICS`, `fidelity.modes.MODES` and `fidelity.engines.PRECISIONS`, which import PyTorch.
METRICS = ("fid", "fid-infinity", "kid", "is", "prdc")
MODES = ("clean-fid", "pytorch-fid", "torch-fidelity")
PRECISIONS = ("float32", "bfloat16", "int8")


def run(argv: list[str]) -> None:
    """Run the command."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.generated is None and args.save_stats is None:
        parser.error("name the generated images too, or a file with --save-stats")

    from ..fidelity.compare import Comparer, make_settings
    from ..kernels import keep_freed_memory

    keep_freed_memory("cpu")
    if args.save_stats and not args.save_stats.endswith(".npz"):
        parser.error("--save-stats writes an .npz file; name it so")
    for name in (args.save_stats, args.report):
        if name:
            check_output(Path(name))
    settings = make_settings(
        like=args.like, metrics=args.metrics, features=args.features, weights=args.weights, engine=args.engine,
        precision=args.precision, seed=args.seed, interval=args.interval, use_cache=args.cache,
        by_class=args.by_class, show_progress=not args.json,
    )  # fmt: skip
    comparer = Comparer(settings)
    real = comparer.read(args.real)
    if args.report:
        real.require_images("--report")
    if args.save_stats:
        comparer.save(real, Path(args.save_stats))
        print(f"wrote {args.save_stats}", file=sys.stderr)
    if args.generated is None:
        return
    fake = comparer.read(args.generated)
    result = comparer.compare(real, fake)
    if args.report:
        write_report(Path(args.report), result, real, fake)
    for line in (*result.notes, *result.warnings):
        warn("fid", line)
    print_result(args.json, result.to_dict(), describe(result))


def build_parser() -> CommandParser:
    """Return the argument parser."""
    parser = make_parser(
        "fid",
        "Compare generated with real images: FID with its 95 % interval, FID-infinity, KID, Inception Score,\n"
        "precision and recall, density and coverage. Values are those of clean-fid, or of another tool with --like.",
        "googlenet fid real-images generated-images --metrics all",
    )
    add = parser.add_argument
    add("real", metavar="REAL", help="a folder of images, an .npz file of statistics of any tool, or a data source "
        "such as fashion-mnist@test or shards:PATH")  # fmt: skip
    add("generated", metavar="FAKE", nargs="?", help="the generated images, in any of these forms")
    add("--metrics", type=name_list((*METRICS, "all")), default=["fid"], metavar="A,B,...",
        help=f"{', '.join(METRICS)} (precision, recall, density and coverage), or all (default: fid)")  # fmt: skip
    add("--like", choices=MODES, default=MODES[0],
        help="read and resize images as this tool does (default: %(default)s)")  # fmt: skip
    add("--weights", metavar="FILE", help="a file of the FID network, in any tool's format (default: the published "
        "weights, downloaded once)")  # fmt: skip
    add("--features", metavar="NETWORK", help="another network: a model, run, .safetensors file, exported folder, "
        "torchvision:NAME or timm:NAME")  # fmt: skip
    add("--engine", default="auto", metavar="NAME",
        help="torch, onnxruntime or openvino (default: the fastest in float32)")  # fmt: skip
    add("--precision", choices=PRECISIONS, default="float32", help="of the network (default: %(default)s)")
    add(
        "--seed", type=int, default=2020, metavar="N", help="of random subsets (default: %(default)s, torch-fidelity's)"
    )
    add("--save-stats", metavar="FILE.npz", help="write the statistics of REAL, which every tool reads")
    add("--by-class", action="store_true", help="also FID of each class: by the first folder, or the source's labels")
    add("--report", metavar="FILE.html", help="write the worst generated images with their nearest real ones")
    add("--no-interval", dest="interval", action="store_false", help="omit the interval of FID, which takes seconds")
    add("--no-cache", dest="cache", action="store_false", help="neither read nor write cached features")
    return parser


LABELS = {
    "fid": "FID", "fid_infinity": "FID-infinity", "kid": "KID", "inception_score": "Inception Score",
    "precision": "precision", "recall": "recall", "density": "density", "coverage": "coverage",
    "mean_fid_of_classes": "mean of classes",
}  # fmt: skip
INDENT = " " * 18
# The lines of the values that are neither a number nor a mean with its standard deviation.
FORMATS: dict[str, Callable[[Any], list[str]]] = {
    "fid_unbiased": lambda value: [
        f"{INDENT}{value['estimate']:.4f} without the bias of few images, 95 % interval "
        f"{value['low']:.4f} to {value['high']:.4f}"
    ],
    "precision_bias": lambda value: [
        f"{INDENT}{value['fid']:.4f} for {value['images']} images of each set, {value['fid_float32']:.4f} in float32"
    ],
    "by_class": lambda value: [
        f"  {name:<16}{row['fid']:.6g} ({row['real']:,} real, {row['generated']:,} generated)"
        for name, row in value.items()
    ],
    "classes_left_out": lambda names: [f"left out, fewer than 2 images in a set: {', '.join(names)}"] if names else [],
}


def check_output(path: Path) -> None:
    """Raise ValueError for a file that could not be written after minutes of computation."""
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent}: no such folder; create it first")


def write_report(path: Path, result: "Comparison", real: "FeatureSet", fake: "FeatureSet") -> None:
    """Write the report of `--report`."""
    from ..fidelity.report import render_report
    from ..files import write_atomically

    images = real.require_images("--report"), fake.require_images("--report")
    tiles = [(LABELS[name], f"{value:.4g}") for name, value in result.values.items() if isinstance(value, float)]
    lines = [*describe(result), *result.notes, *result.warnings]
    write_atomically(path, render_report(f"{real.name} and {fake.name}", tiles, lines, *images))
    print(f"wrote {path}", file=sys.stderr)


def describe(result: "Comparison") -> Iterator[str]:
    """Yield the lines of a result: one per metric, and how they were computed."""
    for name, value in result.values.items():
        if name in FORMATS:
            yield from FORMATS[name](value)
        elif isinstance(value, dict):
            yield f"{LABELS[name]:<18}{value['mean']:.6g} (sd {value['sd']:.2g})"
        else:
            yield f"{LABELS[name]:<18}{value:.6g}"
    counts = [f"{count:,}" if count else "?" for count in (result.num_real, result.num_fake)]
    settings: dict[str, Any] = result.settings
    yield f"{counts[0]} real and {counts[1]} generated images, as {settings['like']}: {settings['resizing']}; " + (
        f"{settings['network']} in {settings['engine']}, {settings['network_precision']}"
    )
