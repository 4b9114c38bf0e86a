"""The Open Inference Protocol, version 2, over HTTP (https://github.com/kserve/open-inference-protocol).

A model has one input, ``pixels``: UINT8, unnormalized, [n, channels, height, width]; and two outputs, ``logits`` and
``probabilities``: FP32, [n, classes].
"""

from typing import Annotated, Any, Literal

import numpy as np
import torch
from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from torch import Tensor

from .. import __version__
from .middleware import AdmissionMiddleware
from .repository import ModelVersion
from .schemas import error_response
from .service import InferenceService

INPUT = "pixels"
OUTPUTS: tuple[str, ...] = ("logits", "probabilities")


class RequestInput(BaseModel, strict=True):
    """The input tensor."""

    name: Literal["pixels"]
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=4, max_length=4, fail_fast=True)]
    datatype: Literal["UINT8"]
    data: Annotated[list[Any], Field(description="0 to 255, in row-major order, flat or nested like the shape")]


class RequestOutput(BaseModel, strict=True):
    """The name of a requested output."""

    name: Literal["logits", "probabilities"]


class InferBody(BaseModel, strict=True):
    """JSON body of a request."""

    id: str | None = None
    inputs: Annotated[list[RequestInput], Field(min_length=1, max_length=1)]
    outputs: Annotated[list[RequestOutput] | None, Field(max_length=2, description="Default: all outputs")] = None


def _body_schema() -> dict[str, Any]:
    """Return the schema of the body with its definitions inlined: references have another root in OpenAPI."""
    schema = InferBody.model_json_schema()
    definitions = schema.pop("$defs")
    schema["properties"]["inputs"]["items"] = definitions["RequestInput"]
    schema["properties"]["outputs"]["anyOf"][0]["items"] = definitions["RequestOutput"]
    return schema


def create_router(service: InferenceService, middleware: AdmissionMiddleware) -> APIRouter:
    """Create the routes of the protocol."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

    @router.get("", summary="Server metadata")
    async def server() -> dict[str, Any]:
        """Name, version and extensions of the server."""
        return {"name": "googlenet", "version": __version__, "extensions": []}

    @router.get("/health/live", summary="Liveness")
    async def live() -> dict[str, bool]:
        """200 while the process runs."""
        return {"live": True}

    @router.get("/health/ready", summary="Readiness", responses={503: {"description": "Not ready"}})
    async def ready() -> Response:
        """503 while the server starts or shuts down."""
        if service.ready and not middleware.draining:
            return JSONResponse({"ready": True})
        return error_response(503, "not ready")

    for path in ("/models/{name}", "/models/{name}/versions/{version}"):
        _add_model_routes(router, path, service)
    return router


def model_name_parameter(service: InferenceService) -> Any:
    """Return the path parameter that names a model, with the possible values for the OpenAPI document."""
    return Path(description="Name of a model", json_schema_extra={"enum": list(service.models.paths)})


def _add_model_routes(router: APIRouter, path: str, service: InferenceService) -> None:
    name_parameter = model_name_parameter(service)
    extra = {"requestBody": {"required": True, "content": {"application/json": {"schema": _body_schema()}}}}

    @router.get(path, summary="Model metadata")
    async def metadata(name: str = name_parameter, version: str | None = None) -> dict[str, Any]:
        """Inputs and outputs of a model; -1 is a variable dimension."""
        model = model_at_version(service, name, version)
        preprocess, classes = model.predictor.preprocess, model.predictor.classes
        return {
            "name": model.name,
            "versions": [str(model.version)],
            "platform": f"googlenet_{model.predictor.name}",
            "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [-1, preprocess.channels, -1, -1]}],
            "outputs": [{"name": output, "datatype": "FP32", "shape": [-1, len(classes)]} for output in OUTPUTS],
            "parameters": {"classes": list(classes), "size": preprocess.size},
        }

    @router.get(path + "/ready", summary="Model readiness")
    async def ready(name: str = name_parameter, version: str | None = None) -> dict[str, Any]:
        """200 if the model is loaded."""
        return {"name": model_at_version(service, name, version).name, "ready": True}

    @router.post(path + "/infer", summary="Inference", openapi_extra=extra)
    async def infer(request: Request, name: str = name_parameter, version: str | None = None) -> dict[str, Any]:
        """Classify pixels of any size from the model's minimum. The server only normalizes them."""
        model = model_at_version(service, name, version)
        body = await request.body()
        request_id, pixels, names = await service.run_in_pool(parse_infer_request, body, model, service)
        request.state.reservation.reserve(images=len(pixels) - 1, memory=pixels.numel())
        logits, _ = await service.logits(model, pixels)
        values = {"logits": logits, "probabilities": logits.double().softmax(1).float()}
        outputs = [
            {"name": name, "datatype": "FP32", "shape": list(logits.shape), "data": values[name].flatten().tolist()}
            for name in names
        ]
        identity = {} if request_id is None else {"id": request_id}
        return {"model_name": model.name, "model_version": str(model.version), **identity, "outputs": outputs}


def parse_infer_request(
    body: bytes, model: ModelVersion, service: InferenceService
) -> tuple[str | None, Tensor, list[str]]:
    """Parse the JSON body of a request to `model`: its id, pixels (n, channels, h, w) and the names of the outputs.

    Raises HTTPException (413, 422) or ValidationError (422).
    """
    parsed = InferBody.model_validate_json(body)
    names: list[str] = [output.name for output in parsed.outputs or ()] or list(OUTPUTS)
    if len(set(names)) < len(names):
        raise HTTPException(422, "outputs: duplicate name")
    outputs = [output for output in OUTPUTS if output in names]
    return parsed.id, _to_pixels(parsed.inputs[0], model, service), outputs


def _to_pixels(tensor: RequestInput, model: ModelVersion, service: InferenceService) -> Tensor:
    shape, channels = tensor.shape, model.predictor.preprocess.channels
    count, _, height, width = shape
    if shape[1] != channels:
        raise HTTPException(422, f"shape: expected [n, {channels}, height, width]")
    if count > service.limits.max_images:
        raise HTTPException(413, f"shape: {count} images; the limit is {service.limits.max_images} per request")
    low, high = model.predictor.min_size, service.max_size(model)
    if min(height, width) < low or max(height, width) > high:
        raise HTTPException(422, f"shape: {model.name} accepts heights and widths of {low} to {high} pixels")
    try:
        values = np.asarray(tensor.data)
    except (ValueError, OverflowError, RecursionError):
        raise HTTPException(422, "data: expected integers, flat or nested like the shape") from None
    if values.dtype.kind != "i" or values.shape not in ((count * channels * height * width,), tuple(shape)):
        raise HTTPException(422, "data: expected integers, flat or nested like the shape, as many as the shape has")
    if values.min() < 0 or values.max() > 255:
        raise HTTPException(422, "data: UINT8 values are 0 to 255")
    return torch.from_numpy(values.astype(np.uint8).reshape(shape))


def model_at_version(service: InferenceService, name: str, version: str | None) -> ModelVersion:
    """Return the current version of a model. Raises HTTPException (404) if another version is requested."""
    model = service.models.get(name)
    if version not in (None, str(model.version)):
        raise HTTPException(404, f"{name}: version {version[:20]} is not available; the current one is {model.version}")
    return model
