"""Each picture of a streamed source decoded once, so that a run knows before its first step which can be used."""

import hashlib
import io
import os
import sys
import time
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .dataset import Split, Unreadable
from .pictures import PictureError, read_picture
from .records import record_path, write_record
from .stream import Places, Stream

GROUP = 256
# Seconds between two words on how far it is.
PATIENCE = 10.0


class Checked(NamedTuple):
    """Of each picture whether it is `usable`, and `grey`; the `reasons` of those that are not usable, in order."""

    usable: NDArray[np.bool_]
    grey: NDArray[np.bool_]
    reasons: list[str]


class Read(NamedTuple):
    """The pictures of a split that can be used, whether all are grey, and why others were `skipped`."""

    split: Split
    all_grey: bool
    skipped: list[str]


def checked_split(split: Split, unreadable: Unreadable, source: str) -> Read:
    """A streamed split without the pictures that cannot be used; with ``refuse`` these raise PictureError.

    `source` names the place of the record in the cache.
    """
    assert isinstance(split.images, Stream)
    usable, grey, reasons = check_pictures(split.images.places, split.names, source)
    if reasons and unreadable == "refuse":
        raise PictureError(reasons[0])
    return Read(split.select(torch.from_numpy(usable)), bool(grey[usable].all()), reasons)


def check_pictures(places: Places, names: Sequence[str], source: str) -> Checked:
    """Decode every picture, JPEGs at an eighth, and remember the good ones in the cache.

    The next call for `source` decodes only what is new, was changed since, or was not usable. An interrupted call
    keeps what it has seen. Says on standard error how far it is, where it takes long.
    """
    record = record_path("checked", source.encode(), ".npz")
    stamps = picture_stamps(places)
    usable, grey = _known(record, stamps)
    unknown = np.flatnonzero(~usable)
    reasons = {}
    groups = [unknown[start : start + GROUP] for start in range(0, len(unknown), GROUP)]
    spoke, done = time.monotonic(), 0

    def look(rows: NDArray[np.int64]) -> list[bool | str]:
        return [_look(places, row, names[row]) for row in rows.tolist()]

    try:
        # Pillow decodes without the interpreter's lock, so threads are enough.
        with ThreadPoolExecutor() as pool:
            try:
                for rows, found in zip(groups, pool.map(look, groups), strict=True):
                    for row, verdict in zip(rows.tolist(), found, strict=True):
                        if isinstance(verdict, str):
                            reasons[row] = verdict
                        else:
                            usable[row], grey[row] = True, verdict
                    done += len(rows)
                    if time.monotonic() - spoke > PATIENCE:
                        spoke = time.monotonic()
                        print(f"checking the pictures, once: {done:,} of {len(unknown):,}", file=sys.stderr)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        if done:
            _remember(record, stamps[usable], grey[usable])
    return Checked(usable, grey, [reasons[row] for row in sorted(reasons)])


def _look(places: Places, row: int, name: str) -> bool | str:
    """Whether the picture is grey, or why it cannot be used."""
    try:
        return read_picture(places.read(row), name, least=1).mode == "L"
    except PictureError as error:
        return str(error)


def picture_stamps(places: Places) -> NDArray[np.uint64]:
    """A number for each picture that changes when its file does."""
    files = {}
    for number in np.unique(places.file).tolist():
        path = bytes(places.files[number])
        try:
            about = os.stat(os.fsdecode(path))
            files[number] = b"%b|%d|%d" % (path, about.st_mtime_ns, about.st_size)
        except OSError:
            files[number] = path
    parts = zip(places.file.tolist(), places.start.tolist(), places.size.tolist(), strict=True)
    digests = (hashlib.blake2b(b"%b|%d|%d" % (files[n], a, b), digest_size=8).digest() for n, a, b in parts)
    return np.frombuffer(b"".join(digests), np.uint64)


def _known(record: Path, stamps: NDArray[np.uint64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Of each stamp whether the record has it as good, and as grey."""
    nothing = np.zeros(len(stamps), np.bool_), np.zeros(len(stamps), np.bool_)
    try:
        with np.load(record, allow_pickle=False) as file:
            seen, seen_grey = file["stamps"], file["grey"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return nothing
    if not len(seen) or len(seen) != len(seen_grey):
        return nothing
    place = np.searchsorted(seen, stamps).clip(max=len(seen) - 1)
    good = seen[place] == stamps
    return good, good & seen_grey[place]


def _remember(record: Path, stamps: NDArray[np.uint64], grey: NDArray[np.bool_]) -> None:
    order = np.argsort(stamps)
    content = io.BytesIO()
    np.savez(content, stamps=stamps[order], grey=grey[order])
    write_record(record, content.getvalue())
