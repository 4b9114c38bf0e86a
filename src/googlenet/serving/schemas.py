"""Bodies of requests with images (forms, JSON with base64, image files), and of errors.

Code that rejects a request raises `starlette.exceptions.HTTPException` with a one-line message, or lets pydantic's
`ValidationError` propagate (status 422). The response is ``{"error": {"status": 422, "message": "..."}}``, or, as the
Open Inference Protocol requires, ``{"error": "..."}`` below ``/v2``.
"""

import asyncio
import base64
import binascii
from collections.abc import Mapping
from typing import Annotated, Any, Generic, NamedTuple, TypeVar, cast

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from pydantic_core import from_json
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from .config import Limits

INTERNAL_ERROR = "internal server error; see the log of the server"
URL_PREFIXES = ("http:", "https:", "ftp:", "file:", "//")
URL_MESSAGE = "URLs are not fetched; send the image bytes"

MAX_OPTION_COMMAS = 256  # in the options of a JSON body, such as the sizes and the name of a class

_SIZES_HELP = "Input sizes in pixels; default: that of the model"

Base64Image = Annotated[str, Field(description="An image file in base64, or a data: URL")]


class ErrorDetail(BaseModel):
    """HTTP status, and one line: what is wrong and what to do."""

    status: int
    message: str


class ErrorResponse(BaseModel):
    """Body of every error response."""

    error: ErrorDetail


class ModelOptions(BaseModel, extra="forbid"):
    """Options of a request: fields of the JSON body or form, or query parameters if the body is an image."""

    model: Annotated[str | None, Field(description="Name of a model in /v1/models; default: the first")] = None


class DetectOptions(ModelOptions):
    """Options of ``/v1/detect``."""

    score_threshold: Annotated[float, Field(ge=0, lt=1, description="Boxes with a score above this are returned")] = 0.3
    max_detections: Annotated[
        int | None, Field(ge=1, le=10_000, description="Number of boxes per image, best first; default: the model's")
    ] = None


class RequestOptions(ModelOptions):
    """Options of ``/v1/predict`` and ``/v1/explain``."""

    top: Annotated[int, Field(ge=1, le=1000, description="Number of classes to return")] = 5
    sizes: Annotated[list[int] | None, Field(min_length=1, fail_fast=True, description=_SIZES_HELP)] = None
    label: Annotated[str | None, Field(description="Class to explain; default: the most probable")] = None


Base64Images = Annotated[list[Base64Image], Field(min_length=1, fail_fast=True, description="One or more images")]


class PredictBody(RequestOptions, strict=True):
    """JSON body of ``/v1/predict`` and ``/v1/explain``."""

    images: Base64Images


class DetectBody(DetectOptions, strict=True):
    """JSON body of ``/v1/detect``."""

    images: Base64Images


_BODIES: dict[type[ModelOptions], type[PredictBody | DetectBody]] = {
    RequestOptions: PredictBody,
    DetectOptions: DetectBody,
}
Options = TypeVar("Options", bound=ModelOptions)


class UploadedImage(NamedTuple):
    """An image file and its name for messages."""

    name: str
    data: bytes


class ImageRequest(NamedTuple, Generic[Options]):
    """A parsed request."""

    images: list[UploadedImage]
    options: Options


