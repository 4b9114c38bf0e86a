"""``googlenet predict --ray``: a large folder, by several workers, to Parquet files."""

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .asked_run import asked_run
from .command import answer

if TYPE_CHECKING:
    from ..deployment.ray_predicting import Answers
    from ..evaluation.predict import Answer


def add_ray(parser: argparse.ArgumentParser) -> None:
    """The arguments ``--ray``, ``--out`` and ``--workers``."""
    parser.add_argument(
        "--ray", action="store_true", help="for large folders: several workers under Ray, results as Parquet in --out"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="with --ray: the folder of the results; a second try goes on there"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="with --ray: processes (default: one per core)")


def predict_in_parts(args: argparse.Namespace, sizes: Sequence[int]) -> None:
    """Answer for all the pictures that `args` name; print what was done."""
    import os

    from ..deployment import ray_predicting
    from ..evaluation.predict import STANDARD_INPUT, expand

    if STANDARD_INPUT in args.images:
        raise ValueError("--ray reads files and folders, not standard input")
    run, engine, top = str(Path(args.run).absolute()), args.engine, args.top
    run = run if Path(run).exists() else args.run
    paths = [str(Path(path).absolute()) for path in expand(args.images)]
    workers = args.workers or os.cpu_count() or 1
    views = {"flip": args.flip, "shift": args.shift}
    about = {"run": run, "top": top, "sizes": list(sizes), **views, "engine": engine}

    def ready() -> "Answers":
        return answers_of(run, engine, top, list(sizes), **views)

    print(f"{len(paths):,} pictures, {workers} workers", file=sys.stderr)
    # Ray tells of workers that died on standard output, which is for the answer alone.
    with contextlib.redirect_stdout(sys.stderr):
        done = ray_predicting.predict_in_parts(paths, ready, about, Path(args.out).absolute(), workers)
    document = {"out": args.out, **done._asdict()}
    again = f", {done.resumed} of {done.parts} parts were there" if done.resumed else ""
    answer(
        args.json, document, [f"{args.out}: {done.pictures:,} pictures, {done.problems:,} could not be used{again}"]
    )


def answers_of(
    run: str, engine: str | None, top: int, sizes: Sequence[int], flip: bool = False, shift: int = 0
) -> "Answers":
    """What answers in one worker: the run, with one thread."""
    import torch

    from ..evaluation.predict import predict_pictures

    torch.set_num_threads(1)
    checkpoint = asked_run(run, engine, 1 if engine else None)

    def answers(paths: Sequence[str]) -> "Iterator[Answer]":
        return predict_pictures(
            checkpoint.model, checkpoint.preprocess, checkpoint.classes, paths,
            top=top, sizes=sizes, flip=flip, shift=shift,
        )  # fmt: skip

    return answers
