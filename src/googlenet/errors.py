"""The package's exceptions, and suggestions for misspelled names."""

import difflib
from collections.abc import Iterable


class FailedError(Exception):
    """A command failed; the message is printed as the last line, unless it is empty."""


class InterruptedRunError(RuntimeError):
    """Training was interrupted; the state is saved and the message says how to resume."""


class NonFiniteLossError(ValueError):
    """Training diverged; the message names the first step with a non-finite loss."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ' (did you mean X or Y?)' with the closest known words, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=2, cutoff=0.5)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