def error_schema(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe error responses for the OpenAPI document."""
    return {status: {"model": ErrorResponse, "description": "Error"} for status in statuses}


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None, path: str = "") -> JSONResponse:
    """Build the response for an error at a URL `path`. The message is reduced to one line."""
    # Messages may quote text from the request, and a lone surrogate cannot be encoded as UTF-8.
    line = " ".join(message.split()).encode(errors="replace").decode()
    v2 = path == "/v2" or path.startswith("/v2/")
    return JSONResponse({"error": line if v2 else {"status": status, "message": line}}, status, headers)


def request_body(options: type[ModelOptions]) -> dict[str, Any]:
    """Describe the request body for the OpenAPI document.

    `parse_request` reads it, because FastAPI supports one content type only.
    """
    form = options.model_json_schema()
    form["required"] = ["image"]
    form["properties"]["image"] = {
        "type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"},
        "description": "One or more image files",
    }  # fmt: skip
    if "sizes" in form["properties"]:
        description = "Input sizes in pixels, separated by commas"
        form["properties"]["sizes"] = {"type": "string", "example": "96,128", "description": description}
    return {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": form},
            "application/json": {"schema": _BODIES[options].model_json_schema()},
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    }


def parse_json(body: bytes) -> Any:
    """Parse JSON to Python objects; raises HTTPException (422).

    pydantic's own parser first builds values of its own, which need up to a hundred times the size of the text.
    """
    try:
        return from_json(body, cache_strings="none")
    except ValueError as error:
        raise HTTPException(422, f"not valid JSON: {error}") from None


async def parse_request(request: Request, limits: Limits, options_type: type[Options]) -> ImageRequest[Options]:
    """Parse a request; raises HTTPException (413, 415, 422) or ValidationError (422)."""
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    options: Options
    if content_type == "application/json":
        content = await request.body()
        # Base64 has no commas. Counting them is fast; parsing a million short texts is not, nor is one with escapes,
        # so the text is not parsed on the event loop.
        if content.count(b",") > 2 * limits.max_images + MAX_OPTION_COMMAS:
            raise HTTPException(413, f"too many values; the limit is {limits.max_images} images per request")
        request.state.reservation.reserve(memory=2 * len(content))  # the texts, and the files in them
        body = _BODIES[options_type].model_validate(await asyncio.to_thread(parse_json, content))
        options = cast(Options, body)
        _check_count(len(body.images), limits)
        names = [f"image {index}" for index in range(1, len(body.images) + 1)]
        images = await asyncio.to_thread(lambda: list(map(_decode_base64, body.images, names)))
    elif content_type == "multipart/form-data":
        async with request.form(max_files=limits.max_images + 1, max_fields=16, max_part_size=65_536) as form:
            images = await _read_files(form)
            options = _parse_options({**request.query_params, **form}, options_type)
    elif content_type.startswith("image/") or content_type == "application/octet-stream":
        images = [UploadedImage("the image", await request.body())]
        options = _parse_options(request.query_params, options_type)
    else:
        advice = "send multipart/form-data, application/json or an image/ type"
        raise HTTPException(415, f"unsupported content type {content_type or '(missing)'}; {advice}")
    _check_count(len(images), limits)
    sizes: list[int] = getattr(options, "sizes", None) or []
    if len(sizes) > limits.max_sizes:
        raise HTTPException(422, f"sizes: {len(sizes)} sizes; the limit is {limits.max_sizes} per request")
    if len(set(sizes)) < len(sizes):
        raise HTTPException(422, "sizes: duplicate size")
    return ImageRequest(images, options)


def _check_count(count: int, limits: Limits) -> None:
    if count > limits.max_images:
        raise HTTPException(413, f"{count} images; the limit is {limits.max_images} per request")


def _parse_options(values: Mapping[str, Any], options_type: type[Options]) -> Options:
    """Parse form fields or query parameters, in which numbers are text and an empty text means the default."""
    known = {name: values[name] for name in options_type.model_fields if values.get(name, "") != ""}
    if isinstance(known.get("sizes"), str):
        known["sizes"] = known["sizes"].split(",")
    return options_type.model_validate(known)


def _decode_base64(text: str, name: str) -> UploadedImage:
    if text.startswith("data:"):
        header, comma, text = text.partition(",")
        if not comma or not header.endswith(";base64"):
            raise HTTPException(422, f"{name}: data: URLs must be in base64")
    elif text[:8].lower().startswith(URL_PREFIXES):
        raise HTTPException(422, f"{name}: {URL_MESSAGE}")
    try:
        return UploadedImage(name, base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        raise HTTPException(422, f"{name}: not base64; encode the image file without line breaks") from None


async def _read_files(form: FormData) -> list[UploadedImage]:
    images: list[UploadedImage] = []
    for key, value in form.multi_items():
        if key not in ("image", "images", "file"):
            if isinstance(value, UploadFile):
                raise HTTPException(422, f"{key[:40]}: send image files in the field image")
        elif isinstance(value, UploadFile):
            name = (value.filename or "").rpartition("/")[2][:80] or f"image {len(images) + 1}"
            images.append(UploadedImage(name, await value.read()))
        else:
            url = value[:8].lower().startswith(URL_PREFIXES)
            raise HTTPException(422, f"{key}: {URL_MESSAGE if url else 'send a file with a file name'}")
    if not images:
        raise HTTPException(422, "no image; send one or more files in the field image")
    return images
