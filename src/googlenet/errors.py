"""What the package fails with beyond Python's own errors, and how it helps with a slip of the hand."""

import difflib
from collections.abc import Iterable


class FailedError(Exception):
    """A verb failed; the message is the last line that the user sees, empty where all is said."""


class InterruptedRunError(RuntimeError):
    """Training was asked to stop; everything is saved, and the message says how to go on."""


class NonFiniteLossError(ValueError):
    """Training diverged; the message names the first step whose loss is not a number."""


def nearest(word: str, known: Iterable[str]) -> str:
    """' (did you mean X or Y?)' for the closest of the known words; empty where none is close."""
    close = difflib.get_close_matches(word, list(known), n=2, cutoff=0.5)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
