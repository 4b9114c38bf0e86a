"""``googlenet convert``: weights of other libraries to ours, and ours to theirs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .command import answer, verb_parser

if TYPE_CHECKING:
    from ..data.preprocess import Preprocess


def convert(argv: list[str]) -> None:
    """Turn weights of other libraries into ours, or ours into theirs."""
    parser = verb_parser(
        "convert",
        "Turn a weights file of torchvision, timm, Caffe, pretrainedmodels or the FID into a file of ours,\n"
        "with that origin's preprocessing; or (--as) a network of ours into a file of theirs.",
        "googlenet convert bvlc_googlenet.caffemodel --from caffe --to googlenet.safetensors",
    )
    parser.add_argument(
        "file", help="a weights file of another library; with --as, a run or a .safetensors file of ours"
    )
    direction = parser.add_mutually_exclusive_group(required=True)
    direction.add_argument(
        "--from", dest="origin", metavar="LIBRARY",
        help="torchvision, timm, caffe, fid or pretrainedmodels; or one network of it, such as timm:inception_v4, "
        "or published weights whose pixels are others, such as timm:inception_v3.gluon_in1k",
    )  # fmt: skip
    direction.add_argument("--as", dest="target", metavar="LIBRARY", help="write for this library instead")
    parser.add_argument(
        "--to", required=True, metavar="OUT", help="the file to write: .safetensors, or .pth with --as"
    )
    parser.add_argument(
        "--classes", metavar="FILE", help="the classes' names, one a line, in the order of the outputs"
    )
    parser.add_argument("--no-aux", action="store_true", help="leave auxiliary heads out")
    args = parser.parse_args(argv)
    out = Path(args.to)
    if out.suffix not in ([".safetensors"] if args.origin else [".safetensors", ".pth"]):
        parser.error(f"--to names a .safetensors file{'' if args.origin else ' or a .pth file'}, not {out.name}")
    if not out.parent.is_dir():
        parser.error(f"--to: there is no folder {out.parent}")
    if args.classes and args.target:
        parser.error("--classes names the classes of a file that is read, with --from")
    (_read if args.origin else _write)(args, out)


def _read(args: argparse.Namespace, out: Path) -> None:
    from ..training.checkpoint import save_weights
    from ..training.foreign import convert_file

    classes = None
    if args.classes:
        classes = [line for line in Path(args.classes).read_text().splitlines() if line.strip()]
    checkpoint = convert_file(Path(args.file), args.origin, classes, aux=not args.no_aux)
    save_weights(out, checkpoint)
    tensors = checkpoint.model.state_dict()
    parameters = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    document = {
        "out": str(out),
        "model": checkpoint.recipe.model.name,
        "keys": len(tensors),
        "parameters": parameters,
        "classes": len(checkpoint.classes),
        "preprocess": checkpoint.preprocess.to_dict(),
    }
    answer(
        args.json,
        document,
        [
            f"{out}: {document['model']}, {len(tensors)} tensors, {parameters:,} parameters, "
            f"{len(checkpoint.classes)} classes",
            f"pixels: {_sentence(checkpoint.preprocess)}",
        ],
    )


def _sentence(preprocess: "Preprocess") -> str:
    mean, std = ([round(value, 4) for value in numbers] for numbers in (preprocess.mean, preprocess.std))
    how = (
        "stretched" if preprocess.fit == "stretch" else f"the centre {preprocess.crop_share:.4g} of the shorter side"
    )
    return f"{how} resized to {preprocess.size} px ({preprocess.interpolation}), (x / 255 - {mean}) / {std}"


def _write(args: argparse.Namespace, out: Path) -> None:
    from ..training.checkpoint import load
    from ..training.foreign import export_tensors, write_tensors

    tensors = export_tensors(load(args.file, task="classification"), args.target, aux=not args.no_aux)
    write_tensors(out, tensors)
    counted = sum(t.numel() for key, t in tensors.items() if "running_" not in key and not key.endswith("tracked"))
    document = {"out": str(out), "keys": len(tensors), "parameters": counted}
    answer(args.json, document, [f"{out}: {len(tensors)} tensors under {args.target}'s names"])
