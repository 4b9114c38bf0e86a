"""``googlenet benchmark``: how quick a network is in each engine, beside its peers."""

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .command import answer, verb_parser, whole_numbers

if TYPE_CHECKING:
    from torch import Tensor

    from ..deployment.benchmark import Side
    from ..deployment.description import Description
    from ..models.network import Network

ENGINES = ("torch", "onnxruntime", "openvino", "ncnn")
FORMATS = {"onnxruntime": "onnx", "openvino": "openvino", "ncnn": "ncnn"}


class Target(NamedTuple):
    """What is measured: the network of a catalogue name, its normalisation, and its exported folder."""

    name: str
    model: "Network"
    mean: tuple[float, ...]
    std: tuple[float, ...]
    folder: Path
    description: "Description"


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

    import os

    import torch

    from ..deployment.benchmark import measure, plot, table
    from ..files import write_atomically

    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        target = _target(args, work)
        sizes = args.sizes or [target.description.preprocess.size]
        _check_sizes(target, sizes)
        cases = [(size, batch) for size in sizes for batch in args.batches]
        threads = args.threads or [os.cpu_count() or 1]
        sides = _ours(args, target, sizes, work)
        if not args.no_peers:
            sides += _peers(target, sizes, cases, work)
        rows = measure(sides, cases, threads, args.seconds, args.rounds)
    document = {
        "model": target.name,
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


def _target(args: argparse.Namespace, work: Path) -> Target:
    """The network, exported for the engines that were asked for."""
    import torch

    from ..data.preprocess import Preprocess
    from ..deployment.export import Int8, Pictures, Trained, export
    from ..models.catalogue import MODELS, create
    from ..training.checkpoint import load
    from .export import run_pictures

    formats = [FORMATS[name] for name in args.engines if name in FORMATS] or ["onnx"]
    if args.target in MODELS:
        if args.int8:
            raise ValueError("--int8 needs a run: int8 ranges are measured on its training pictures")
        spec = MODELS[args.target]
        trained = Trained(
            args.target,
            create(args.target).eval(),
            Preprocess(spec.input_size, 3, (0.5,) * 3, (0.5,) * 3),
            tuple(map(str, range(1000))),
        )
        noise = torch.randint(0, 256, (1, 3, spec.input_size, spec.input_size), dtype=torch.uint8)
        done = export(trained, Pictures(noise), work / "exported", formats)
    else:
        checkpoint = load(args.target)
        trained = Trained(
            checkpoint.recipe.model.name or "googlenet", checkpoint.model, checkpoint.preprocess, checkpoint.classes
        )
        pictures = run_pictures(checkpoint, limit=args.limit)
        done = export(trained, pictures, work / "exported", formats, int8=Int8() if args.int8 else None)
    preprocess = trained.preprocess
    return Target(trained.name, trained.model, preprocess.mean, preprocess.std, work / "exported", done.description)


def _check_sizes(target: Target, sizes: list[int]) -> None:
    from ..evaluation.scales import check_sizes

    check_sizes(target.model, sizes)
    about = target.description
    if not about.any_size and sizes != [about.preprocess.size]:
        raise ValueError(f"{target.name} is exported for {about.preprocess.size} px only; leave --sizes off")


def _ours(args: argparse.Namespace, target: Target, sizes: list[int], work: Path) -> "list[Side]":
    """A side for PyTorch and one for each exported file."""
    import torch

    from ..deployment.benchmark import Side
    from ..models.summary import summarise

    about, channels = target.description, target.model.in_channels
    macs = {size: _without_aux(summarise(target.model, size)) for size in sizes}
    accuracy = about.accuracy
    sides = []
    if "torch" in args.engines:
        weights = work / "ours.pt"
        torch.save(target.model.state_dict(), weights)
        spec = {
            "kind": "eager", "library": "googlenet", "arguments": target.model.arguments, "tensors": str(weights),
            "mean": target.mean, "std": target.std, "channels": channels,
        }  # fmt: skip
        sides.append(Side("ours, torch (fused)", spec, macs, None, _top1(accuracy, "float32")))
    for key, files in about.files.items():
        engine, _, precision = key.partition(":")
        if engine not in args.engines:
            continue
        precision = precision or "float32"
        spec = {
            "kind": "exported", "folder": str(target.folder), "engine": f"{engine}:{precision}", "channels": channels,
        }  # fmt: skip
        size = sum((target.folder / file).stat().st_size for file in files)
        top1 = _top1(accuracy, key if precision == "int8" else "float32")
        name = f"ours, {engine}" + (" int8" if precision == "int8" else "")
        sides.append(Side(name, spec, macs, size, top1, precision=precision))
    return sides


def _top1(accuracy: Mapping[str, Any], key: str) -> float | None:
    top1: float | None = accuracy[key]["top1"] if key in accuracy else None
    return top1


def _without_aux(counted: Any) -> int:
    macs: int = counted.macs - sum(row.macs for row in counted.rows if row.name.startswith("aux_"))
    return macs


def _peers(target: Target, sizes: list[int], cases: list[tuple[int, int]], work: Path) -> "list[Side]":
    """torchvision's GoogLeNet, with our weights where ours is that network, and timm's Inception-v3."""
    import torch

    from ..deployment.benchmark import Side
    from ..deployment.peers import peer_network, write_plain
    from ..models.catalogue import create
    from ..models.key_maps import ORIGINS
    from ..models.summary import summarise
    from ..models.weights import AUXILIARY, to_theirs

    classes = target.model.num_classes
    tensors: dict[str, Tensor] | None = None
    if target.name == "googlenet_torchvision" and target.model.in_channels == 3:
        ours = {k: v for k, v in target.model.state_dict().items() if not k.startswith(AUXILIARY)}
        tensors = to_theirs(ORIGINS["torchvision:googlenet"], ours, target.name)
        torch.save(tensors, work / "theirs.pt")
    like = create("googlenet_torchvision", classes)
    macs = {size: summarise(like, size).macs for size in sizes if size >= like.min_size}
    network = peer_network("torchvision", "googlenet", classes, tensors)
    write_plain(network, 3, cases, work / "plain")
    weights = str(work / "theirs.pt") if tensors else None
    eager: dict[str, Any] = {
        "kind": "eager",
        "library": "torchvision",
        "name": "googlenet",
        "classes": classes,
        "channels": 3,
    }
    sides = [Side("torchvision, torch", {**eager, "tensors": weights}, macs, peer=True)]
    for engine in ("onnxruntime", "openvino"):
        spec = {"kind": "file", "engine": engine, "folder": str(work / "plain"), "channels": 3}
        size = next((work / "plain").glob("*.onnx")).stat().st_size
        sides.append(Side(f"torchvision, {engine}", spec, macs, size, peer=True))
    if min(sizes) >= 75:
        v3 = create("inception_v3", classes)
        macs = {size: summarise(v3, size).macs for size in sizes}
        spec = {**eager, "library": "timm", "name": "inception_v3", "tensors": None}
        sides.append(Side("timm inception_v3, torch", spec, macs, peer=True))
    return sides
