"""Bodies of requests -> what they ask: form files, JSON with base64, or the picture itself as the body."""

import base64
import binascii
from typing import Annotated, Any, NamedTuple

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, UploadFile

from .errors import RequestError, first_problem
from .limits import Limits

FETCHES_NOTHING = "an address was sent; send the picture itself: this server fetches nothing"
ADDRESSES = ("http:", "https:", "ftp:", "file:", "//")

Base64 = Annotated[str, Field(description="The picture's file in base64, or a data: URL. No web address.")]


class Asked(BaseModel):
    """The JSON body of a question about pictures."""

    model_config = ConfigDict(extra="forbid", strict=True)

    images: Annotated[list[Base64], Field(min_length=1, description="One or more pictures")]
    top: Annotated[int, Field(ge=1, le=1000, description="Classes to name")] = 5
    sizes: Annotated[
        list[int] | None, Field(min_length=1, description="Heights and widths in pixels; unset: the model's own")
    ] = None
    model: Annotated[str | None, Field(description="A name that /v1/models lists; unset: the first")] = None
    label: Annotated[str | None, Field(description="The class to explain; unset: the best one")] = None


class Picture(NamedTuple):
    """A file as it was sent, and what to call it in messages."""

    name: str
    data: bytes


class Question(NamedTuple):
    """What a request asks; `sizes` is empty for the model's own."""

    pictures: list[Picture]
    top: int
    sizes: tuple[int, ...]
    model: str | None
    label: str | None


# The same, for the OpenAPI document. Texts stand for numbers in a form; what is read is checked by `Asked`.
FORM = {
    "type": "object",
    "required": ["image"],
    "properties": {
        "image": {
            "type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"},
            "description": "One or more picture files",
        },
        "top": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 5, "description": "Classes to name"},
        "sizes": {"type": "string", "example": "96,128", "description": "Heights and widths in pixels, with commas"},
        "model": {"type": "string", "description": "A name that /v1/models lists"},
        "label": {"type": "string", "description": "The class to explain"},
    },
}  # fmt: skip

BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {"schema": FORM},
        "application/json": {"schema": Asked.model_json_schema()},
        "image/*": {"schema": {"type": "string", "format": "binary"}},
    },
}


async def read_question(request: Request, limits: Limits) -> Question:
    """The question in a request's body and address; RequestError (415, 422, 413) for what is none."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    values: dict[str, Any] = {
        key: request.query_params[key] for key in Asked.model_fields if key in request.query_params
    }
    if kind == "application/json":
        asked = _json(await request.body())
        pictures = [_from_base64(text, number) for number, text in enumerate(asked.images, start=1)]
    elif kind == "multipart/form-data":
        async with request.form(max_files=limits.max_pictures + 1, max_fields=16, max_part_size=65_536) as form:
            pictures = await _from_form(form)
            values |= {key: form[key] for key in ("top", "sizes", "model", "label") if key in form}
        asked = _checked(values)
    elif kind.startswith("image/") or kind == "application/octet-stream":
        pictures = [Picture("the picture", await request.body())]
        asked = _checked(values)
    else:
        raise RequestError(
            415,
            f"the content type is {kind or 'missing'}; send multipart/form-data, application/json, or an image/ type",
        )
    if len(pictures) > limits.max_pictures:
        raise RequestError(413, f"{len(pictures)} pictures; send at most {limits.max_pictures} at once")
    sizes = tuple(asked.sizes or ())
    if len(sizes) > limits.max_sizes:
        raise RequestError(422, f"sizes: {len(sizes)} of them; ask for at most {limits.max_sizes}")
    return Question(pictures, asked.top, sizes, asked.model, asked.label)


def _json(body: bytes) -> Asked:
    try:
        return Asked.model_validate_json(body)
    except ValidationError as error:
        raise RequestError(422, first_problem(error.errors(include_url=False))) from None  # type: ignore[arg-type]


def _checked(values: dict[str, Any]) -> Asked:
    """The texts of a form or an address, as the JSON body would say them."""
    said = {key: value for key, value in values.items() if value != "" and key != "images"}
    for key, text in said.items():
        if not isinstance(text, str):
            raise RequestError(422, f"{key}: a file was sent where a text belongs")
    try:
        if "top" in said:
            said["top"] = _whole_number(said["top"])
        if "sizes" in said:
            said["sizes"] = [_whole_number(part) for part in said["sizes"].split(",")]
    except ValueError as error:
        raise RequestError(422, str(error)) from None
    try:
        return Asked.model_validate({"images": [""], **said})
    except ValidationError as error:
        raise RequestError(422, first_problem(error.errors(include_url=False))) from None  # type: ignore[arg-type]


def _whole_number(text: str) -> int:
    if not text.strip().isdecimal() or len(text) > 9:
        raise ValueError(f"whole numbers, and commas between several, not {text[:40]!r}")
    return int(text)


def _from_base64(text: str, number: int) -> Picture:
    name = f"picture {number}"
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise RequestError(422, f"{name}: a data: URL must be in base64")
    elif text[:8].lower().startswith(ADDRESSES):
        raise RequestError(422, f"{name}: {FETCHES_NOTHING}")
    try:
        return Picture(name, base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        raise RequestError(422, f"{name}: not base64; send the file's bytes in base64, without line breaks") from None


async def _from_form(form: FormData) -> list[Picture]:
    pictures: list[Picture] = []
    for key, value in form.multi_items():
        if key not in ("image", "images", "file"):
            if isinstance(value, UploadFile):
                raise RequestError(422, f"{key[:40]}: pictures are sent as image")
            continue
        if not isinstance(value, UploadFile):
            address = value[:8].lower().startswith(ADDRESSES)
            raise RequestError(422, f"{key}: {FETCHES_NOTHING if address else 'send a file, with a file name'}")
        name = (value.filename or "").rpartition("/")[2][:80] or f"picture {len(pictures) + 1}"
        pictures.append(Picture(name, await value.read()))
    if not pictures:
        raise RequestError(422, "no picture was sent; send one or more files as image")
    return pictures
