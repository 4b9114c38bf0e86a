"""``googlenet export``: export a trained network for other programs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..export.backends import BACKENDS, formats_with
from .common import CommandParser, int_list, make_parser, name_list, positive_int, print_result

if TYPE_CHECKING:
    from ..export.exporter import ExportResult


def run(argv: list[str]) -> None:
    """Export a network."""
    parser = _parser()
    args = parser.parse_args(argv)
    _check_usage(parser, args)

    from ..checkpoint.load import load
    from ..export.exporter import ExportOptions, QuantizationConfig, check_capabilities, check_output_dir, export
    from .export_data import select_export_data

    out, checkpoint = Path(args.out), load(args.run)
    int8 = {key: getattr(args, key) for key in QuantizationConfig._fields if getattr(args, key) is not None}
    config = QuantizationConfig(**int8) if args.int8 else None
    options = ExportOptions(args.softmax, config, args.threads, args.sizes or (), args.fixed_size)
    check_output_dir(out)
    try:
        check_capabilities(checkpoint, args.format, options)
    except ValueError as error:
        parser.error(str(error))
    data = select_export_data(checkpoint, args.data, args.data_root, args.images, args.max_images)
    _print(args, export(checkpoint, data, out, args.format, options))


def _parser() -> CommandParser:
    int8 = " and ".join(formats_with("int8"))
    parser = make_parser(
        "export",
        "Export a trained network to a folder that does not need this package: model files that take raw 8-bit\n"
        "pixels, a manifest (model.json), an example for each engine, and the differences from PyTorch.\n"
        f"Formats: {'; '.join(f'{name} ({b.title}, {b.suffix})' for name, b in BACKENDS.items())}.",
        "googlenet export runs/demo --format onnx,openvino --out demo-exported",
    )
    add = parser.add_argument
    add("run", help="a run folder, a .safetensors file, or published weights such as torchvision:googlenet")
    add("--format", required=True, type=name_list(list(BACKENDS)), metavar="A,B,...", help=", ".join(BACKENDS))
    add("--out", required=True, metavar="DIR", help="output folder; an older export is replaced")
    add("--softmax", action="store_true", help="output probabilities instead of logits")
    add("--fixed-size", action="store_true", help="accept only images of the network's own size, not of any size")
    add("--int8", action="store_true",
        help=f"also quantize to 8-bit integers ({int8}): faster, slightly less accurate")  # fmt: skip
    add("--max-accuracy-drop", type=float, metavar="F",
        help="accuracy (top-1 or, of a detector, AP; 0..1) that int8 may lose on the test set; nothing is written if "
        "it loses more (default: 0.003, of a detector 0.01)")  # fmt: skip
    add("--calibration-images", type=positive_int, metavar="N",
        help="training images to calibrate int8 (default: 300)")  # fmt: skip
    add("--data", metavar="SOURCE", help="images to measure the accuracy on (default: of the run)")
    add("--data-root", metavar="DIR", help="folder to search for the data first")
    add("--max-images", type=positive_int, metavar="N", help="use at most N images of each split")
    add("--images", metavar="DIR", help="compare on these unlabeled images, without measuring the accuracy")
    add("--threads", type=positive_int, metavar="N", help="threads of the engines (default: all cores)")
    add("--sizes", type=int_list, metavar="A,B,...",
        help="for a detector: longer sides of the images in pixels; the boxes of several are merged (default: those "
        "of the run)")  # fmt: skip
    return parser


def _check_usage(parser: CommandParser, args: argparse.Namespace) -> None:
    drop = args.max_accuracy_drop
    for wrong, message in (
        (args.int8 and args.images, "--int8 needs labeled images: replace --images by --data"),
        (not args.int8 and (drop is not None or args.calibration_images is not None),
         "--max-accuracy-drop and --calibration-images require --int8"),
        (drop is not None and not 0 <= drop < 1, "--max-accuracy-drop must be in [0, 1)"),
        (args.images and args.data, "--images and --data exclude each other"),
        (args.sizes and min(args.sizes) < 1, "--sizes must be 1 or more"),
    ):  # fmt: skip
        if wrong:
            parser.error(message)


def _print(args: argparse.Namespace, result: "ExportResult") -> None:
    manifest, parity, accuracy = result.manifest, result.parity, dict(result.manifest.accuracy)
    paths = [str(result.folder / name) for name in result.files]
    document: dict[str, Any] = {"out": str(result.folder), "files": paths, "max_error": result.max_error}
    lines = [f"{result.folder}: {', '.join(result.files)}"]
    if manifest.output == "boxes":
        score_error = max(row["max_score_error"] for row in parity["rows"])
        document |= {"max_score_error": score_error, "images": parity["images"]}
        document |= {"max_error_by_engine": dict(manifest.max_error), "accuracy": accuracy}
        errors = f"{result.max_error:.1e} pixels and {score_error:.1e} of the score"
        lines.append(f"differs from PyTorch by at most {errors}, on {parity['images']} images")
    else:
        by_engine = dict(manifest.max_error)
        document |= {"max_error_by_engine": by_engine, "top1": result.top1, "accuracy": accuracy}
        lines += [f"{name:<12} differs from PyTorch by at most {error:.1e}" for name, error in by_engine.items()]
    for name, metrics in accuracy.items():
        values = [
            f"{title} {metrics[key]:.4f}"
            for key, title in (("top1", "top-1"), ("map", "mAP"), ("ap", "AP"))
            if key in metrics
        ]
        lines.append(f"{name:<12} {' '.join(values)} on {metrics['images']:,} images, {metrics['on']}")
    print_result(args.json, document, lines)
