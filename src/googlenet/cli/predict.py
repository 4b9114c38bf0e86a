"""``googlenet predict``: classify images."""

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FailedError
from .common import add_engine_arguments, add_tta_arguments, make_parser, positive_int, resolve_sizes, warn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..inference.predict import Prediction, PredictOptions


def run(argv: list[str]) -> None:
    """Classify images."""
    parser = make_parser(
        "predict",
        "Classify images: files, folders, or - for one on standard input.",
        "googlenet predict runs/demo photo.jpg holiday/ --top-k 3",
    )
    add = parser.add_argument
    add("run", help="a run, ensemble or exported folder, a .safetensors file, or published weights such as "
        "torchvision:googlenet")  # fmt: skip
    add("images", nargs="+", metavar="IMAGE", help="an image file, a folder, or -")
    add("--top-k", type=positive_int, default=5, metavar="K", help="classes to print (default: 5)")
    add_tta_arguments(parser)
    add_engine_arguments(parser)
    add("--ray", action="store_true",
        help="for large folders: several workers under Ray, results as Parquet in --out")  # fmt: skip
    add("--out", metavar="DIR", help="with --ray: the output folder; an interrupted job resumes there")
    add("--workers", type=positive_int, metavar="N", help="with --ray: processes (default: one per core)")
    args = parser.parse_args(argv)
    if args.ray != bool(args.out) or (args.workers is not None and not args.ray):
        parser.error("--ray requires --out DIR, and --out and --workers require --ray")

    from ..evaluation.predictor import predictor_device
    from ..evaluation.progress import track
    from ..inference.loading import load_predictor
    from ..inference.multi_size import check_sizes
    from ..inference.predict import PredictOptions, expand_paths, predict_images
    from ..inference.tta import TTA
    from ..kernels import keep_freed_memory

    size = max(args.sizes) if args.sizes else args.size
    predictor = load_predictor(args.run, args.engine, args.threads, task="classification", size=size).predictor
    keep_freed_memory(predictor_device(predictor).type)
    sizes = resolve_sizes(args, predictor.preprocess.size)
    check_sizes(predictor.min_size, sizes, args.tta_shift)
    options = PredictOptions(args.top_k, tuple(sizes), TTA(args.tta_flip, args.tta_shift))
    if args.ray:
        _predict_with_ray(args, options)
    else:
        engine = f"{predictor.name}:{predictor.precision}"
        paths = expand_paths(args.images)
        _print(args, engine, track(predict_images(predictor, paths, options), len(paths), "images"))


def _print(args: argparse.Namespace, engine: str, predictions: "Iterator[Prediction]") -> None:
    """Print the predictions as they are computed; FailedError at the end if images could not be read."""
    documents, errors = [], 0
    for prediction in predictions:
        if prediction.error:
            errors += 1
            warn("predict", prediction.error)
            continue
        top = [item._asdict() for item in prediction.top]
        document = {"path": prediction.path, "top": top, "preprocessing": prediction.preprocessing, "engine": engine}
        if prediction.labels is not None:
            document["labels"] = prediction.labels
        documents.append(document)
        if not args.json:
            classes = "  ".join(f"{item.label} {item.probability:.3f}" for item in prediction.top)
            if prediction.labels is not None:
                classes = f"{', '.join(prediction.labels) or 'no label'} ({classes})"
            print(f"{prediction.path}: {classes}\n  ({prediction.preprocessing})")
    if args.json:
        print(json.dumps(documents, indent=2))
    raise_for_unreadable(errors, errors + len(documents))


def _predict_with_ray(args: argparse.Namespace, options: "PredictOptions") -> None:
    """Classify the images with several workers, to Parquet files, and print a summary."""
    from ..distributed.batch_predict import Job, predict_sharded
    from ..inference.predict import STDIN, expand_paths

    if STDIN in args.images:
        raise ValueError("--ray does not read standard input; name files and folders")
    # Ray's workers have another working directory.
    run = str(Path(args.run).absolute()) if Path(args.run).exists() else args.run
    paths = [str(Path(path).absolute()) for path in expand_paths(args.images)]
    workers = args.workers or os.cpu_count() or 1
    print(f"{len(paths):,} images, {workers} workers", file=sys.stderr)
    # Ray prints messages about workers to standard output, which is reserved for the result.
    with contextlib.redirect_stdout(sys.stderr):
        summary = predict_sharded(paths, Job(run, args.engine, options), Path(args.out).absolute(), workers)
    line = f"{args.out}: {summary.images:,} images, {summary.errors:,} with errors"
    if summary.resumed:
        line += f"; {summary.resumed} of {summary.shards} shards existed"
    print(json.dumps({"out": args.out, **summary._asdict()}, indent=2) if args.json else line)


def raise_for_unreadable(errors: int, total: int) -> None:
    """Raise FailedError if images could not be read; without a message if it was the only one, already reported."""
    if errors:
        raise FailedError(f"{errors} of {total} images could not be read" if total > 1 else "")
