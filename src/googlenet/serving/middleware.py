"""ASGI middleware that admits requests: API key, resource budget, body size, timeout, security headers, metrics.

It is the outermost layer of the application, so that every request gets a response and is counted.
"""

import asyncio
import hmac
import logging
import re
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .config import ServeConfig
from .metrics import Metrics
from .schemas import INTERNAL_ERROR, error_response

log = logging.getLogger("googlenet.serve")
access_log = logging.getLogger("googlenet.access")

# A client's own request id is used if it cannot break a line of the log.
REQUEST_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)

# These paths need no API key: the page asks the user for it, and health checks do not have one.
PUBLIC_PATHS = frozenset(("/", "/docs", "/openapi.json", "/healthz", "/v2/health/live", "/v2/health/ready"))

# The body of a rejected request is drained for as many seconds, up to twice the largest body, before the response is
# sent. Otherwise a client that is still sending gets ECONNRESET instead of the response.
DRAIN_TIMEOUT = 5.0

# A tenth of the memory is kept for requests of at most as many bytes.
SMALL_REQUEST = 1_000_000

# nginx's status for a client that did not wait. No client receives it; it is in the log and the metrics.
CLIENT_CLOSED_REQUEST = 499

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass
class ResourceBudget:
    """Images and bytes of all unfinished requests. Used from the event loop only."""

    max_images: int
    max_memory: int
    images: int = 0
    memory: int = 0


@dataclass
class Reservation:
    """The share of a `ResourceBudget` that one request holds; it is released at the end of the ``with`` block."""

    budget: ResourceBudget
    images: int = 0
    memory: int = 0

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self.budget.images -= self.images
        self.budget.memory -= self.memory

    def reserve(self, images: int = 0, memory: int = 0) -> None:
        """Add images and bytes to the reservation.

        Raises HTTPException: 413 if the request alone exceeds the budget, 429 if it does together with others.
        """
        self.check(images, memory)
        for holder in (self.budget, self):
            holder.images += images
            holder.memory += memory

    def check(self, images: int, memory: int) -> None:
        """Raise the exceptions of `reserve` without reserving anything."""
        budget = self.budget
        if self.images + images > budget.max_images or self.memory + memory > budget.max_memory:
            raise HTTPException(413, "the request exceeds the server's memory limit; send fewer images or sizes")
        # Large requests must not keep small ones out.
        kept = budget.max_memory // 10 if SMALL_REQUEST < self.memory + memory < budget.max_memory // 2 else 0
        if budget.images + images > budget.max_images or budget.memory + memory > budget.max_memory - kept:
            raise HTTPException(429, "the server is busy; retry later", {"Retry-After": "1"})


