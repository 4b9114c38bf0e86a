"""The command line: ``googlenet VERB ...``. One verb, one function of `verbs`; this file calls it and ends in order.

Standard output carries the answer only (one JSON document with ``--json``); everything else goes to standard
error. Exit codes: 0 done, 1 it failed, 2 wrong usage.
"""

import atexit
import errno
import io
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from . import verbs
from .errors import FailedError, InterruptedRunError, nearest

VERBS: dict[str, Callable[[list[str]], None]] = {
    "models": verbs.models,
    "summary": verbs.summary,
    "fetch": verbs.fetch,
    "train": verbs.train,
    "ensemble": verbs.ensemble,
    "evaluate": verbs.evaluate,
    "predict": verbs.predict,
    "explain": verbs.explain,
    "detect": verbs.detect,
    "export": verbs.export,
    "benchmark": verbs.benchmark,
    "serve": verbs.serve,
    "convert": verbs.convert,
}


def _usage() -> str:
    verbs = "\n".join(f"  {name:<10}{(function.__doc__ or '').strip()}" for name, function in VERBS.items())
    return (
        f"usage: googlenet VERB ...\n\n{verbs}\n\ngooglenet VERB --help explains each, with an example.\n"
        "example: googlenet train fashion-mnist-fast --out runs/first"
    )


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    # File names may be of any bytes; they are printed as far as they can be read.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if argv and argv[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if argv and argv[0] == "--version":
        from . import __version__

        print(__version__)
        return 0
    if not argv or argv[0] not in VERBS:
        what = f"no verb is called {argv[0]!r}{nearest(argv[0], VERBS)}" if argv else "name a verb"
        print(f"googlenet: {what}; there are {', '.join(VERBS)} (see googlenet --help)", file=sys.stderr)
        return 2
    try:
        VERBS[argv[0]](argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"googlenet {argv[0]}: interrupted", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of our output has gone, as `| head` does: no error, and nothing more to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if "--debug" in argv:
            traceback.print_exc()
        if line := _one_line(error):
            print(f"googlenet {argv[0]}: {line}", file=sys.stderr)
        return 1
    return 0


def run() -> NoReturn:
    """What a shell or a launcher starts: `main`, and its exit code."""
    code = main()
    if {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        # Threads that talked to the other processes are still about while Python takes itself apart, and now and then
        # abort a run that has ended well. So what is registered for the end is run, and then there is an end.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


_PLACE = "; name a place that you may write to"
_SPACE = "; free some space, and continue an interrupted run with --resume"
_WHAT_TO_DO = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EACCES: _PLACE,
    errno.EPERM: _PLACE,
    errno.EROFS: _PLACE,
}


def _one_line(error: Exception) -> str:
    """What went wrong and what to do, in one line."""
    message = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}{_WHAT_TO_DO.get(error.errno or 0, '')}"
    if isinstance(error, ValueError | FailedError | InterruptedRunError):
        return message
    return f"unexpected {type(error).__name__}: {message} (--debug shows where)"


if __name__ == "__main__":
    run()
