"""``googlenet benchmark``: how quick a network is in each engine, beside its peers."""

import argparse
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from .command import answer, verb_parser, whole_numbers

if TYPE_CHECKING:
    from ..deployment.export import Pictures, Trained
    from ..training.checkpoint import Checkpoint

ENGINES = ("torch", "onnxruntime", "openvino", "ncnn")
FORMATS = {"onnxruntime": "onnx", "openvino": "openvino", "ncnn": "ncnn"}


def benchmark(argv: list[str]) -> None:
    """Measure speed in each engine, beside peers."""
    parser = verb_parser(
        "benchmark",
        "Measure a network in each engine: latency, pictures per second, time to the first answer, memory; beside\n"
        "torchvision's GoogLeNet in PyTorch, ONNX Runtime and OpenVINO, and timm's Inception-v3.",
        "googlenet benchmark googlenet_torchvision --batches 1,8 --threads 2",
    )
    parser.add_argument(
        "target", nargs="?", default="googlenet_torchvision", metavar="RUN or MODEL",
        help="a run, or a network by its name, with fresh weights (default: googlenet_torchvision)",
    )  # fmt: skip
    parser.add_argument("--engines", type=_engines, default=list(ENGINES), metavar="A,B", help=", ".join(ENGINES))
    parser.add_argument("--int8", action="store_true", help="int8 files too (of a run, whose pictures they need)")
    parser.add_argument("--sizes", type=whole_numbers, metavar="A,B", help="in pixels (default: the network's)")
    parser.add_argument("--batches", type=whole_numbers, default=[1, 8], metavar="A,B", help="(default: 1,8)")
    parser.add_argument("--threads", type=whole_numbers, metavar="A,B", help="(default: all cores)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of computing for each figure (default: 4)")
    parser.add_argument("--rounds", type=int, default=4, help="in which they are spent (default: 4)")
    parser.add_argument("--no-peers", action="store_true", help="leave the peers out")
    parser.add_argument("--limit", type=int, metavar="N", help="measure a run's accuracy on at most so many pictures")
    parser.add_argument("--out", metavar="FILE", help="a PNG file for a plot")
    args = parser.parse_args(argv)
    for name in ("sizes", "batches", "threads"):
        if getattr(args, name) and min(getattr(args, name)) < 1:
            parser.error(f"--{name} must be 1 or more")
    if args.seconds <= 0 or args.rounds < 1:
        parser.error("--seconds must be above 0, --rounds 1 or more")
    if args.out and Path(args.out).suffix != ".png":
        parser.error("--out names a .png file")

    import torch

    from ..deployment.benchmark import measure, plot, table
    from ..deployment.export import Int8, export
    from ..deployment.sides import our_sides, peer_sides
    from ..evaluation.scales import check_sizes
    from ..files import write_atomically

    trained, run = _trained(args.target)
    if args.int8 and run is None:
        raise ValueError("--int8 needs a run: its ranges are measured on the run's training pictures")
    sizes = args.sizes or [trained.preprocess.size]
    check_sizes(trained.model, sizes)
    cases = [(size, batch) for size in sizes for batch in args.batches]
    formats = [FORMATS[name] for name in args.engines if name in FORMATS]
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        pictures = _pictures(run, trained.preprocess.size, args.limit)
        done = export(trained, pictures, work / "exported", formats or ["onnx"], int8=Int8() if args.int8 else None)
        if not done.description.any_size and sizes != [trained.preprocess.size]:
            raise ValueError(f"this network is exported for {trained.preprocess.size} px only; leave --sizes off")
        sides = our_sides(trained, done.folder, done.description, args.engines, sizes, work)
        sides += [] if args.no_peers else peer_sides(trained, cases, work)
        rows = measure(sides, cases, args.threads or [os.cpu_count() or 1], args.seconds, args.rounds)
    document = {
        "model": trained.name,
        "rounds": args.rounds,
        "seconds": args.seconds,
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "rows": [row._asdict() for row in rows],
    }
    lines = table(rows)
    if args.out:
        write_atomically(Path(args.out), plot(rows, f"{args.target}: pictures per second"))
        lines.append(f"plot: {args.out}")
    answer(args.json, document, lines)


def _engines(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in ENGINES:
            raise argparse.ArgumentTypeError(f"{', '.join(ENGINES)}, with commas, not {name!r}")
    return names


def _trained(target: str) -> "tuple[Trained, Checkpoint | None]":
    """The network, and its run where it is one."""
    from ..data.preprocess import Preprocess
    from ..deployment.export import Trained
    from ..models.catalogue import MODELS, create
    from ..training.checkpoint import load

    if target not in MODELS:
        run = load(target, task="classification")
        return Trained(run.recipe.model.name or "googlenet", run.network, run.preprocess, run.classes), run
    preprocess = Preprocess(MODELS[target].input_size, 3, (0.5,) * 3, (0.5,) * 3)
    return Trained(target, create(target).eval(), preprocess, tuple(map(str, range(1000)))), None


def _pictures(run: "Checkpoint | None", size: int, limit: int | None) -> "Pictures":
    """Those of a run; for fresh weights noise will do."""
    import torch

    from ..deployment.export import Pictures
    from .export import run_pictures

    if run:
        return run_pictures(run, limit=limit)
    return Pictures(torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8))
