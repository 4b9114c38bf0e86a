"""``googlenet export``: a trained network as a folder for other programs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .command import answer, verb_parser, whole_numbers
from .data_of_run import data_of_run, split_of
from .export_detection import export_detection

if TYPE_CHECKING:
    from torch import Tensor

    from ..deployment.export import Pictures
    from ..training.checkpoint import Checkpoint

TO = ("onnx", "openvino", "ncnn", "torch")
# Pictures that each file's answers are compared on.
SAMPLE = 7


def export(argv: list[str]) -> None:
    """Write a network for other programs."""
    parser = verb_parser(
        "export",
        "Write a trained network as a folder that needs nothing of this package: model files that take raw 8-bit\n"
        "pixels, their description (model.json), an example for each engine, and how far each is from PyTorch.",
        "googlenet export runs/demo --to onnx,openvino --out demo-exported",
    )
    parser.add_argument(
        "run", help="a run folder, a .safetensors file, or published weights such as torchvision:googlenet"
    )
    parser.add_argument("--to", required=True, type=_formats, metavar="FORMATS", help=", ".join(TO))
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="the folder to write; an older export is replaced"
    )
    parser.add_argument("--softmax", action="store_true", help="give probabilities instead of logits")
    parser.add_argument(
        "--int8", action="store_true", help="8-bit integers too, for onnx and openvino: quicker, a little less exact"
    )
    parser.add_argument(
        "--max-drop", type=float, metavar="SHARE",
        help="of top-1 that int8 may lose on the whole test set, else nothing is written (default: 0.003)",
    )  # fmt: skip
    parser.add_argument(
        "--calibration", type=int, metavar="N", help="training pictures that int8 is made with (default: 300)"
    )
    parser.add_argument("--data", metavar="SOURCE", help="pictures to measure on (default: the run's own)")
    parser.add_argument("--root", help="where the data lies, looked at first")
    parser.add_argument("--limit", type=int, metavar="N", help="measure on at most so many pictures")
    parser.add_argument(
        "--pictures", metavar="DIR", help="compare on these pictures, which need no classes, and measure no accuracy"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the engines (default: all cores)")
    parser.add_argument(
        "--sizes", type=whole_numbers, metavar="A,B,...",
        help="of a network that finds objects: the pictures' longer side in pixels; of several the boxes are merged "
        "(default: the run's own)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    for name in ("limit", "threads", "calibration"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be 1 or more")
    if args.int8 and not {"onnx", "openvino"} & set(args.to):
        parser.error("--int8 is for onnx and openvino: name one with --to")
    if args.int8 and args.pictures:
        parser.error("--int8 needs pictures with classes: leave --pictures off, or name them with --data")
    if not args.int8 and (args.max_drop is not None or args.calibration is not None):
        parser.error("--max-drop and --calibration go with --int8")
    if args.max_drop is not None and not 0 <= args.max_drop < 1:
        parser.error("--max-drop must be in [0, 1)")
    if args.pictures and args.data:
        parser.error("--pictures have no classes to measure on; leave --data or --pictures off")

    from ..deployment.export import Int8, Trained, check_place
    from ..deployment.export import export as write
    from ..training.checkpoint import load

    out = Path(args.out)
    checkpoint = load(args.run)
    if checkpoint.recipe.task == "detection":
        export_detection(parser, args, checkpoint, out)
        return
    if args.sizes:
        parser.error("--sizes are of a network that finds objects; a classifier's file takes pictures of any size")
    check_place(out)
    trained = Trained(
        checkpoint.recipe.model.name or "googlenet", checkpoint.model, checkpoint.preprocess, checkpoint.classes
    )
    given = {"max_drop": args.max_drop, "pictures": args.calibration}
    int8 = Int8(**{key: value for key, value in given.items() if value is not None}) if args.int8 else None
    pictures = _pictures(args, checkpoint)
    done = write(trained, pictures, out, args.to, softmax=args.softmax, int8=int8, threads=args.threads)
    about = done.description
    document = {
        "out": str(out),
        "files": [str(out / name) for name in done.files],
        "max_error": done.max_error,
        "max_error_by_engine": dict(about.max_error),
        "top1": done.top1,
        "accuracy": dict(about.accuracy),
    }
    lines = [f"{out}: {', '.join(done.files)}"]
    lines += [
        f"{engine:<12} differs from PyTorch by at most {error:.1e}" for engine, error in about.max_error.items()
    ]
    lines += [
        f"{name:<12} top-1 {found['top1']:.4f} on {found['images']:,} pictures, {found['on']}"
        for name, found in about.accuracy.items()
    ]
    answer(args.json, document, lines)


def _formats(text: str) -> list[str]:
    """ "onnx,openvino" -> the names, for an argument's type."""
    names = text.split(",")
    for name in names:
        if name not in TO:
            raise argparse.ArgumentTypeError(f"{', '.join(TO)}, with commas, not {name!r}")
    return names


def _pictures(args: argparse.Namespace, checkpoint: "Checkpoint") -> "Pictures":
    """What the export is checked on."""
    from ..deployment.export import Pictures

    if args.pictures:
        preprocess = checkpoint.preprocess
        return Pictures(_from_folder(Path(args.pictures), preprocess.channels, preprocess.size))
    return run_pictures(checkpoint, args.data, args.root, args.limit)


def run_pictures(
    checkpoint: "Checkpoint", source: str | None = None, root: str | None = None, limit: int | None = None
) -> "Pictures":
    """The pictures of a run, or of `source`: a few to compare on, the test part to measure on, the training part."""
    import torch

    from ..deployment.export import Pictures

    size = max(checkpoint.preprocess.size, checkpoint.recipe.stored_size)
    try:
        data = data_of_run(checkpoint, size, source=source, root=root, limit=limit)
    except ValueError as error:
        raise ValueError(f"{error}; name its data with --data, or any pictures with --pictures DIR") from None
    name, split = split_of(data, None)
    (sample,) = split.spaced(SAMPLE).pixels([torch.arange(min(SAMPLE, len(split.labels)))])
    return Pictures(sample, split, f"{name} of {data.source}", data.train)


def _from_folder(folder: Path, channels: int, size: int) -> "Tensor":
    """The first pictures of a folder, stretched to squares."""
    import torch

    from ..data.pictures import picture_files, read_picture, to_tensor

    files = list(picture_files(folder))[:SAMPLE]
    if not files:
        raise ValueError(f"{folder}: no pictures; name a folder with --pictures")
    return torch.stack([to_tensor(read_picture(file).resize((size, size)), channels) for file in files])
