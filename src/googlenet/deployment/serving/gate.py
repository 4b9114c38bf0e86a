"""What every request passes before a route sees it: the key, the room there is, its bytes, its time.

It is the outermost layer of the application, so whatever happens inside is answered, in the one shape, and counted.
"""

import asyncio
import hmac
import logging
import time
from collections.abc import Mapping
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import RequestError, error_response
from .limits import Limits, Room, Stay
from .metrics import Metrics

log = logging.getLogger("googlenet.serve")

# Open without a key: the page asks for it, and whoever looks after the server has none to give.
OPEN = frozenset(("/", "/docs", "/openapi.json", "/healthz", "/v2/health/live", "/v2/health/ready"))

# A body that is refused is read all the same, up to so many bytes and seconds: closing on a client that still sends
# would take the answer from it.
REFUSED_BYTES, REFUSED_SECONDS = 64_000_000, 5.0

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Gate:
    """An application around the application. `draining`: answer what comes, and let go of the connection after it."""

    def __init__(self, app: ASGIApp, limits: Limits, room: Room, metrics: Metrics, key: str | None = None):
        self.app, self.limits, self.room, self.metrics = app, limits, room, metrics
        self.key = key
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await _Passage(self, scope, receive, send).go()

    def knows(self, headers: Mapping[str, str]) -> bool:
        """Whether the request brings the key, as ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``."""
        if self.key is None:
            return True
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        # Takes as long for a key that is nearly right as for any other.
        return hmac.compare_digest(given.encode(), self.key.encode())


class _Passage:
    """One request's way through the gate."""

    def __init__(self, gate: Gate, scope: Scope, receive: Receive, send: Send):
        self.gate, self.scope = gate, scope
        self._receive, self._send = receive, send
        self.came = 0  # bytes of the body
        self.stay: Stay | None = None
        self.complete = scope["method"] in ("GET", "HEAD")
        self.status: int | None = None
        self.answered = False

    async def go(self) -> None:
        gate, started = self.gate, time.perf_counter()
        try:
            with gate.room.stay() as stay:
                self.scope.setdefault("state", {})["stay"] = self.stay = stay
                async with asyncio.timeout(gate.limits.timeout):
                    self.admit(stay)
                    await gate.app(self.scope, self.receive, self.send)
        except RequestError as error:
            await self.refuse(error_response(error.status, error.message, error.headers))
        except TimeoutError:
            what = "no answer was found" if self.complete else "the body had not arrived"
            await self.refuse(
                error_response(504 if self.complete else 408, f"{what} within {gate.limits.timeout:g} s")
            )
        except Exception:
            log.exception("%s %r", self.scope["method"], self.scope["path"])
            await self.refuse(error_response(500, "something is wrong in the server; its log says what"))
        finally:
            route = getattr(self.scope.get("route"), "path", "none")
            gate.metrics.requests.labels(route, str(self.status)).inc()
            gate.metrics.seconds.labels(route).observe(time.perf_counter() - started)

    def admit(self, stay: Stay) -> None:
        """Raise RequestError unless there is a key and room for it."""
        headers = Headers(scope=self.scope)
        if self.scope["path"] not in OPEN and not self.gate.knows(headers):
            raise RequestError(
                401, "this server asks for its key: Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"}
            )
        if self.complete:
            return
        length = headers.get("content-length", "0")
        size = int(length) if length.isdecimal() and len(length) < 20 else 0
        if size > self.gate.limits.max_bytes:
            raise self.too_large()
        stay.take(pictures=1 if self.scope["method"] == "POST" else 0, memory=size)

    def too_large(self) -> RequestError:
        return RequestError(413, f"the request has more than {self.gate.limits.max_bytes:,} bytes")

    async def receive(self) -> Message:
        """The next part of the body, while it is within bounds."""
        message = await self._receive()
        if message["type"] == "http.request":
            self.came += len(message.get("body", b""))
            self.complete = not message.get("more_body", False)
            if self.came > self.gate.limits.max_bytes:
                raise self.too_large()
            if self.stay is not None and self.came > self.stay.memory:  # a body of unannounced length
                self.stay.take(memory=self.came - self.stay.memory)
        return message

    async def send(self, message: Message) -> None:
        """A part of the answer, with the headers that every answer has."""
        if message["type"] == "http.response.start":
            if not self.complete and message["status"] != HTTPStatus.REQUEST_TIMEOUT:
                await self.discard()
            self.status = message["status"]
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            if self.gate.draining or not self.complete:
                headers["Connection"] = "close"
        await self._send(message)

    async def refuse(self, response: Response) -> None:
        """Answer with an error, unless an answer has begun."""
        if self.status is not None:
            log.warning("%s %r: cut short", self.scope["method"], self.scope["path"])
            return
        await response(self.scope, self._receive, self.send)

    async def discard(self) -> None:
        """Read what is left of the body, and forget it."""
        try:
            async with asyncio.timeout(REFUSED_SECONDS):
                while not self.complete and self.came < REFUSED_BYTES:
                    message = await self._receive()
                    if message["type"] != "http.request":
                        return
                    self.came += len(message.get("body", b""))
                    self.complete = not message.get("more_body", False)
        except TimeoutError:
            return
