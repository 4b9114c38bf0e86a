"""``googlenet export`` for a network that finds objects: one ONNX file with everything inside, and an example."""

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from .command import VerbParser, answer

if TYPE_CHECKING:
    from torch import Tensor

    from ..training.checkpoint import Checkpoint

# Pictures that the file's boxes are compared on.
SAMPLE = 20
# Arguments of the verb that ask about classification.
NOT_HERE = ("softmax", "int8", "max_drop", "calibration", "threads")


def export_detection(parser: VerbParser, args: argparse.Namespace, checkpoint: "Checkpoint", out: Path) -> None:
    """Write the folder `out`: ``detector.onnx`` and ``detect_onnxruntime.py``."""
    if args.to != ["onnx"]:
        parser.error("a network that finds objects is exported --to onnx")
    asked = [name for name in NOT_HERE if getattr(args, name) not in (None, False)]
    if asked:
        parser.error(f"--{asked[0].replace('_', '-')} is for classification, and this run finds objects")
    if args.sizes and min(args.sizes) < 1:
        parser.error("--sizes must be 1 or more")

    from ..detection import export

    pictures = _pictures(args, checkpoint)
    there = out.is_dir()
    out.mkdir(parents=True, exist_ok=True)
    try:
        difference = export.export_detector(checkpoint, out / "detector.onnx", pictures, args.sizes or ())
    except BaseException:
        if not there:
            out.rmdir()
        raise
    example = Path(export.__file__).parent / "examples" / "detect_onnxruntime.py"
    shutil.copy(example, out)
    names = ["detector.onnx", example.name]
    document = {
        "out": str(out),
        "files": [str(out / name) for name in names],
        "max_error": difference.box,
        "max_score_error": difference.score,
        "pictures": difference.pictures,
    }
    lines = [
        f"{out}: {', '.join(names)}",
        f"differs from PyTorch by at most {difference.box:.1e} pixels and {difference.score:.1e} of the score, on "
        f"{difference.pictures} pictures",
    ]
    answer(args.json, document, lines)


def _pictures(args: argparse.Namespace, checkpoint: "Checkpoint") -> "list[Tensor]":
    from ..data.pictures import picture_files, read_picture, to_tensor
    from ..detection.dataset import spaced
    from .evaluate_detection import pictures_of

    channels = checkpoint.preprocess.channels
    count = min(args.limit or SAMPLE, 1000)
    if args.pictures:
        files = list(picture_files(Path(args.pictures)))[:count]
        if not files:
            raise ValueError(f"{args.pictures}: no pictures; name a folder with --pictures")
        return [to_tensor(read_picture(file), channels) for file in files]
    _, split = pictures_of(checkpoint, args.data, args.root)
    return [picture.read(channels) for picture in spaced(split, count)]
