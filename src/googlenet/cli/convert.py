"""``googlenet convert``: convert weights from and to other libraries."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .common import CommandParser, make_parser, positive_int, print_result, warn

if TYPE_CHECKING:
    from ..data.preprocess import Preprocess

PREPROCESSING = ("transform_input", "mean", "std", "size", "crop_pct", "interpolation")


def run(argv: list[str]) -> None:
    """Parse the arguments, convert, and print a summary."""
    parser = make_parser(
        "convert",
        "Convert weights of torchvision, timm, Keras, Caffe, pretrainedmodels or FID, with their preprocessing, to a\n"
        "checkpoint of this package; or (--to-library) write a network's weights for another library.",
        "googlenet convert bvlc_googlenet.caffemodel --from caffe --out googlenet.safetensors",
    )
    file_help = "weights file of another library, or a folder with one; with --to-library, a run or a .safetensors file"
    parser.add_argument("file", help=file_help)
    direction = parser.add_mutually_exclusive_group(required=True)
    direction.add_argument(
        "--from", dest="source", metavar="LIBRARY",
        help="torchvision, timm, keras, caffe, fid or pretrainedmodels; or one of its networks, such as "
        "timm:inception_v4, or published weights with their own preprocessing, such as timm:inception_v3.gluon_in1k",
    )  # fmt: skip
    direction.add_argument("--to-library", metavar="LIBRARY", help="write for this library instead")
    out_help = "output file: .safetensors, or .pth with --to-library"
    parser.add_argument("--out", required=True, metavar="FILE", help=out_help)
    parser.add_argument("--classes", metavar="FILE", help="class names, one per line, in the order of the outputs")
    parser.add_argument("--no-aux", action="store_true", help="drop auxiliary heads")
    _add_preprocessing(parser)
    args = parser.parse_args(argv)
    out = Path(args.out)
    if out.suffix not in ([".safetensors"] if args.source else [".safetensors", ".pth"]):
        parser.error(f"--out must be a .safetensors file{'' if args.source else ' or a .pth file'}, not {out.name}")
    if not out.parent.is_dir():
        parser.error(f"--out: folder {out.parent} does not exist")
    if args.to_library and (args.classes or any(getattr(args, key) is not None for key in PREPROCESSING)):
        parser.error("--classes and the options of preprocessing are only used with --from")
    if args.transform_input is not None and not str(args.source).startswith("torchvision"):
        parser.error("--transform-input is an option of torchvision's networks; use --mean and --std")
    if args.transform_input is not None and (args.mean or args.std):
        parser.error("--transform-input determines mean and std: leave out --mean and --std")
    (_read if args.source else _write)(args, out)


def _add_preprocessing(parser: CommandParser) -> None:
    group = parser.add_argument_group("preprocessing that the weights were trained with (default: that of the library)")
    group.add_argument(
        "--transform-input", action=argparse.BooleanOptionalAction,
        help="torchvision: whether the network has transform_input=True, as all with published weights (default), or "
        "False, as one trained from the start with ImageNet's mean and std",
    )  # fmt: skip
    group.add_argument("--mean", type=_numbers, metavar="R,G,B", help="in (x / 255 - mean) / std")
    group.add_argument("--std", type=_numbers, metavar="R,G,B", help="in (x / 255 - mean) / std")
    group.add_argument("--size", type=positive_int, help="input height and width in pixels")
    crop_help = "side of the center crop as a fraction of the shorter side, in (0, 1]"
    group.add_argument("--crop-pct", type=float, metavar="F", help=crop_help)
    group.add_argument("--interpolation", choices=["bilinear", "bicubic"], help="for resizing")


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(item) for item in text.split(","))
    except ValueError:
        message = f"expected numbers separated by commas, such as 0.485,0.456,0.406, not {text!r}"
        raise argparse.ArgumentTypeError(message) from None


def _read(args: argparse.Namespace, out: Path) -> None:
    from ..checkpoint.format import write_checkpoint
    from ..checkpoint.interop.pretrained import HALF, IMAGENET_MEAN, IMAGENET_STD, convert_file, override_preprocess
    from ..files import read_text

    classes = None
    if args.classes:
        classes = [line.strip() for line in read_text(Path(args.classes)).split("\n") if line.strip()]
    checkpoint = convert_file(Path(args.file), args.source, classes, aux=not args.no_aux)
    options = {key: getattr(args, key) for key in PREPROCESSING if key != "transform_input"}
    if args.transform_input is not None:
        options["mean"], options["std"] = (HALF, HALF) if args.transform_input else (IMAGENET_MEAN, IMAGENET_STD)
        if checkpoint.preprocess.channels == 1:
            options |= {key: (sum(options[key]) / 3,) for key in ("mean", "std")}
    checkpoint = override_preprocess(checkpoint, **options)
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
    if args.mean is None and args.transform_input is None:
        torchvision = args.source.startswith("torchvision")
        network = (
            "transform_input=True, as networks with published weights" if torchvision else "the library's usual mean"
        )
        advice = "--no-transform-input" if torchvision else "--mean and --std"
        warn("convert", f"assumed {network}; if the network was trained with other pixels, use {advice}")


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
