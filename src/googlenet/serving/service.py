"""Compute the response to a request: decode, batch, predict, measure."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from torch import Tensor

from ..detection.boxes import rescale
from ..detection.data.dataset import Detections
from ..errors import NonFiniteLossError
from ..evaluation.predictor import get_thresholds
from ..inference.predict import labels_above
from ..models.ensemble import to_probabilities
from .batching import BatchResult, MicroBatcher
from .config import Limits
from .images import DecodedImage, DecodedPixels, decode_pixels, decode_upload, draw_heatmap, heatmap_memory, read_header
from .metrics import Metrics
from .middleware import MemoryPool, Reservation, ResourceBudget
from .repository import DetectorVersion, ModelRepository, ModelVersion
from .schemas import DetectOptions, ImageRequest, RequestOptions, UploadedImage

T = TypeVar("T")
PredictRequest = ImageRequest[RequestOptions]
# Bytes of memory that a value of an image takes while it waits (uint8) and while it is resized (float32).
DETECT_BYTES_PER_VALUE = 5
DECODE_NICENESS = 10


class InferenceService:
    """Everything behind the routes. `threads` compute a batch, and as many decode images."""

    def __init__(self, models: ModelRepository, limits: Limits, metrics: Metrics, threads: int):
        self.models, self.limits, self.metrics = models, limits, metrics
        self.budget = ResourceBudget(limits.max_queue, limits.max_memory // 2)
        self.decode_memory = MemoryPool(limits.max_memory // 2, limits.timeout / 2)
        self.batcher = MicroBatcher(
            limits.max_batch_delay_ms / 1000, lambda: torch.set_num_threads(threads), metrics.batch_size.observe
        )
        # Pillow releases the GIL while it decodes.
        self._decode_pool = ThreadPoolExecutor(threads, "decode", initialize_decoding_thread)
        self._started = False
        metrics.add_gauge("googlenet_inflight_images", "Images of unfinished requests", lambda: self.budget.images)
        metrics.add_gauge("googlenet_inflight_bytes", "Memory reserved by requests", lambda: self.budget.memory)
        metrics.add_gauge("googlenet_queued_images", "Images that wait for a batch", lambda: self.batcher.num_queued)

    @property
    def ready(self) -> bool:
        """Whether requests are processed."""
        return self._started and self.batcher.running

    async def start(self) -> None:
        """Start to process requests."""
        await self.batcher.start()
        self._started = True

    async def stop(self) -> None:
        """Stop all threads, after the last request."""
        self._started = False
        await self.batcher.stop()
        self._decode_pool.shutdown(wait=True)

    async def run_in_pool(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in one of the threads that decode images."""
        return await asyncio.get_running_loop().run_in_executor(self._decode_pool, function, *arguments)

    async def predict(self, request: PredictRequest, reservation: Reservation) -> dict[str, Any]:
        """Compute the response of ``/v1/predict``."""
        model = self.models.classifier(request.options.model)
        self.input_sizes(model, request)
        reservation.reserve(images=len(request.images) - 1)
        images = await gather_first_error(
            [self._predict_image(model, image, request, reservation) for image in request.images]
        )
        return {"model": model.name, "version": model.version, "images": images}

    async def explain(self, request: PredictRequest, reservation: Reservation) -> dict[str, Any]:
        """Compute the response of ``/v1/explain``."""
        model, label = self.models.classifier(request.options.model), request.options.label
        classes = model.predictor.classes
        if model.explain is None:
            raise HTTPException(422, f"{model.name}: class activation maps need a run of a single network")
        if len(request.images) != 1 or len(request.options.sizes or ()) > 1:
            raise HTTPException(422, "send one image and at most one size")
        if label is not None and label not in classes:
            raise HTTPException(422, f"label: {model.name} has no class {label!r}; /v1/models lists the classes")
        index = None if label is None else classes.index(label)
        start, sizes = time.perf_counter(), self.input_sizes(model, request)
        reservation.reserve(memory=heatmap_memory(sizes[0]))
        image = await self._decode(model, request.images[0], sizes, reservation)
        (pixels,), explainer = image.pixels, model.explain
        result = await self.batcher.submit((model, "explain"), lambda items: [explainer(*items[0])], (pixels, index), 1)
        timings, (explained, logits, values) = self._observe(start, image, [result]), result.value
        images = await self.run_in_pool(draw_heatmap, pixels[0], values)
        return {
            "model": model.name,
            "version": model.version,
            "label": classes[explained],
            "probability": to_probabilities(logits[None], bool(get_thresholds(model.predictor)))[0, explained].item(),
            "size": sizes[0],
            "map": {"shape": list(values.shape), "data": [round(value, 6) for value in values.flatten().tolist()]},
            "preprocessing": image.preprocessing,
            "seconds": timings,
            **images,
        }

    async def detect(self, request: ImageRequest[DetectOptions], reservation: Reservation) -> dict[str, Any]:
        """Compute the response of ``/v1/detect``."""
        model = self.models.detector(request.options.model)
        reservation.reserve(images=len(request.images) - 1)
        images = await gather_first_error(
            [self._detect_image(model, image, request.options, reservation) for image in request.images]
        )
        return {"model": model.name, "version": model.version, "images": images}

    async def _detect_image(
        self, model: DetectorVersion, image: UploadedImage, options: DetectOptions, reservation: Reservation
    ) -> dict[str, Any]:
        start, preprocess, max_pixels = time.perf_counter(), model.predictor.preprocess, self.limits.max_pixels
        header = await self.run_in_pool(read_header, image, model.min_decode_size, max_pixels)
        reservation.reserve(memory=DETECT_BYTES_PER_VALUE * preprocess.channels * header.width * header.height)
        async with self.decode_memory.hold(header.decode_memory):
            decoded = await self.run_in_pool(decode_pixels, image, preprocess, model.min_decode_size, max_pixels)
        try:
            result = await self.batcher.submit(
                (model, "detect"), model.detect, decoded.pixels, self.limits.max_batch_size
            )
        except NonFiniteLossError:
            raise HTTPException(500, f"{model.name}: the network's output is not finite (NaN or infinite)") from None
        self.metrics.images.labels(model.name).inc()
        height, width = decoded.full_size
        # The boxes are in pixels of the decoded image, which may be a reduced one.
        size = (decoded.pixels.shape[1], decoded.pixels.shape[2])
        found: Detections = result.value.above(options.score_threshold).select(slice(options.max_detections))
        found = found._replace(boxes=rescale(found.boxes, size, decoded.full_size))
        return {
            "name": image.name,
            "width": width,
            "height": height,
            "boxes": [
                {"xyxy": box, "label": model.predictor.classes[label], "score": score}
                for box, score, label in zip(*(values.tolist() for values in found), strict=True)
            ],
            "seconds": self._observe(start, decoded, [result]),
        }

    async def logits(self, model: ModelVersion, pixels: Tensor) -> tuple[Tensor, list[BatchResult]]:
        """Compute logits (n, classes) of pixels 0..255 (n, channels, h, w), in batches with other requests."""
        # Larger inputs get smaller batches, which limits the memory of a batch to that of the native size.
        limit, area = self.limits.max_batch_size, pixels.shape[-2] * pixels.shape[-1]
        max_batch_size = max(1, min(limit, limit * model.predictor.preprocess.size**2 // area))
        key = (model, tuple(pixels.shape[1:]), pixels.dtype)
        try:
            results = await gather_first_error(
                [self.batcher.submit(key, model.predict, image[None], max_batch_size) for image in pixels]
            )
        except ValueError as error:
            raise HTTPException(422, f"{model.name}: {error}") from None
        logits = torch.stack([result.value for result in results])
        if not logits.isfinite().all():
            raise HTTPException(500, f"{model.name}: the network's output is not finite (NaN or infinite)")
        self.metrics.images.labels(model.name).inc(len(pixels))
        return logits, results

    def max_size(self, model: ModelVersion) -> int:
        """Return the largest input height and width that a client may request."""
        return max(self.limits.max_image_size, model.predictor.preprocess.size)

    def input_sizes(self, model: ModelVersion, request: PredictRequest) -> list[int]:
        """Return the requested input sizes, else the model's own. Raises HTTPException (422)."""
        sizes = request.options.sizes or [model.size]
        low, high = model.predictor.min_size, self.max_size(model)
        if min(sizes) < low or max(sizes) > high:
            raise HTTPException(422, f"sizes: {model.name} accepts {low} to {high} pixels")
        return sizes

    async def _predict_image(
        self, model: ModelVersion, image: UploadedImage, request: PredictRequest, reservation: Reservation
    ) -> dict[str, Any]:
        start = time.perf_counter()
        sizes, classes, top = self.input_sizes(model, request), model.predictor.classes, request.options.top
        decoded = await self._decode(model, image, sizes, reservation)
        outputs = await gather_first_error([self.logits(model, pixels) for pixels in decoded.pixels])
        views = [logits for logits, _ in outputs]
        timings = self._observe(start, decoded, [result for _, results in outputs for result in results])
        thresholds = get_thresholds(model.predictor)
        probabilities = mean_probabilities(views, bool(thresholds))
        response: dict[str, Any] = {
            "name": image.name,
            "top": top_k(probabilities, classes, top),
            "preprocessing": decoded.preprocessing,
            "seconds": timings,
        }
        if thresholds:
            response["labels"] = labels_above(probabilities.tolist(), classes, thresholds)
        if len(sizes) > 1:
            response["by_size"] = [
                {"size": size, "top": top_k(mean_probabilities([view], bool(thresholds)), classes, top)}
                for size, view in zip(sizes, views, strict=True)
            ]
        return response

    async def _decode(
        self, model: ModelVersion, image: UploadedImage, sizes: Sequence[int], reservation: Reservation
    ) -> DecodedImage:
        preprocess = model.predictor.preprocess
        reservation.reserve(memory=sum(4 * preprocess.channels * size * size for size in sizes))
        min_size = preprocess.min_decode_size(max(sizes))
        header = await self.run_in_pool(read_header, image, min_size, self.limits.max_pixels)
        async with self.decode_memory.hold(header.decode_memory):
            rounded = model.rounds_pixels
            return await self.run_in_pool(decode_upload, image, preprocess, sizes, self.limits.max_pixels, rounded)

    def _observe(
        self, start: float, decoded: DecodedImage | DecodedPixels, results: Sequence[BatchResult]
    ) -> dict[str, float]:
        """Return the seconds of one image by stage (decoding, waiting, prediction), and add them to the metrics."""
        compute = sum(result.compute_seconds for result in results)
        queue = max(0.0, time.perf_counter() - start - decoded.seconds - compute)
        timings = {"decode": decoded.seconds, "queue": queue, "compute": compute}
        for stage, seconds in timings.items():
            self.metrics.stage_duration.labels(stage).observe(seconds)
        return {stage: round(seconds, 6) for stage, seconds in timings.items()}


def initialize_decoding_thread() -> None:
    """Give a thread of the pool that decodes images one thread of PyTorch, and on Linux a lower priority.

    All cores compute a batch together. A decoding thread that takes one of them makes the others wait.
    """
    torch.set_num_threads(1)
    if sys.platform == "linux":  # elsewhere the priority is that of the process
        thread = threading.get_native_id()
        niceness = os.getpriority(os.PRIO_PROCESS, thread) + DECODE_NICENESS
        os.setpriority(os.PRIO_PROCESS, thread, min(niceness, 19))


def mean_probabilities(views: Sequence[Tensor], multilabel: bool) -> NDArray[np.float64]:
    """Return the probabilities (classes,) of an image, on average over its `views`: logits (1, classes) by size.

    In NumPy: PyTorch would divide the sum over the views among threads, which takes milliseconds while a batch is
    computed.
    """
    logits = np.concatenate([view.double().numpy() for view in views])
    if multilabel:
        shares = np.exp(-np.abs(logits))  # without overflow
        probabilities = np.where(logits >= 0, 1, shares) / (1 + shares)
    else:
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = shares / shares.sum(axis=1, keepdims=True)
    mean: NDArray[np.float64] = probabilities.mean(axis=0)
    return mean


def top_k(probabilities: NDArray[np.float64], classes: Sequence[str], k: int) -> list[dict[str, Any]]:
    """Return the `k` most probable classes of probabilities (classes,)."""
    indices = np.argsort(-probabilities, kind="stable")[:k]
    return [{"label": classes[index], "probability": float(probabilities[index])} for index in indices.tolist()]


async def gather_first_error(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Await all coroutines concurrently. The first exception cancels the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
