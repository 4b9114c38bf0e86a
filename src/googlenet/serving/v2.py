"""The Open Inference Protocol, version 2, over HTTP (https://github.com/kserve/open-inference-protocol).

A model has one input, ``pixels``: UINT8, unnormalized, [n, channels, height, width]; and two outputs, ``logits`` and
``probabilities``: FP32, [n, classes]. Tensors are in the JSON or, with the extension for binary tensor data, behind it.
"""

import itertools
import json
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from torch import Tensor

from .. import __version__
from ..evaluation.predictor import get_thresholds
from ..models.ensemble import to_probabilities
from .middleware import AdmissionMiddleware
from .repository import DetectorVersion, ModelVersion
from .schemas import error_response, parse_json
from .service import InferenceService

INPUT = "pixels"
OUTPUTS: tuple[str, ...] = ("logits", "probabilities")
HEADER_LENGTH = "Inference-Header-Content-Length"  # bytes of JSON in front of the binary data
# More than the rows of a batch of the largest images. Parsing as many lists stays below a tenth of a second.
MAX_JSON_LISTS = 200_000
# The names of a request have tens; the pixels have none.
MAX_JSON_QUOTES = 2000
MODEL_NAME: Any = Path(description="Name of a model")


class InputParameters(BaseModel, strict=True):
    """The size of the input in the binary data."""

    binary_data_size: Annotated[int | None, Field(ge=0)] = None


class OutputParameters(BaseModel, strict=True, extra="forbid"):
    """Whether an output is returned as binary data. Other extensions would change the output, and are rejected."""

    binary_data: bool | None = None


class RequestParameters(BaseModel, strict=True):
    """Whether outputs are returned as binary data by default."""

    binary_data_output: bool = False


class RequestInput(BaseModel, strict=True):
    """The input tensor: `data`, or `binary_data_size` bytes behind the JSON."""

    name: Literal["pixels"]
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=4, max_length=4, fail_fast=True)]
    datatype: Literal["UINT8"]
    data: Annotated[list[Any] | None, Field(description="0 to 255, row-major, flat or nested like the shape")] = None
    parameters: InputParameters = InputParameters()


class RequestOutput(BaseModel, strict=True):
    """The name of a requested output."""

    name: Literal["logits", "probabilities"]
    parameters: OutputParameters = OutputParameters()


class InferBody(BaseModel, strict=True):
    """JSON body of a request."""

    id: str | None = None
    inputs: Annotated[list[RequestInput], Field(min_length=1, max_length=1)]
    outputs: Annotated[list[RequestOutput] | None, Field(max_length=2, description="Default: all outputs")] = None
    parameters: RequestParameters = RequestParameters()


class InferRequest(NamedTuple):
    """A parsed request: its id, pixels uint8 (n, channels, h, w), and for each output whether it is binary."""

    id: str | None
    pixels: Tensor
    outputs: dict[Literal["logits", "probabilities"], bool]


def _body_schema() -> dict[str, Any]:
    """Return the schema of the body with its definitions inlined: references have another root in OpenAPI."""
    schema = InferBody.model_json_schema()
    definitions = schema.pop("$defs")

    def inline(value: Any) -> Any:
        if isinstance(value, dict):
            name = str(value.get("$ref", "")).rpartition("/")[2]
            return inline(definitions[name]) if name else {key: inline(item) for key, item in value.items()}
        return [inline(item) for item in value] if isinstance(value, list) else value

    inlined: dict[str, Any] = inline(schema)
    return inlined


