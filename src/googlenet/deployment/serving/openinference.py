"""The Open Inference Protocol, version 2, over HTTP: for clients that were written for other servers.

Its document: https://github.com/kserve/open-inference-protocol. A model takes one tensor, ``pixels``: UINT8, raw, of
shape [n, channels, height, width]; and gives ``logits`` and ``probabilities``, FP32 [n, classes].
"""

import json
from typing import Any, NamedTuple

import numpy as np
import torch
from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse, Response
from torch import Tensor

from .errors import RequestError, error_response
from .gate import Gate
from .limits import Limits
from .models import Model
from .service import Service

INPUT = "pixels"
OUTPUTS: tuple[str, ...] = ("logits", "probabilities")

_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype", "data"],
    "properties": {
        "name": {"type": "string", "enum": [INPUT]},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 4, "maxItems": 4},
        "datatype": {"type": "string", "enum": ["UINT8"]},
        "data": {"type": "array", "description": "0 to 255, row by row; nested like the shape, or flat", "items": {}},
    },
}
_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["inputs"],
                "properties": {
                    "id": {"type": "string"},
                    "inputs": {"type": "array", "items": _TENSOR, "minItems": 1, "maxItems": 1},
                    "outputs": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["name"],
                            "properties": {"name": {"type": "string", "enum": list(OUTPUTS)}},
                        },
                    },
                },
            }
        }
    },
}


class Inference(NamedTuple):
    """A request of the protocol: its `id`, the `pixels` uint8 (n, channels, h, w), the names of what to give."""

    id: str | None
    pixels: Tensor
    outputs: tuple[str, ...]


def router(service: Service, gate: Gate, version: str) -> APIRouter:
    """The protocol's addresses; `version` is the package's."""
    routes = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

    @routes.get("", summary="The server")
    async def server() -> dict[str, Any]:
        """Name, version, extensions."""
        return {"name": "googlenet", "version": version, "extensions": []}

    @routes.get("/health/live", summary="Whether the server lives")
    async def live() -> dict[str, bool]:
        """Always, where there is an answer."""
        return {"live": True}

    @routes.get("/health/ready", summary="Whether it takes requests", responses={503: {"description": "Not now"}})
    async def ready() -> Response:
        """503 while it starts or stops."""
        if service.ready and not gate.draining:
            return JSONResponse({"ready": True})
        return error_response(503, "not ready")

    for path in ("/models/{name}", "/models/{name}/versions/{version}"):
        _add_model(routes, path, service)
    return routes


def name_of_model(service: Service) -> Any:
    """A part of an address that names a model; the OpenAPI document says which there are."""
    return Path(description="A model of this server", json_schema_extra={"enum": list(service.models.places)})


def _add_model(routes: APIRouter, path: str, service: Service) -> None:
    named = name_of_model(service)

    @routes.get(path, summary="What a model takes and gives")
    async def metadata(name: str = named, version: str | None = None) -> dict[str, Any]:
        """Its tensors; -1 stands for any number."""
        model = _version(service, name, version)
        count = len(model.engine.classes)
        return {
            "name": model.name,
            "versions": [str(model.version)],
            "platform": f"googlenet_{model.engine.name}",
            "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [-1, model.engine.preprocess.channels, -1, -1]}],
            "outputs": [{"name": output, "datatype": "FP32", "shape": [-1, count]} for output in OUTPUTS],
            "parameters": {"classes": list(model.engine.classes), "size": model.engine.preprocess.size},
        }

    @routes.get(path + "/ready", summary="Whether a model answers")
    async def ready(name: str = named, version: str | None = None) -> dict[str, Any]:
        """200 where it does."""
        return {"name": _version(service, name, version).name, "ready": True}

    @routes.post(path + "/infer", summary="Pixels to logits and probabilities", openapi_extra={"requestBody": _BODY})
    async def infer(request: Request, name: str = named, version: str | None = None) -> dict[str, Any]:
        """Raw pixels, sized as you like from the model's minimum up; nothing is cut, resized or normalised by you."""
        model = _version(service, name, version)
        body = await request.body()
        asked: Inference = await service.decoder.run(read_inference, body, model, service.limits)
        stay = request.scope["state"]["stay"]
        stay.take(pictures=len(asked.pixels) - 1, memory=asked.pixels.numel())
        logits, _ = await service.logits(model, asked.pixels)
        found = {"logits": logits, "probabilities": logits.double().softmax(1).float()}
        answer = {"model_name": model.name, "model_version": str(model.version)}
        if asked.id is not None:
            answer["id"] = asked.id
        outputs = [
            {
                "name": output,
                "datatype": "FP32",
                "shape": list(logits.shape),
                "data": found[output].flatten().tolist(),
            }
            for output in asked.outputs
        ]
        return {**answer, "outputs": outputs}


def read_inference(body: bytes, model: Model, limits: Limits) -> Inference:
    """The JSON body -> what it asks of `model`; RequestError (422, 413) for anything else."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        raise RequestError(422, "the body is not JSON") from None
    if not isinstance(said, dict) or not isinstance(said.get("inputs"), list) or len(said["inputs"]) != 1:
        raise RequestError(422, f"inputs: one tensor, named {INPUT}")
    name = said.get("id")
    if not isinstance(name, str | None):
        raise RequestError(422, "id: a text")
    wanted = said.get("outputs") or [{"name": output} for output in OUTPUTS]
    named = [one.get("name") if isinstance(one, dict) else None for one in wanted] if isinstance(wanted, list) else []
    outputs = tuple(output for output in OUTPUTS if output in named)
    if len(outputs) != len(named):
        raise RequestError(422, f"outputs: a list of {{name}}, each once; there are {' and '.join(OUTPUTS)}")
    return Inference(name, _pixels(said["inputs"][0], model, limits), outputs)


def _pixels(tensor: Any, model: Model, limits: Limits) -> Tensor:
    if not isinstance(tensor, dict) or tensor.get("name") != INPUT or tensor.get("datatype") != "UINT8":
        raise RequestError(422, f"inputs: the tensor is called {INPUT}, its datatype is UINT8")
    shape: Any = tensor.get("shape")
    channels = model.engine.preprocess.channels
    whole = (
        isinstance(shape, list) and len(shape) == 4 and all(type(length) is int and length > 0 for length in shape)
    )
    if not whole or shape[1] != channels:
        raise RequestError(422, f"shape: [n, {channels}, height, width]")
    count, _, height, width = shape
    most = max(limits.max_size, model.engine.preprocess.size)
    if count > limits.max_pictures:
        raise RequestError(413, f"shape: {count} pictures; send at most {limits.max_pictures} at once")
    if min(height, width) < model.min_size or max(height, width) > most:
        raise RequestError(
            422, f"shape: {model.name} takes heights and widths of {model.min_size} to {most} pixels here"
        )
    try:
        values = np.asarray(tensor.get("data"))
    except (ValueError, OverflowError, RecursionError):
        raise RequestError(422, "data: whole numbers, flat or nested like the shape") from None
    if values.dtype.kind != "i" or values.shape not in ((count * channels * height * width,), tuple(shape)):
        raise RequestError(422, "data: whole numbers, flat or nested like the shape, as many as it says")
    if values.min() < 0 or values.max() > 255:
        raise RequestError(422, "data: UINT8 is 0 to 255")
    return torch.from_numpy(values.astype(np.uint8).reshape(shape))


def _version(service: Service, name: str, version: str | None) -> Model:
    model = service.models.get(name)
    if version not in (None, str(model.version)):
        raise RequestError(404, f"{name} is at version {model.version}; version {version[:20]} is not kept")
    return model
