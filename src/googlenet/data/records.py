"""What was found out about a source once, and is kept in the cache: finding it out again would give the same."""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..cache import cache_folder
from ..files import write_atomically


def record_path(kind: str, about: bytes, suffix: str) -> Path:
    """Where the record of `kind` on what `about` identifies lies."""
    return cache_folder() / kind / f"{hashlib.sha256(about).hexdigest()[:24]}{suffix}"


def write_record(record: Path, content: bytes | str) -> None:
    """Keep `content`; where the cache cannot be written, say so and go on: it only costs time."""
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(record, content)
    except OSError as error:
        print(f"{record}: not kept for the next time ({error.strerror or error})", file=sys.stderr)


def remembered(kind: str, about: bytes, make: Callable[[], Any]) -> Any:
    """The JSON value on record, else what `make` returns, put on record; tuples come back as lists either way."""
    record = record_path(kind, about, ".json")
    try:
        return json.loads(record.read_text())
    except (OSError, ValueError):
        text = json.dumps(make())
        write_record(record, text)
        return json.loads(text)
