"""The command line: ``googlenet COMMAND ...``.

Standard output carries the result only (one JSON document with ``--json``), everything else goes to standard error.
Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

import atexit
import errno
import importlib
import io
import os
import sys
import traceback
from typing import NamedTuple, NoReturn

from .. import __version__
from ..errors import InterruptedRunError, is_user_error, nearest
from .start import start_text

INTERRUPTED = 130


class Command(NamedTuple):
    """A command: the module whose ``run(argv)`` executes it, imported when it is used, and a line of help."""

    module: str
    help: str


# A new command is one module and one line here.
COMMANDS: dict[str, Command] = {
    "demo": Command("googlenet.cli.demo", "Train on Fashion-MNIST and classify sample images."),
    "doctor": Command("googlenet.cli.doctor", "Report CPU features, kernels, engines and optional packages."),
    "models": Command("googlenet.cli.models", "List the networks."),
    "summary": Command("googlenet.cli.summary", "Show the layers, parameters and operations of a network."),
    "download": Command("googlenet.cli.download", "Download a data set."),
    "scenes": Command("googlenet.cli.scenes", "Generate images with labeled boxes to train detectors on."),
    "check": Command("googlenet.cli.check", "Decode every image of a data set, and report what is usable."),
    "train": Command("googlenet.cli.train", "Train a network as a recipe says."),
    "tune": Command("googlenet.cli.tune", "Search for better values of a recipe within a time."),
    "ensemble": Command("googlenet.cli.ensemble", "Train several networks whose predictions are averaged."),
    "evaluate": Command("googlenet.cli.evaluate", "Measure a trained network."),
    "fid": Command("googlenet.cli.fid", "Compare generated with real images: FID, KID and related metrics."),
    "predict": Command("googlenet.cli.predict", "Classify images."),
    "explain": Command("googlenet.cli.explain", "Visualize and analyze a trained network."),
    "detect": Command("googlenet.cli.detect", "Detect objects on images."),
    "export": Command("googlenet.cli.export", "Export a trained network for other programs."),
    "benchmark": Command("googlenet.cli.benchmark", "Measure inference speed in each engine."),
    "serve": Command("googlenet.cli.serve", "Serve a trained network over HTTP."),
    "convert": Command("googlenet.cli.convert", "Convert weights from or to other libraries."),
}


def usage() -> str:
    """Return the help text of the program."""
    commands = "\n".join(f"  {name:<10}{command.help}" for name, command in COMMANDS.items())
    details = "googlenet COMMAND --help describes each command."
    example = "example: googlenet train fashion-mnist-fast --out runs/first"
    return f"usage: googlenet COMMAND ...\n\n{commands}\n\n{details}\n{example}"


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    # File names may contain any bytes; the undecodable ones are printed as escapes.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if argv and argv[0] in ("-h", "--help", "--version"):
        print(__version__ if argv[0] == "--version" else usage())
        return 0
    if not argv:
        print(start_text())
        return 0
    if argv[0] not in COMMANDS:
        problem = f"unknown command {argv[0]!r}{nearest(argv[0], COMMANDS)}"
        print(f"googlenet: {problem}; the commands are {', '.join(COMMANDS)} (see googlenet --help)", file=sys.stderr)
        return 2
    name, arguments = argv[0], argv[1:]
    try:
        importlib.import_module(COMMANDS[name].module).run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"googlenet {name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has closed it, as `| head` does. That is not an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        if message := describe_error(error):
            print(f"googlenet {name}: {message}", file=sys.stderr)
        return INTERRUPTED if isinstance(error, InterruptedRunError) else 1
    return 0


def run() -> NoReturn:
    """Run the program: the entry point of the console script and of launchers."""
    code = main()
    # Run the exit hooks, then end the process without the interpreter's shutdown: it frees every object, which takes
    # half a second, and communication threads of several processes sometimes abort a finished run in it.
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:  # the disk is full, or the reader has closed the output
            code = code or int(not isinstance(error, BrokenPipeError))
            if stream is sys.stdout and code:
                print(f"googlenet: standard output: {error.strerror}", file=sys.stderr)
    os._exit(code)


def describe_error(error: Exception) -> str:
    """Describe an error in one line: what is wrong and what to do."""
    message = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        path, advice = f"{error.filename}: " if error.filename else "", ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = "; free some space, and continue an interrupted run with --resume"
        elif isinstance(error, PermissionError) or error.errno == errno.EROFS:
            advice = "; choose a path with write permission"
        return f"{path}{error.strerror}{advice}"
    if is_user_error(error):
        return message
    return f"unexpected {type(error).__name__}: {message} (--debug shows the traceback)"