def create_router(service: InferenceService, middleware: AdmissionMiddleware) -> APIRouter:
    """Create the routes of the protocol."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

    @router.get("", summary="Server metadata")
    async def server() -> dict[str, Any]:
        """Name, version and extensions of the server."""
        return {"name": "googlenet", "version": __version__, "extensions": ["binary_tensor_data"]}

    @router.get("/health/live", summary="Liveness")
    async def live() -> dict[str, bool]:
        """200 while the process runs."""
        return {"live": True}

    @router.get("/health/ready", summary="Readiness", responses={503: {"description": "Not ready"}})
    async def ready() -> Response:
        """503 while the server starts or shuts down."""
        if service.ready and not middleware.draining:
            return JSONResponse({"ready": True})
        return error_response(503, "not ready", path="/v2")

    for path in ("/models/{name}", "/models/{name}/versions/{version}"):
        _add_model_routes(router, path, service)
    return router


def _add_model_routes(router: APIRouter, path: str, service: InferenceService) -> None:
    binary = {"schema": {"type": "string", "format": "binary"}}
    content = {"application/json": {"schema": _body_schema()}, "application/octet-stream": binary}
    extra = {"requestBody": {"required": True, "content": content}}

    @router.get(path, summary="Model metadata")
    async def metadata(name: str = MODEL_NAME, version: str | None = None) -> dict[str, Any]:
        """Inputs and outputs of a model; -1 is a variable dimension."""
        model = model_at_version(service, name, version)
        preprocess, classes = model.predictor.preprocess, model.predictor.classes
        return {
            "name": model.name,
            "versions": [str(model.version)],
            "platform": f"googlenet_{model.predictor.name}",
            "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [-1, preprocess.channels, -1, -1]}],
            "outputs": [{"name": output, "datatype": "FP32", "shape": [-1, len(classes)]} for output in OUTPUTS],
            "parameters": {
                "classes": list(classes),
                "size": preprocess.size,
                "thresholds": list(get_thresholds(model.predictor)),
            },
        }

    @router.get(path + "/ready", summary="Model readiness")
    async def ready(name: str = MODEL_NAME, version: str | None = None) -> dict[str, Any]:
        """200 if the model is loaded."""
        check_version(model := service.models.get(name), version)
        return {"name": model.name, "ready": True}

    @router.post(path + "/infer", summary="Inference", openapi_extra=extra, response_class=JSONResponse)
    async def infer(request: Request, name: str = MODEL_NAME, version: str | None = None) -> Response:
        """Classify pixels of any size from the model's minimum. The server only normalizes them."""
        model = model_at_version(service, name, version)
        header, binary = split_body(await request.body(), request.headers.get(HEADER_LENGTH))
        if len(header) > service.limits.max_json_bytes:
            limit = service.limits.max_json_bytes
            raise HTTPException(413, f"the JSON is larger than {limit:,} bytes; send the tensor as binary data")
        if header.count(b"[") + header.count(b"{") > MAX_JSON_LISTS or header.count(b'"') > MAX_JSON_QUOTES:
            raise HTTPException(422, "data: too many lists or texts; send a flat list of integers or binary data")
        request.state.reservation.reserve(memory=json_memory(header))
        parsed = await service.run_in_pool(parse_infer_request, header, binary, model, service)
        request.state.reservation.reserve(images=len(parsed.pixels) - 1, memory=parsed.pixels.numel())
        logits, _ = await service.logits(model, parsed.pixels)
        return infer_response(model, parsed, logits)


