"""Argument parsing and output that the commands share."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from ..errors import nearest
from ..export.backends import engine_names


class CommandParser(argparse.ArgumentParser):
    """An argument parser that reports wrong usage in one line instead of the full usage text."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def make_parser(command: str, description: str, example: str) -> CommandParser:
    """Return the parser of ``googlenet COMMAND`` with the arguments of every command."""
    parser = CommandParser(
        prog=f"googlenet {command}", description=description, epilog=f"example: {example}", allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON document on standard output")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def print_result(as_json: bool, document: Any, lines: Iterable[str]) -> None:
    """Print one JSON document, or lines of text."""
    print(json.dumps(document, indent=2) if as_json else "\n".join(lines))


def warn(command: str, message: str) -> None:
    """Print a message about one input on standard error."""
    print(f"googlenet {command}: {message}", file=sys.stderr)


def add_tta_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the image size and test-time augmentation: ``--size``, ``--sizes``, ``--tta-flip``, ``--tta-shift``."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--size", type=int, help="height and width in pixels (default: that of the run)")
    group.add_argument("--sizes", type=int_list, metavar="A,B,...", help="several sizes; probabilities are averaged")
    parser.add_argument("--tta-flip", action="store_true", help="also predict the horizontally flipped image")
    shift_help = "also predict the image shifted by N pixels up, down, left and right"
    parser.add_argument("--tta-shift", type=int, default=0, metavar="N", help=shift_help)


def add_data_arguments(parser: argparse.ArgumentParser, max_images: int | None = None) -> None:
    """Add the choice of data: ``--data``, ``--data-root``, ``--split``, ``--max-images``."""
    parser.add_argument("--data", metavar="SOURCE", help="data source (default: that of the run)")
    parser.add_argument("--data-root", metavar="DIR", help="folder to search for the data first")
    split_help = "default: test if there is one, else validation"
    parser.add_argument("--split", choices=["test", "validation", "train"], help=split_help)
    limit_help = f"use at most N images of each split (default: {'all' if max_images is None else max_images})"
    parser.add_argument("--max-images", type=positive_int, default=max_images, metavar="N", help=limit_help)


def add_engine_arguments(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Add the choice of inference engine: ``--engine`` and ``--threads``."""
    default_help = default or "the network as it was trained, or auto for an exported folder"
    parser.add_argument(
        "--engine", metavar="NAME", default=default,
        help=f"{', '.join(engine_names())}, or auto: the fastest on this machine whose predictions are within a "
        f"tolerance of float32's; :float32, :bfloat16, :float16 or :int8 selects a precision; default: {default_help}",
    )  # fmt: skip
    parser.add_argument("--threads", type=positive_int, metavar="N", help="threads of the engine (default: all cores)")


def int_list(text: str) -> list[int]:
    """Parse an argument such as "24,28,32"."""
    try:
        return [int(item) for item in text.split(",")]
    except ValueError:
        message = f"expected integers separated by commas, such as 24,28,32, not {text!r}"
        raise argparse.ArgumentTypeError(message) from None


def name_list(choices: Sequence[str]) -> Callable[[str], list[str]]:
    """Return the parser of an argument such as "onnx,openvino", whose names are in `choices`."""

    def parse(text: str) -> list[str]:
        for name in text.split(","):
            if name not in choices:
                message = f"unknown name {name!r}{nearest(name, choices)}; choose from {', '.join(choices)}"
                raise argparse.ArgumentTypeError(message)
        return text.split(",")

    return parse


def positive_int(text: str) -> int:
    """Parse an integer of 1 or more."""
    with suppress(ValueError):
        if (value := int(text)) >= 1:
            return value
    raise argparse.ArgumentTypeError(f"must be an integer of 1 or more, not {text!r}")


def resolve_sizes(args: argparse.Namespace, default: int) -> list[int]:
    """Return the sizes of ``--sizes`` or ``--size``, else the default."""
    return args.sizes or [default if args.size is None else args.size]


def check_writable(name: str, flag: str = "--out") -> Path:
    """Return an output folder, which may not exist yet; ValueError if it cannot be created or written to."""
    folder = Path(name)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: a file; name a folder with {flag}")
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(existing, os.W_OK):
        raise ValueError(f"{folder}: no write permission; name another folder with {flag}")
    return folder


def writable_folder(name: str, flag: str = "--out") -> Path:
    """Create an output folder; ValueError if that is impossible."""
    folder = check_writable(name, flag)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
