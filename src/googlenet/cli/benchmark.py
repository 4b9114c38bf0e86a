"""``googlenet benchmark``: measure the inference speed of a network in each engine, and of peers."""

import argparse
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..export.backends import engine_names
from .common import int_list, make_parser, name_list, positive_int, print_result

TIMM_MODELS = ["inception_v3", "inception_v4", "inception_resnet_v2"]

if TYPE_CHECKING:
    from ..benchmark.runner import BenchmarkRow
    from ..checkpoint.format import Checkpoint
    from ..export.exporter import ExportData


def run(argv: list[str]) -> None:
    """Measure inference speed."""
    args = _parse(argv)

    import torch

    from ..benchmark.runner import format_rows, plot, speedups
    from ..devices import cpu_features, limit_isa
    from ..export.exporter import model_name
    from ..export.manifest import is_exported
    from ..files import package_version, write_atomically

    if args.limit_isa:
        limit_isa(args.limit_isa)
    num_images = 0
    if is_exported(Path(args.target)):
        model, rows = _measure_folder(args)
    else:
        checkpoint, data = _load(args)
        model, rows = model_name(checkpoint), _measure(args, checkpoint, data)
        num_images = 0 if data.test is None else len(data.test)
    document = {"model": model, "rounds": args.rounds, "seconds": args.seconds, "images": num_images}
    document |= {"cpu": cpu_features(), "limit_isa": args.limit_isa, "torch": torch.__version__}
    packages = ("torchvision", "timm", *(name for name in engine_names() if name != "torch"))
    document["versions"] = {name: version for name in packages if (version := package_version(name))}
    document["rows"] = [row._asdict() for row in rows]
    ratios = speedups(rows)
    document["speedups"] = [row._asdict() for row in ratios]
    lines = format_rows(rows) + [
        f"{row.size} px, batch {row.batch}: {row.name} is {row.ratio:.2f} times as fast as the fastest peer with "
        f"default settings, {row.peer} ({row.low:.2f} to {row.high:.2f} over {args.rounds} rounds)"
        for row in ratios
    ]
    if args.out:
        write_atomically(Path(args.out), plot(rows, f"{args.target}: images per second"))
        lines.append(f"plot: {args.out}")
    print_result(args.json, document, lines)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = make_parser(
        "benchmark",
        "Measure a network in each engine and precision: latency, images per second, cold start, memory, accuracy;\n"
        "compare with torchvision's GoogLeNet and timm's networks in PyTorch (eager and compiled), ONNX Runtime and\n"
        "OpenVINO, with the default settings of each, and in float32 with the same number of threads.",
        "googlenet benchmark googlenet_torchvision --batches 1,8 --threads 2",
    )
    add, engines = parser.add_argument, engine_names()
    add("target", nargs="?", default="googlenet_torchvision", metavar="RUN or MODEL",
        help="a run, an exported folder, or the name of a network, with initial weights (default: "
        "googlenet_torchvision)")  # fmt: skip
    add("--engines", type=name_list(engines), default=engines, metavar="A,B", help=", ".join(engines))
    add("--int8", action="store_true", help="measure int8 files too (requires a run)")
    add("--sizes", type=int_list, metavar="A,B", help="in pixels (default: that of the network)")
    add("--batches", type=int_list, default=[1, 8], metavar="A,B", help="(default: 1,8)")
    add("--threads", type=int_list, metavar="A,B", help="of the comparison in float32 (default: all cores)")
    add("--seconds", type=float, default=4.0, help="seconds per measurement (default: 4)")
    add("--rounds", type=positive_int, default=4, help="number of turns to spread them over (default: 4)")
    add("--no-peers", action="store_true", help="measure the network only")
    add("--timm", type=name_list(TIMM_MODELS), default=TIMM_MODELS[:1], metavar="A,B",
        help=f"{', '.join(TIMM_MODELS)} (default: {TIMM_MODELS[0]})")  # fmt: skip
    add("--limit-isa", choices=["avx2"], help="use the instructions of older processors (not in ONNX Runtime and ncnn)")
    add("--max-images", type=positive_int, metavar="N", help="measure a run's accuracy on at most N images")
    add("--out", metavar="FILE", help="write a chart to this PNG file")
    args = parser.parse_args(argv)
    for name in ("sizes", "batches", "threads"):
        if getattr(args, name) and min(getattr(args, name)) < 1:
            parser.error(f"--{name} must be 1 or more")
    if args.seconds <= 0:
        parser.error("--seconds must be above 0")
    if args.out and Path(args.out).suffix != ".png":
        parser.error("--out must name a .png file")
    return args