class MemoryPool:
    """Bytes that tasks hold for a short time. Others wait for their turn, in order, for at most `timeout` seconds.

    Used from the event loop only.
    """

    def __init__(self, capacity: int, timeout: float):
        self.capacity = self.free = capacity
        self.timeout = timeout
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Hold `size` bytes in the ``async with`` block.

        Raises HTTPException: 413 if that is more than all, 503 if the others do not free them in time.
        """
        if size > self.capacity:
            raise HTTPException(413, f"decoding the image needs {size / 1e6:.0f} MB of memory; resize it first")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        self._admit()
        try:
            try:
                async with asyncio.timeout(self.timeout):
                    await turn
            except TimeoutError:
                message = "the server is busy with large images; retry later"
                raise HTTPException(503, message, {"Retry-After": "5"}) from None
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self.free += size
            self._admit()

    def _admit(self) -> None:
        while self._waiting:
            size, turn = self._waiting[0]
            if not turn.done():
                if size > self.free:
                    return
                self.free -= size
                turn.set_result(None)
            self._waiting.popleft()


class AdmissionMiddleware:
    """ASGI application around `app`. While `draining`, every response closes its connection."""

    def __init__(self, app: ASGIApp, config: ServeConfig, budget: ResourceBudget, metrics: Metrics):
        self.app, self.config, self.limits, self.budget, self.metrics = app, config, config.limits, budget, metrics
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http":
            await _RequestGuard(self, scope, receive, send).run()
        else:
            await self.app(scope, receive, send)

    def is_authorized(self, headers: Mapping[str, str]) -> bool:
        """Check the API key, sent as ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``."""
        if self.config.api_key is None:
            return True
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        # Compare in constant time: the response time must not reveal how much of a key is correct.
        return hmac.compare_digest(key.encode(), self.config.api_key.encode())


class _RequestGuard:
    """One request. It replaces `receive` and `send` of the application to count bytes and to add headers."""

    def __init__(self, middleware: AdmissionMiddleware, scope: Scope, receive: Receive, send: Send):
        self.middleware, self.scope = middleware, scope
        self._receive, self._send = receive, send
        self.received_bytes = 0
        self.reservation = scope.setdefault("state", {})["reservation"] = Reservation(middleware.budget)
        self.complete = scope["method"] in ("GET", "HEAD")  # True when the body has been received
        self.body_received = asyncio.Event()
        self.status: int | None = None
        request_id = Headers(scope=scope).get("x-request-id", "")
        self.request_id = request_id if REQUEST_ID.fullmatch(request_id) else uuid.uuid4().hex

    async def run(self) -> None:
        middleware, start = self.middleware, time.perf_counter()
        timeout = middleware.limits.timeout
        try:
            with self.reservation:
                async with asyncio.timeout(timeout):
                    self.admit()
                    await self.run_while_connected()
        except HTTPException as error:
            await self.respond_error(self.error(error.status_code, error.detail, error.headers))
        except TimeoutError:
            status, what = (504, "no response") if self.complete else (408, "the body was not received")
            await self.respond_error(self.error(status, f"{what} within {timeout:g} s"))
        except Exception:
            log.exception("%s %r, request %s", self.scope["method"], self.scope["path"], self.request_id)
            await self.respond_error(self.error(500, INTERNAL_ERROR))
        finally:
            route, seconds = getattr(self.scope.get("route"), "path", "none"), time.perf_counter() - start
            middleware.metrics.requests.labels(route, str(self.status)).inc()
            middleware.metrics.request_duration.labels(route).observe(seconds)
            access_log.info(
                "%s %s %r %s, %d bytes received, %.1f ms, request %s", (self.scope.get("client") or ["-"])[0],
                self.scope["method"], self.scope["path"], self.status, self.received_bytes, 1e3 * seconds,
                self.request_id,
            )  # fmt: skip

    async def run_while_connected(self) -> None:
        """Run the application; cancel it when the client disconnects, which saves the computation."""
        task = asyncio.current_task()
        assert task is not None
        connection = asyncio.create_task(self.cancel_when_disconnected(task))
        try:
            await self.middleware.app(self.scope, self.receive, self.send)
        except asyncio.CancelledError:
            if not connection.done():  # it was cancelled for another reason
                raise
            task.uncancel()
            self.status = CLIENT_CLOSED_REQUEST
        finally:
            connection.cancel()

    async def cancel_when_disconnected(self, task: "asyncio.Task[Any]") -> None:
        """Cancel `task` if the client disconnects after it has sent the body; before, the application notices it."""
        await self.body_received.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self.status is None:
            task.cancel()

    def admit(self) -> None:
        """Check API key, announced body size and resource budget; raises HTTPException."""
        headers = Headers(scope=self.scope)
        self.check_origin(headers)
        if self.scope["path"] not in PUBLIC_PATHS and not self.middleware.is_authorized(headers):
            raise HTTPException(401, "API key required: send Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"})
        if self.complete:
            return
        if (encoding := headers.get("content-encoding", "identity").strip().lower()) != "identity":
            raise HTTPException(415, f"Content-Encoding {encoding[:40]} is not supported; send the body uncompressed")
        length = headers.get("content-length", "0")
        size = int(length) if length.isdecimal() and len(length) < 20 else 0
        self.check_size(size)
        # Nothing is reserved before it arrives: clients that send slowly must not keep others out.
        self.reservation.check(self.num_images, size)

    @property
    def num_images(self) -> int:
        """The images that a request holds at least from the moment at which its body is complete."""
        return int(self.scope["method"] == "POST")

    def check_origin(self, headers: Headers) -> None:
        """Reject requests that a web page of another site makes a browser send; raises HTTPException.

        A page can send them under its own name (`Origin`), or under a name that it lets point to this machine (`Host`).
        """
        allowed, host = self.middleware.config.allowed_hosts, _host_name(headers.get("host", ""))
        if allowed and host not in allowed:
            raise HTTPException(403, f"unknown host {host!r}; start the server with --allowed-host {host}")
        origin = headers.get("origin", "")
        if not self.complete and origin and _host_name(origin.rpartition("//")[2]) != host:
            raise HTTPException(403, f"requests from pages of {origin} are not accepted")

    def check_size(self, size: int) -> None:
        limit = self.middleware.limits.max_body_bytes
        if size > limit:
            raise HTTPException(413, f"the request body is larger than {limit:,} bytes")

    async def receive(self) -> Message:
        """Receive the next part of the body; raises HTTPException if the body becomes too large."""
        message = await self._receive()
        if message["type"] == "http.request":
            self.count(message)
            self.check_size(self.received_bytes)
            self.reservation.reserve(self.num_images if self.complete else 0, len(message.get("body", b"")))
        return message

    def count(self, message: Message) -> None:
        self.received_bytes += len(message.get("body", b""))
        if not message.get("more_body", False):
            self.complete = True
            self.body_received.set()

    async def send(self, message: Message) -> None:
        """Send a part of the response with the headers that every response has."""
        if message["type"] == "http.response.start":
            if not self.complete and message["status"] != HTTPStatus.REQUEST_TIMEOUT:
                await self.drain_body()
            self.status = message["status"]
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            headers["X-Request-Id"] = self.request_id
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
            if self.middleware.draining or not self.complete:
                headers["Connection"] = "close"
        await self._send(message)

    def error(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
        return error_response(status, message, headers, self.scope["path"])

    async def respond_error(self, response: Response) -> None:
        """Send an error response unless a response has been started."""
        if self.status is None:
            await response(self.scope, self._receive, self.send)

    async def drain_body(self) -> None:
        """Receive and discard the rest of the body, unless the client waits for permission to send it."""
        if Headers(scope=self.scope).get("expect", "").lower() == "100-continue" and not self.received_bytes:
            return  # receiving would give the permission
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_TIMEOUT):
                while not self.complete and self.received_bytes < 2 * self.middleware.limits.max_body_bytes:
                    message = await self._receive()
                    if message["type"] != "http.request":
                        return
                    self.count(message)


def _host_name(host: str) -> str:
    """Return the name or address in ``NAME:PORT`` or ``[ADDRESS]:PORT``, in lower case."""
    name = host.lower().partition("]")[0].removeprefix("[") if host.startswith("[") else host.lower().partition(":")[0]
    return name.removesuffix(".")
