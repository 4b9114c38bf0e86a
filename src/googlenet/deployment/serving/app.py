"""The application: its routes, and what each answers. The same under uvicorn and under Ray Serve."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from . import openinference
from .errors import add_error_handlers, error_response
from .gate import Gate
from .limits import Stay
from .models import Model
from .openinference import name_of_model
from .overlay import png_of
from .page import PAGE, PAGE_HEADERS, documentation
from .requests import BODY, read_question
from .service import Service

WATCH_SECONDS = 1.0

_PROBLEM = {
    "description": "What is wrong, and what to do",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error"],
                "properties": {
                    "error": {
                        "type": "object",
                        "required": ["status", "message"],
                        "properties": {"status": {"type": "integer"}, "message": {"type": "string"}},
                    }
                },
            }
        }
    },
}
REFUSALS: dict[int | str, dict[str, Any]] = dict.fromkeys(
    (400, 401, 404, 405, 408, 409, 413, 415, 422, 429, 504), _PROBLEM
)


def build_app(service: Service, *, version: str, key: str | None = None, watch: float = WATCH_SECONDS) -> Gate:
    """The application of a service, behind its gate. `key` is asked of every request where it is given.

    Folders are looked at every `watch` seconds for a new version; 0: never. `version` is the package's.
    """

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        watching = asyncio.create_task(service.models.watch(watch)) if watch else None
        yield
        if watching is not None:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
        await service.stop()

    app = FastAPI(
        title="googlenet", version=version, lifespan=life, docs_url=None, redoc_url=None, responses=REFUSALS,
        description="Pictures to classes, by networks of the GoogLeNet and Inception family.",
    )  # fmt: skip
    add_error_handlers(app)
    gate = Gate(app, service.limits, service.room, service.metrics, key)
    _add_pictures(app, service)
    _add_models(app, service)
    _add_operation(app, service, gate)
    app.include_router(openinference.router(service, gate, version))
    return gate


def _add_pictures(app: FastAPI, service: Service) -> None:
    @app.post("/v1/predict", summary="Classify pictures", openapi_extra={"requestBody": BODY}, tags=["pictures"])
    async def predict(request: Request) -> Response:
        """The best classes of each picture, and the seconds spent decoding, waiting and computing.

        With several `sizes` the probabilities are averaged over them, and each size's are in `by_size`.
        """
        question = await read_question(request, service.limits)
        return JSONResponse(await service.predict(question, stay_of(request)))

    @app.post("/v1/explain", summary="Where a class is seen", openapi_extra={"requestBody": BODY}, tags=["pictures"])
    async def explain(request: Request) -> Response:
        """The class activation map of the best class, or of `label`.

        `map` is [shape, values]: what each position adds to the class's logit. `picture`, `heat` and `overlay` are
        PNG files as data: URLs. A client that accepts image/png only gets the overlay itself.
        """
        question = await read_question(request, service.limits)
        found = await service.explain(question, stay_of(request))
        if request.headers.get("accept", "").strip().lower() == "image/png":
            return Response(png_of(found["overlay"]), media_type="image/png")
        return JSONResponse(found)


def _add_models(app: FastAPI, service: Service) -> None:
    named = name_of_model(service)

    @app.get("/v1/models", summary="The models, their classes and sizes", tags=["models"])
    async def models() -> dict[str, Any]:
        """The models of this server; the first answers where a request names none."""
        return {"models": [describe(model, service) for model in service.models.all()]}

    @app.get("/v1/models/{name}", summary="One model", tags=["models"])
    async def model(name: str = named) -> dict[str, Any]:
        """Its version, engine, classes and sizes."""
        return describe(service.models.get(name), service)

    @app.post("/v1/models/{name}/reload", summary="Read a model again", tags=["models"])
    async def reload(name: str = named) -> dict[str, Any]:
        """Take what is on disk now for the next version. Where that fails (409) the old one stays."""
        return describe(await service.models.reload(name), service)


def _add_operation(app: FastAPI, service: Service, gate: Gate) -> None:
    @app.get("/healthz", summary="Whether the server takes requests", tags=["operation"], responses={503: _PROBLEM})
    async def health() -> Response:
        """200 while it does, 503 while it starts or stops."""
        if service.ready and not gate.draining:
            return JSONResponse({"status": "ok"})
        return error_response(503, "the server is stopping" if gate.draining else "the server is starting")

    @app.get("/metrics", summary="Counters for Prometheus", tags=["operation"], response_class=Response)
    async def metrics() -> Response:
        """Requests, seconds by stage, batches, versions."""
        return Response(service.metrics.text(), media_type=service.metrics.content_type)

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE, headers=PAGE_HEADERS)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(documentation(app.openapi()), headers=PAGE_HEADERS)


def stay_of(request: Request) -> Stay:
    """What the gate took for this request."""
    return cast(Stay, request.scope["state"]["stay"])


def describe(model: Model, service: Service) -> dict[str, Any]:
    """A model, for ``/v1/models``."""
    preprocess = model.engine.preprocess
    most = max(service.limits.max_size, preprocess.size)
    return {
        "name": model.name,
        "version": model.version,
        "engine": model.engine.name,
        "since": model.since,
        "classes": list(model.engine.classes),
        "size": max(preprocess.size, model.min_size),
        "min_size": model.min_size,
        "max_size": most,
        "suggested_sizes": model.suggested_sizes(most),
        "channels": preprocess.channels,
        "fit": preprocess.fit,
        "explains": model.explain is not None,
    }
