"""What the verbs share: how they read their arguments and print their answers."""

import argparse
import json
from collections.abc import Iterable
from typing import Any, NoReturn


class VerbParser(argparse.ArgumentParser):
    """Says wrong usage in one line, instead of the whole usage text."""

    def error(self, message: str) -> NoReturn:
        """Print the line and exit with 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def verb_parser(verb: str, what: str, example: str) -> VerbParser:
    """The parser of ``googlenet VERB``, with what every verb takes."""
    parser = VerbParser(
        prog=f"googlenet {verb}",
        description=what,
        epilog=f"example: {example}",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def answer(as_json: bool, document: Any, lines: Iterable[str]) -> None:
    """Print one JSON document, or lines for a person."""
    print(json.dumps(document, indent=2) if as_json else "\n".join(lines))


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """The arguments of a verb that looks at pictures: ``--size``, ``--sizes``, ``--flip``, ``--shift``."""
    one_of = parser.add_mutually_exclusive_group()
    one_of.add_argument("--size", type=int, help="height and width in pixels (default: the run's)")
    one_of.add_argument("--sizes", type=whole_numbers, metavar="A,B,...", help="several; probabilities are averaged")
    parser.add_argument("--flip", action="store_true", help="average each picture with its mirror image")
    parser.add_argument(
        "--shift", type=int, default=0, metavar="N",
        help="average each picture with itself moved by N pixels up, down, left and right",
    )  # fmt: skip


def whole_numbers(text: str) -> list[int]:
    """ "24,28,32" -> [24, 28, 32], for an argument's type."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"whole numbers and commas, such as 24,28,32, not {text!r}") from None


def chosen_sizes(args: argparse.Namespace, usual: int) -> list[int]:
    """The sizes that were asked for, else the `usual` one."""
    return args.sizes or [usual if args.size is None else args.size]
