"""The one shape of everything that is not an answer: ``{"error": {"status": 422, "message": "..."}}``."""

from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException


class RequestError(Exception):
    """A request that is not answered; the message says in one line what is wrong and what to do."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer that says what went wrong, in one line."""
    # What a client sent may be in the message; half of a surrogate pair could not be written back.
    line = " ".join(message.split()).encode(errors="replace").decode()
    return JSONResponse({"error": {"status": status, "message": line}}, status, headers)


def first_problem(problems: RequestValidationError | list[dict[str, object]]) -> str:
    """pydantic's list -> the first of it: where, and what."""
    listed = problems.errors() if isinstance(problems, RequestValidationError) else problems
    problem = listed[0]
    place = problem.get("loc")
    where = ".".join(str(part) for part in place if part != "body") if isinstance(place, tuple) else ""
    return f"{where}: {problem['msg']}" if where else str(problem["msg"])


def add_error_handlers(app: FastAPI) -> None:
    """Answer every exception in the one shape."""

    async def refused(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestError)
        return error_response(error.status, error.message, error.headers)

    async def http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        known = {404: "there is nothing at this address; /docs lists what there is"}
        message = (
            known.get(error.status_code, str(error.detail)) if error.detail == "Not Found" else str(error.detail)
        )
        return error_response(error.status_code, message, error.headers)

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return error_response(422, first_problem(error))

    app.add_exception_handler(RequestError, refused)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
