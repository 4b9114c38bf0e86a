"""The networks that a server answers with, and how a new version takes an old one's place.

A request keeps the version that it began with; the next one gets the new one. So nothing is lost, and no answer is
half of each.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import nearest
from ..description import NAME as DESCRIPTION
from ..engine import Engine, TorchEngine
from ..parity import whole_numbers
from .errors import RequestError
from .metrics import Metrics

log = logging.getLogger("googlenet.serve")

# What says that a run, a file of weights or an exported folder is another one now.
WATCHED = ("model.safetensors", DESCRIPTION)


class Explained(NamedTuple):
    """The class that was explained, its `logits` (classes,), and `values` (h, w): what each position adds to its."""

    label: int
    logits: Tensor
    values: Tensor


# float pixels 0..255 (1, channels, h, w), and a class or None for the best one.
Explain = Callable[[Tensor, int | None], Explained]


class Opened(NamedTuple):
    """What a place holds: an engine, the least height and width it takes, and how it explains itself, if it can."""

    engine: Engine
    min_size: int
    explain: Explain | None = None


@dataclass(frozen=True, eq=False)
class Model:
    """One version of one model. `version` counts from 1; `since` is a Unix time."""

    name: str
    version: int
    engine: Engine
    min_size: int
    explain: Explain | None
    since: float

    def compute(self, pixels: list[Tensor]) -> list[Tensor]:
        """Pixels of equal shape, each (1, channels, h, w) -> logits of each, (classes,)."""
        return list(self.engine(torch.cat(pixels)))

    def as_taken(self, pixels: Tensor) -> Tensor:
        """Float pixels 0..255 as this engine takes them: a run's own network as they are, a file in bytes."""
        return pixels if isinstance(self.engine, TorchEngine) else whole_numbers(pixels)

    def suggested_sizes(self, most: int) -> list[int]:
        """Some sizes about the native one, for someone who wants to compare."""
        native = self.engine.preprocess.size
        near = {max(self.min_size, min(most, round(native * factor))) for factor in (0.75, 1.0, 1.25, 1.5)}
        return sorted(near | {native})


class Models:
    """The current version of every model, by name. `open_model` reads a place; it is called in a thread."""

    def __init__(self, places: Mapping[str, str], open_model: Callable[[str], Opened], metrics: Metrics):
        self.places = dict(places)
        self.default = next(iter(self.places))
        self._open, self._metrics = open_model, metrics
        self._marks = {name: _mark(place) for name, place in self.places.items()}
        self._locks = {name: asyncio.Lock() for name in self.places}
        self._current = {name: self._opened(name, 1) for name in self.places}

    def get(self, name: str | None = None) -> Model:
        """The version that answers now; of the first model where no name is given. RequestError (404) for another."""
        name = name or self.default
        if name not in self._current:
            known = ", ".join(self._current)
            raise RequestError(404, f"no model is called {name!r}{nearest(name, self._current)}; there are {known}")
        return self._current[name]

    def all(self) -> list[Model]:
        """Every current version, in the order of the command line."""
        return list(self._current.values())

    async def reload(self, name: str) -> Model:
        """Read the model's place again; from the return on, requests get that version. The old one stays if it fails.

        RequestError (409) says why it could not be used.
        """
        old = self.get(name)
        async with self._locks[name]:
            self._marks[name] = _mark(self.places[name])
            number = self._current[name].version + 1
            try:
                new = await asyncio.to_thread(self._opened, name, number)
            except Exception as error:
                self._metrics.reloads.labels(name, "failed").inc()
                log.warning("%s: version %d stays: %s", name, old.version, error)
                raise RequestError(409, f"version {old.version} of {name} stays: {error}") from error
            self._current[name] = new
            self._metrics.reloads.labels(name, "loaded").inc()
            log.info("%s: version %d", name, number)
            return new

    async def watch(self, every: float) -> None:
        """Reload whatever has changed on disk; look `every` so many seconds, until cancelled."""
        while True:
            await asyncio.sleep(every)
            for name, place in self.places.items():
                mark = _mark(place)
                if mark and mark != self._marks[name]:
                    try:
                        await self.reload(name)
                    except RequestError:
                        continue  # said and counted; it is tried again when the file changes again

    def _opened(self, name: str, version: int) -> Model:
        opened = self._open(self.places[name])
        engine = opened.engine
        size = max(engine.preprocess.size, opened.min_size)
        # The first answer is slow, and shows whether there is one at all: not at a client's cost.
        logits = engine(torch.zeros(1, engine.preprocess.channels, size, size, dtype=torch.uint8))
        if logits.shape != (1, len(engine.classes)):
            raise ValueError(f"{name}: the network has {logits.shape[-1]} outputs for {len(engine.classes)} classes")
        self._metrics.versions.labels(name).set(version)
        return Model(name, version, engine, opened.min_size, opened.explain, time.time())


def _mark(place: str) -> tuple[tuple[int, int, int], ...]:
    """Changes whenever a file of the place is replaced; empty where there is none to watch."""
    folder = Path(place)
    found = []
    for path in [folder / name for name in WATCHED] if folder.is_dir() else [folder]:
        try:
            about = path.stat()
        except OSError:
            continue
        found.append((about.st_mtime_ns, about.st_size, about.st_ino))
    return tuple(found)
