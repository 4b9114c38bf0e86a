"""``googlenet convert``: convert weights from and to other libraries."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .common import make_parser, print_result

if TYPE_CHECKING:
    from ..data.preprocess import Preprocess


def run(argv: list[str]) -> None:
    """Parse the arguments, convert, and print a summary."""
    parser = make_parser(
        "convert",
        "Convert a weights file of torchvision, timm, Caffe, pretrainedmodels or FID, with its preprocessing, to a\n"
        "checkpoint of this package; or (--to-library) write a network's weights for another library.",
        "googlenet convert bvlc_googlenet.caffemodel --from caffe --out googlenet.safetensors",
    )
    parser.add_argument("file", help="weights file of another library; with --to-library, a run or a .safetensors file")
    direction = parser.add_mutually_exclusive_group(required=True)
    direction.add_argument(
        "--from", dest="source", metavar="LIBRARY",
        help="torchvision, timm, caffe, fid or pretrainedmodels; or one of its networks, such as timm:inception_v4, "
        "or published weights with their own preprocessing, such as timm:inception_v3.gluon_in1k",
    )  # fmt: skip
    direction.add_argument("--to-library", metavar="LIBRARY", help="write for this library instead")
    out_help = "output file: .safetensors, or .pth with --to-library"
    parser.add_argument("--out", required=True, metavar="FILE", help=out_help)
    parser.add_argument("--classes", metavar="FILE", help="class names, one per line, in the order of the outputs")
    parser.add_argument("--no-aux", action="store_true", help="drop auxiliary heads")
    args = parser.parse_args(argv)
    out = Path(args.out)
    if out.suffix not in ([".safetensors"] if args.source else [".safetensors", ".pth"]):
        parser.error(f"--out must be a .safetensors file{'' if args.source else ' or a .pth file'}, not {out.name}")
    if not out.parent.is_dir():
        parser.error(f"--out: folder {out.parent} does not exist")
    if args.classes and args.to_library:
        parser.error("--classes is only used with --from")
    (_read if args.source else _write)(args, out)


def _read(args: argparse.Namespace, out: Path) -> None:
    from ..checkpoint.format import write_checkpoint
    from ..checkpoint.interop.pretrained import convert_file
    from ..files import read_text

    classes = None
    if args.classes:
        classes = [line.strip() for line in read_text(Path(args.classes)).split("\n") if line.strip()]
    checkpoint = convert_file(Path(args.file), args.source, classes, aux=not args.no_aux)
    write_checkpoint(out, checkpoint)
    num_tensors = len(checkpoint.model.state_dict())
    parameters = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    name, num_classes = checkpoint.recipe.model.name, len(checkpoint.classes)
    document = {
        "out": str(out), "model": name, "keys": num_tensors, "parameters": parameters, "classes": num_classes,
        "preprocess": checkpoint.preprocess.to_dict(),
    }  # fmt: skip
    line = f"{out}: {name}, {num_tensors} tensors, {parameters:,} parameters, {num_classes} classes"
    print_result(args.json, document, [line, f"preprocessing: {_describe(checkpoint.preprocess)}"])


def _describe(preprocess: "Preprocess") -> str:
    mean, std = ([round(value, 4) for value in values] for values in (preprocess.mean, preprocess.std))
    squash = preprocess.crop_mode == "squash"
    crop = "squash" if squash else f"center crop of {preprocess.crop_pct:.4g} of the shorter side"
    return f"{crop}, resize to {preprocess.size} px ({preprocess.interpolation}), (x / 255 - {mean}) / {std}"


def _write(args: argparse.Namespace, out: Path) -> None:
    from ..checkpoint.interop.pretrained import export_tensors, write_tensors
    from ..checkpoint.load import load

    tensors = export_tensors(load(args.file, task="classification"), args.to_library, aux=not args.no_aux)
    write_tensors(out, tensors)
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    parameters = sum(tensor.numel() for key, tensor in tensors.items() if not key.endswith(buffers))
    document = {"out": str(out), "keys": len(tensors), "parameters": parameters}
    print_result(args.json, document, [f"{out}: {len(tensors)} tensors with the keys of {args.to_library}"])
