"""``googlenet benchmark``: measure the inference speed of a network in each engine, and of baselines."""

import argparse
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..export.backends import BACKENDS, engine_names
from .common import int_list, make_parser, name_list, positive_int, print_result

if TYPE_CHECKING:
    from ..benchmark.runner import BenchmarkRow
    from ..checkpoint.format import Checkpoint
    from ..export.exporter import ExportData


def run(argv: list[str]) -> None:
    """Measure inference speed."""
    args = _parse(argv)

    import torch

    from ..benchmark.runner import format_rows, plot
    from ..export.exporter import model_name
    from ..export.manifest import is_exported
    from ..files import write_atomically

    if is_exported(Path(args.target)):
        model, rows = _measure_folder(args)
    else:
        checkpoint, data = _load(args)
        model, rows = model_name(checkpoint), _measure(args, checkpoint, data)
    document = {"model": model, "rounds": args.rounds, "seconds": args.seconds}
    document |= {"torch": torch.__version__, "cpu_capability": torch.backends.cpu.get_cpu_capability()}
    document["rows"] = [row._asdict() for row in rows]
    lines = format_rows(rows)
    if args.out:
        write_atomically(Path(args.out), plot(rows, f"{args.target}: images per second"))
        lines.append(f"plot: {args.out}")
    print_result(args.json, document, lines)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = make_parser(
        "benchmark",
        "Measure a network in each engine: latency, images per second, cold start, memory; compare with\n"
        "torchvision's GoogLeNet in PyTorch, ONNX Runtime and OpenVINO, and timm's Inception-v3.",
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
    add("--threads", type=int_list, metavar="A,B", help="(default: all cores)")
    add("--seconds", type=float, default=4.0, help="seconds per measurement (default: 4)")
    add("--rounds", type=positive_int, default=4, help="number of turns to spread them over (default: 4)")
    add("--no-baselines", action="store_true", help="measure the network only")
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
    """Export the network and measure it, and the baselines."""
    from ..benchmark.runner import measure
    from ..benchmark.targets import baseline_targets, model_targets
    from ..export.exporter import ExportOptions, QuantizationConfig, export

    default_size = checkpoint.preprocess.size
    sizes = args.sizes or [default_size]
    cases = [(size, batch) for size in sizes for batch in args.batches]
    # PyTorch runs the folded network directly.
    formats = [name for name, backend in BACKENDS.items() if backend.engine in args.engines and name != "torch"]
    options = ExportOptions(int8=QuantizationConfig() if args.int8 else None)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        exported = export(checkpoint, data, work / "exported", formats or ["onnx"], options)
        if not exported.manifest.dynamic_size and sizes != [default_size]:
            raise ValueError(f"this network is exported for {default_size} px only; omit --sizes")
        targets = model_targets(checkpoint, exported, args.engines, sizes, work)
        targets += [] if args.no_baselines else baseline_targets(checkpoint, cases, work)
        return measure(targets, cases, args.threads or [os.cpu_count() or 1], args.seconds, args.rounds)
