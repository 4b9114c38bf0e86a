"""The ASGI application and its routes, for uvicorn and for Ray Serve."""

import asyncio
import os
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from .. import __version__
from ..evaluation.predictor import get_thresholds
from ..export.manifest import is_exported
from ..inference.loading import LoadedModel, load_predictor
from . import v2
from .config import ServeConfig
from .metrics import Metrics
from .middleware import AdmissionMiddleware
from .page import PAGE, PAGE_HEADERS, render_docs
from .repository import DetectorVersion, ModelRepository, ModelVersion
from .schemas import (
    INTERNAL_ERROR,
    DetectOptions,
    RequestOptions,
    error_response,
    error_schema,
    parse_request,
    request_body,
)
from .service import InferenceService


def build_asgi_app(config: ServeConfig) -> AdmissionMiddleware:
    """Load the models and build the ASGI application."""
    metrics = Metrics()
    models = ModelRepository(config.models, lambda path: load_model(path, config), metrics)
    service = InferenceService(models, config.limits, metrics, config.threads or os.cpu_count() or 1)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        watcher = asyncio.create_task(models.watch(config.reload_interval)) if config.reload_interval else None
        yield
        if watcher is not None:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher
        await service.stop()

    app = FastAPI(
        title="googlenet", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        description="Image classification and object detection with networks of the GoogLeNet and Inception family.",
        responses=error_schema(400, 401, 404, 405, 408, 409, 413, 415, 422, 429, 504),
    )  # fmt: skip
    _add_error_handlers(app)
    middleware = AdmissionMiddleware(app, config, service.budget, metrics)
    _add_image_routes(app, service)
    _add_model_routes(app, service)
    _add_operation_routes(app, service, middleware)
    app.include_router(v2.create_router(service, middleware))
    return middleware


