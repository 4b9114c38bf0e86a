"""The package's exceptions, and suggestions for misspelled names."""

import difflib
import dis
from collections.abc import Iterable
from pathlib import Path

PACKAGE = Path(__file__).parent


class FailedError(Exception):
    """A command failed; the message is printed as the last line, unless it is empty."""


class InterruptedRunError(RuntimeError):
    """Training was interrupted; the state is saved and the message says how to resume."""


class NonFiniteLossError(ValueError):
    """Training diverged; the message names the first step with a non-finite loss."""


def is_user_error(error: Exception) -> bool:
    """Return whether the message is for the user: a ValueError that a ``raise`` statement of this package raised.

    A library's ValueError, which Python or C code raises, is unexpected: it names neither the file nor the flag. An
    exception class of this package is for the user wherever it comes from, also from another process.
    """
    if type(error).__module__.partition(".")[0] == __package__:
        return True
    if not isinstance(error, ValueError) or error.__traceback__ is None:
        return False
    innermost = error.__traceback__
    while innermost.tb_next is not None:
        innermost = innermost.tb_next
    code = innermost.tb_frame.f_code
    raised = dis.opname[code.co_code[innermost.tb_lasti]] == "RAISE_VARARGS"
    return raised and Path(code.co_filename).is_relative_to(PACKAGE)


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ' (did you mean X or Y?)' with the closest known words, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=2, cutoff=0.5)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