def _measure_folder(args: argparse.Namespace) -> "tuple[str, list[BenchmarkRow]]":
    """Measure the files of an exported folder, without baselines; return the network's name too."""
    from ..benchmark.runner import measure
    from ..benchmark.targets import folder_targets
    from ..export.manifest import read_manifest

    folder = Path(args.target)
    manifest, targets = read_manifest(folder), folder_targets(folder, args.engines)
    if args.int8:
        raise ValueError(f"{folder}: an exported folder is measured with the int8 files that it has; omit --int8")
    if not targets:
        raise ValueError(f"{folder}: no files for {', '.join(args.engines)}; it has {', '.join(manifest.files)}")
    default_size = max(manifest.sizes or (manifest.preprocess.size,))
    if not manifest.dynamic_size and set(args.sizes or ()) - {default_size}:
        raise ValueError(f"this network is exported for {default_size} px only; omit --sizes")
    if min(args.sizes or [default_size]) < manifest.min_size:
        raise ValueError(f"--sizes: this network takes {manifest.min_size} px or more")
    cases = [(size, batch) for size in args.sizes or [default_size] for batch in args.batches]
    return manifest.model, measure(targets, cases, args.threads or [os.cpu_count() or 1], args.seconds, args.rounds)


def _load(args: argparse.Namespace) -> "tuple[Checkpoint, ExportData]":
    """Load the network of a run and its images, or build one with initial weights and noise."""
    import torch

    from ..checkpoint.format import Checkpoint
    from ..checkpoint.load import load
    from ..config.schema import ModelConfig, Recipe
    from ..data.preprocess import Preprocess
    from ..export.exporter import ExportData
    from ..inference.multi_size import check_sizes
    from ..models.factory import create_model
    from ..models.registry import MODELS
    from .export_data import load_export_data

    if args.target not in MODELS:
        checkpoint = load(args.target, task="classification")
        check_sizes(checkpoint.network.min_size, args.sizes or [checkpoint.preprocess.size])
        return checkpoint, load_export_data(checkpoint, max_images=args.max_images)
    if args.int8:
        raise ValueError("--int8 requires a run: it is calibrated on the run's training images")
    model, size = create_model(args.target).eval(), MODELS[args.target].input_size
    check_sizes(model.min_size, args.sizes or [size])
    preprocess, recipe = Preprocess(size, 3, (0.5,) * 3, (0.5,) * 3), Recipe(model=ModelConfig(name=args.target))
    noise = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8)
    return Checkpoint(model, preprocess, tuple(map(str, range(1000))), recipe, {}), ExportData(noise)


def _measure(args: argparse.Namespace, checkpoint: "Checkpoint", data: "ExportData") -> "list[BenchmarkRow]":
    """Export the network and measure it, and the peers."""
    from ..benchmark.runner import measure
    from ..benchmark.targets import exported_formats, model_targets, peer_targets, with_accuracy, write_model
    from ..data.dataset import Split
    from ..export.exporter import ExportOptions, QuantizationConfig, export
    from ..models.registry import MODELS

    default_size = checkpoint.preprocess.size
    sizes = args.sizes or [default_size]
    cases = [(size, batch) for size in sizes for batch in args.batches]
    options = ExportOptions(int8=QuantizationConfig() if args.int8 else None)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        exported = export(checkpoint, data, work / "exported", exported_formats(args.engines), options)
        if not exported.manifest.dynamic_size and sizes != [default_size]:
            raise ValueError(f"this network is exported for {default_size} px only; omit --sizes")
        path = write_model(checkpoint, work) if args.target in MODELS else args.target
        targets = model_targets(checkpoint, exported, args.engines, sizes, path)
        if isinstance(data.test, Split):
            targets = with_accuracy(targets, data.test)
        if not args.no_peers:
            targets += peer_targets(checkpoint, cases, work, args.timm)
        return measure(targets, cases, args.threads or [os.cpu_count() or 1], args.seconds, args.rounds)