def load_model(path: str, config: ServeConfig) -> LoadedModel[Any]:
    """Load a run or an exported folder in the configured engine."""
    # `googlenet serve` always names an engine, by default auto. Without one (a configuration made in Python) the
    # network runs in PyTorch, and the batching thread sets its threads.
    has_engine = config.engine is not None or is_exported(Path(path))
    return load_predictor(path, config.engine, config.threads if has_engine else None)


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        unknown = error.detail == "Not Found"  # Starlette's message for a path without route
        message = "unknown path; /docs lists the routes" if unknown else str(error.detail)
        return error_response(error.status_code, message, error.headers, request.url.path)

    @app.exception_handler(RequestValidationError)
    @app.exception_handler(ValidationError)
    async def validation_error(request: Request, error: RequestValidationError | ValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"] if part != "body")
        text = "Input should be an object" if first["type"] == "model_type" else first["msg"]
        message = f"{field}: {text}" if field else text
        return error_response(422, message, path=request.url.path)

    @app.exception_handler(ClientDisconnect)
    async def disconnected(request: Request, error: ClientDisconnect) -> JSONResponse:
        # No client receives this; 499 is what proxies count in this case. It is no error of the server.
        return error_response(499, "the client closed the connection", path=request.url.path)

    @app.exception_handler(Exception)
    async def internal_error(request: Request, error: Exception) -> JSONResponse:
        return error_response(500, INTERNAL_ERROR, path=request.url.path)


def _add_image_routes(app: FastAPI, service: InferenceService) -> None:
    extra = {"requestBody": request_body(RequestOptions)}

    @app.post("/v1/predict", summary="Classify images", openapi_extra=extra, tags=["images"])
    async def predict(request: Request) -> Response:
        """The most probable classes of each image, and the seconds spent on decoding, waiting and prediction.

        With several `sizes` the probabilities are averaged; `by_size` has those of each size. A model for any number of
        labels per image also returns `labels`: the classes with at least their threshold.
        """
        parsed = await parse_request(request, service.limits, RequestOptions)
        return JSONResponse(await service.predict(parsed, request.state.reservation))

    detect_extra = {"requestBody": request_body(DetectOptions)}

    @app.post("/v1/detect", summary="Detect objects", openapi_extra=detect_extra, tags=["images"])
    async def detect(request: Request) -> Response:
        """The objects on each image, best first, and the seconds spent on decoding, waiting and detection.

        `xyxy` are the left, top, right and bottom edges in pixels of the upright image, which has `width` and `height`.
        """
        parsed = await parse_request(request, service.limits, DetectOptions)
        return JSONResponse(await service.detect(parsed, request.state.reservation))

    @app.post("/v1/explain", summary="Class activation map", openapi_extra=extra, tags=["images"])
    async def explain(request: Request) -> Response:
        """The class activation map of the most probable class, or of `label`.

        `map` has `shape` and `data`: the contribution of each position to the logit of the class. `image`, `heatmap`
        and `overlay` are PNG images as data: URLs. With `Accept: image/png` the response is the overlay.
        """
        parsed = await parse_request(request, service.limits, RequestOptions)
        explanation = await service.explain(parsed, request.state.reservation)
        if request.headers.get("accept", "").strip().lower() == "image/png":
            return Response(b64decode(explanation["overlay"].partition(",")[2]), media_type="image/png")
        return JSONResponse(explanation)


def _add_model_routes(app: FastAPI, service: InferenceService) -> None:

    @app.get("/v1/models", summary="List models", tags=["models"])
    async def models() -> dict[str, Any]:
        """The models of this server; the first is the default."""
        return {"models": [describe(service.models.get(name), service) for name in service.models.paths]}

    @app.get("/v1/models/{name}", summary="Model metadata", tags=["models"])
    async def model(name: str = v2.MODEL_NAME) -> dict[str, Any]:
        """Task, version, engine, classes and input sizes of a model."""
        return describe(service.models.get(name), service)

    @app.post("/v1/models/{name}/reload", summary="Reload a model", tags=["models"])
    async def reload(name: str = v2.MODEL_NAME) -> dict[str, Any]:
        """Load a new version from disk. If that fails (409), the current version stays active."""
        return describe(await service.models.reload(name), service)


def _add_operation_routes(app: FastAPI, service: InferenceService, middleware: AdmissionMiddleware) -> None:
    @app.get("/healthz", summary="Health check", tags=["operation"], responses=error_schema(503))
    async def health() -> Response:
        """200 while the server accepts requests, 503 while it starts or shuts down."""
        if service.ready and not middleware.draining:
            return JSONResponse({"status": "ok"})
        return error_response(503, f"the server is {'shutting down' if middleware.draining else 'starting'}")

    @app.get("/metrics", summary="Prometheus metrics", tags=["operation"], response_class=Response)
    async def metrics() -> Response:
        """Requests, durations by stage, batch sizes and model versions."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE, headers=PAGE_HEADERS)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(render_docs(app.openapi()), headers=PAGE_HEADERS)


def describe(model: ModelVersion | DetectorVersion, service: InferenceService) -> dict[str, Any]:
    """Describe a model for ``/v1/models``."""
    predictor = model.predictor
    common = {
        "name": model.name, "version": model.version, "engine": predictor.name, "precision": predictor.precision,
        "loaded_at": model.loaded_at, "classes": list(predictor.classes), "size": model.size,
        "channels": predictor.preprocess.channels,
    }  # fmt: skip
    if isinstance(model, DetectorVersion):
        return {**common, "task": "detection", "supports_explain": False}
    max_size, thresholds = service.max_size(model), get_thresholds(predictor)
    return {
        **common, "task": "multilabel" if thresholds else "classification", "thresholds": list(thresholds),
        "min_size": model.predictor.min_size, "max_size": max_size,
        "suggested_sizes": model.suggest_sizes(max_size), "crop_mode": model.predictor.preprocess.crop_mode,
        "supports_explain": model.explain is not None,
    }  # fmt: skip
