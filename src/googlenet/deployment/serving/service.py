"""A question about pictures -> its answer: decode, queue, compute, and what that took."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...models.ensemble import average_logits
from .batching import Batcher, Done
from .decoding import Decoded, Decoder
from .errors import RequestError
from .limits import Limits, Room, Stay
from .metrics import Metrics
from .models import Model, Models
from .overlay import draw
from .requests import Picture, Question


class Seconds(NamedTuple):
    """Where a picture's time went: decoded and resized; waiting for a thread or for others; in the network."""

    decode: float
    queue: float
    compute: float


class Service:
    """Everything behind the routes. `threads` compute; as many decode, each by itself."""

    def __init__(self, models: Models, limits: Limits, metrics: Metrics, threads: int):
        self.models, self.limits, self.metrics = models, limits, metrics
        self.room = Room(limits.queue, limits.memory)
        self.batcher = Batcher(
            limits.max_wait, lambda: torch.set_num_threads(threads), lambda size, _: metrics.batches.observe(size)
        )
        self.decoder = Decoder(threads, limits.max_pixels)
        self.ready = False
        metrics.watch("googlenet_pictures_accepted", "Pictures accepted, not answered", lambda: self.room.pictures)
        metrics.watch("googlenet_memory_accepted_bytes", "Bytes of them", lambda: self.room.memory)
        metrics.watch("googlenet_pictures_waiting", "Pictures decoded, in no batch", lambda: self.batcher.waiting)

    async def start(self) -> None:
        """Begin to answer."""
        await self.batcher.start()
        self.ready = True

    async def stop(self) -> None:
        """Answer nothing any more; awaited when no request is left."""
        self.ready = False
        await self.batcher.stop()
        self.decoder.close()

    async def predict(self, question: Question, stay: Stay) -> dict[str, Any]:
        """The answer to ``/v1/predict``: per picture the best classes, averaged over the sizes as `predict` does."""
        model = self.models.get(question.model)
        sizes = self.sizes_of(model, question)
        stay.take(pictures=len(question.pictures) - 1)
        answers = await _together(
            [self._one(model, picture, sizes, question.top, stay) for picture in question.pictures]
        )
        return {"model": model.name, "version": model.version, "images": answers}

    async def explain(self, question: Question, stay: Stay) -> dict[str, Any]:
        """The answer to ``/v1/explain``: the picture as the network sees it, and the class activation map over it."""
        model = self.models.get(question.model)
        if model.explain is None:
            raise RequestError(422, f"{model.name} is an exported file; class activation maps need a run")
        if len(question.pictures) != 1 or len(question.sizes) > 1:
            raise RequestError(422, "one picture at one size is explained at a time")
        classes = model.engine.classes
        if question.label is not None and question.label not in classes:
            raise RequestError(422, f"label: {model.name} has no class {question.label!r}; /v1/models lists them")
        label = None if question.label is None else classes.index(question.label)
        sizes = self.sizes_of(model, question)
        started = time.perf_counter()
        picture = await self._decoded(model, question.pictures[0], sizes, stay)
        explain, (pixels,) = model.explain, picture.pixels
        key = (model, "explain")
        done = await self.batcher.answer(key, lambda items: [explain(*item) for item in items], (pixels, label), 1)
        found = done.value
        seconds = self._seconds(started, picture, [done])
        drawn = await self.decoder.run(draw, pixels[0], found.values)
        return {
            "model": model.name,
            "version": model.version,
            "label": classes[found.label],
            "probability": found.logits.double().softmax(0)[found.label].item(),
            "size": sizes[0],
            "map": [list(found.values.shape), [round(value, 6) for value in found.values.flatten().tolist()]],
            "did": picture.did,
            "seconds": seconds._asdict(),
            **drawn,
        }

    async def logits(self, model: Model, pixels: Tensor) -> tuple[Tensor, Sequence[Done]]:
        """Pixels (n, channels, h, w) as the engine takes them -> logits (n, classes); each joins others' batches."""
        area = pixels.shape[-2] * pixels.shape[-1]
        # Larger pictures in smaller batches: what a batch takes of memory is bounded by that at the native size.
        most = max(1, min(self.limits.max_batch, self.limits.max_batch * model.engine.preprocess.size**2 // area))
        key = (model, tuple(pixels.shape[1:]), pixels.dtype)
        try:
            done = await _together([self.batcher.answer(key, model.compute, row[None], most) for row in pixels])
        except ValueError as error:
            raise RequestError(422, f"{model.name}: {error}") from None
        self.metrics.pictures.labels(model.name).inc(len(pixels))
        return torch.stack([one.value for one in done]), done

    def sizes_of(self, model: Model, question: Question) -> tuple[int, ...]:
        """The sizes asked for, or the model's own. RequestError (422) for what it cannot or may not take."""
        sizes = question.sizes or (max(model.engine.preprocess.size, model.min_size),)
        most = max(self.limits.max_size, model.engine.preprocess.size)
        if len(set(sizes)) < len(sizes):
            raise RequestError(422, "sizes: one of them is named twice")
        if min(sizes) < model.min_size or max(sizes) > most:
            raise RequestError(422, f"sizes: {model.name} takes {model.min_size} to {most} pixels here")
        return sizes

    async def _one(
        self, model: Model, picture: Picture, sizes: tuple[int, ...], top: int, stay: Stay
    ) -> dict[str, Any]:
        started = time.perf_counter()
        decoded = await self._decoded(model, picture, sizes, stay)
        found = await _together([self.logits(model, model.as_taken(pixels)) for pixels in decoded.pixels])
        views = [logits for logits, _ in found]
        seconds = self._seconds(started, decoded, [one for _, done in found for one in done])
        answer: dict[str, Any] = {
            "name": picture.name,
            "top": best(views, model.engine.classes, top),
            "did": decoded.did,
            "seconds": seconds._asdict(),
        }
        if len(sizes) > 1:
            answer["by_size"] = [
                {"size": size, "top": best([view], model.engine.classes, top)}
                for size, view in zip(sizes, views, strict=True)
            ]
        return answer

    async def _decoded(self, model: Model, picture: Picture, sizes: tuple[int, ...], stay: Stay) -> Decoded:
        stay.take(memory=sum(4 * model.engine.preprocess.channels * size * size for size in sizes))
        return await self.decoder.picture(picture.data, picture.name, model.engine.preprocess, sizes)

    def _seconds(self, started: float, decoded: Decoded, done: Sequence[Done]) -> Seconds:
        computed = sum(one.computed for one in done)
        passed = time.perf_counter() - started
        seconds = Seconds(decoded.seconds, max(0.0, passed - decoded.seconds - computed), computed)
        for stage, value in seconds._asdict().items():
            self.metrics.stages.labels(stage).observe(value)
        return Seconds(*(round(value, 6) for value in seconds))


def best(views: Sequence[Tensor], classes: Sequence[str], top: int) -> list[dict[str, Any]]:
    """Logits (1, classes) of one picture's views -> the `top` classes of their mean probabilities, best first."""
    found = average_logits(views).exp()[0].topk(min(top, len(classes)))
    pairs = zip(found.indices.tolist(), found.values.tolist(), strict=True)
    return [{"label": classes[index], "probability": value} for index, value in pairs]


async def _together(work: Sequence[Any]) -> list[Any]:
    """All of it at once; the first problem ends the rest, and is raised."""
    if len(work) == 1:
        return [await work[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as problems:
        raise problems.exceptions[0] from None
    return [task.result() for task in tasks]