def split_body(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    """Return the JSON and the binary data of a body. Raises HTTPException (422)."""
    if header_length is None:
        return body, b""
    if not header_length.isdecimal() or len(header_length) > 12 or int(header_length) > len(body):
        raise HTTPException(422, f"{HEADER_LENGTH}: must be the number of bytes of JSON in the body")
    return body[: int(header_length)], body[int(header_length) :]


def json_memory(text: bytes) -> int:
    """Return an upper bound of the bytes that the parsed values need: numbers, texts, lists and objects."""
    return 14 * len(text) + 40 * text.count(b'"') + 120 * (text.count(b"[") + text.count(b"{"))


def parse_infer_request(header: bytes, binary: bytes, model: ModelVersion, service: InferenceService) -> InferRequest:
    """Parse the JSON and the binary data of a request to `model`.

    Raises HTTPException (413, 422) or ValidationError (422).
    """
    body = InferBody.model_validate(parse_json(header))
    requested = body.outputs or [RequestOutput(name="logits"), RequestOutput(name="probabilities")]
    outputs = {output.name: output.parameters.binary_data for output in requested}
    if len(outputs) < len(requested):
        raise HTTPException(422, "outputs: duplicate name")
    default = body.parameters.binary_data_output
    is_binary = {name: default if outputs[name] is None else bool(outputs[name]) for name in OUTPUTS if name in outputs}
    return InferRequest(body.id, _to_pixels(body.inputs[0], binary, model, service), is_binary)


def _to_pixels(tensor: RequestInput, binary: bytes, model: ModelVersion, service: InferenceService) -> Tensor:
    shape, channels = tensor.shape, model.predictor.preprocess.channels
    count, _, height, width = shape
    if shape[1] != channels:
        raise HTTPException(422, f"shape: expected [n, {channels}, height, width]")
    if count > service.limits.max_images:
        raise HTTPException(413, f"shape: {count} images; the limit is {service.limits.max_images} per request")
    low, high = model.predictor.min_size, service.max_size(model)
    if min(height, width) < low or max(height, width) > high:
        raise HTTPException(422, f"shape: {model.name} accepts heights and widths of {low} to {high} pixels")
    size = tensor.parameters.binary_data_size
    if (size is None) == (tensor.data is None):
        raise HTTPException(422, "data: send either data or binary_data_size with binary data")
    if tensor.data is not None:
        binary = _flatten(tensor.data, shape)
    elif not size == len(binary) == math.prod(shape):
        problem = f"binary_data_size {size}, {len(binary)} bytes of data, {math.prod(shape)} in the shape"
        raise HTTPException(422, f"data: the sizes differ: {problem}")
    return torch.frombuffer(bytearray(binary), dtype=torch.uint8).view(shape)


def _flatten(data: list[Any], shape: Sequence[int]) -> bytes:
    """Return the bytes of a flat list, or of one nested like `shape`. Lengths are checked before anything is copied."""
    error = HTTPException(422, "data: expected integers from 0 to 255, flat or nested like the shape")
    values: list[Any] = [data]
    for length in [math.prod(shape)] if data and type(data[0]) is int else shape:
        if any(type(item) is not list or len(item) != length for item in values):
            raise error
        values = values[0] if len(values) == 1 else list(itertools.chain.from_iterable(values))
    if set(map(type, values)) != {int}:
        raise error
    try:
        return bytes(values)
    except (ValueError, OverflowError):
        raise error from None


def infer_response(model: ModelVersion, request: InferRequest, logits: Tensor) -> Response:
    """Build the response with the requested outputs of `logits` (n, classes)."""
    multilabel = bool(get_thresholds(model.predictor))
    values = {"logits": logits, "probabilities": to_probabilities(logits, multilabel).float()}
    outputs, binary = list[dict[str, Any]](), list[bytes]()
    for name, is_binary in request.outputs.items():
        output = {"name": name, "datatype": "FP32", "shape": list(logits.shape)}
        if is_binary:
            binary.append(values[name].contiguous().numpy().astype("<f4").tobytes())
            outputs.append(output | {"parameters": {"binary_data_size": len(binary[-1])}})
        else:
            outputs.append(output | {"data": values[name].flatten().tolist()})
    identity = {} if request.id is None else {"id": request.id}
    document = {"model_name": model.name, "model_version": str(model.version), **identity, "outputs": outputs}
    if not binary:
        return JSONResponse(document)
    header = json.dumps(document).encode()
    return Response(
        b"".join([header, *binary]), media_type="application/octet-stream", headers={HEADER_LENGTH: str(len(header))}
    )


def model_at_version(service: InferenceService, name: str, version: str | None) -> ModelVersion:
    """Return the current version of a classifier. Raises HTTPException (404; 422 for a detector)."""
    model = service.models.classifier(name)
    check_version(model, version)
    return model


def check_version(model: ModelVersion | DetectorVersion, version: str | None) -> None:
    """Raise HTTPException (404) if another version than the current one is requested."""
    if version is not None and version != str(model.version):
        current = f"the current one is {model.version}"
        raise HTTPException(404, f"{model.name}: version {version[:20]} is not available; {current}")
