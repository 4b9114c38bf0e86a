"""ASGI middleware that admits requests: API key, resource budget, body size, timeout, security headers, metrics.

It is the outermost layer of the application, so that every request gets a response and is counted.
"""

import asyncio
import hmac
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .config import Limits
from .metrics import Metrics
from .schemas import INTERNAL_ERROR, error_response

log = logging.getLogger("googlenet.serve")

# These paths need no API key: the page asks the user for it, and health checks do not have one.
PUBLIC_PATHS = frozenset(("/", "/docs", "/openapi.json", "/healthz", "/v2/health/live", "/v2/health/ready"))

# The body of a rejected request is drained, up to these limits, before the response is sent. Otherwise a client that
# is still sending gets ECONNRESET instead of the response.
DRAIN_BYTES, DRAIN_TIMEOUT = 64_000_000, 5.0

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
        budget = self.budget
        if self.images + images > budget.max_images or self.memory + memory > budget.max_memory:
            raise HTTPException(413, "the request exceeds the server's memory limit; send fewer images or sizes")
        if budget.images + images > budget.max_images or budget.memory + memory > budget.max_memory:
            raise HTTPException(429, "the server is busy; retry later", {"Retry-After": "1"})
        for holder in (budget, self):
            holder.images += images
            holder.memory += memory


class AdmissionMiddleware:
    """ASGI application around `app`. While `draining`, every response closes its connection."""

    def __init__(
        self, app: ASGIApp, limits: Limits, budget: ResourceBudget, metrics: Metrics, api_key: str | None = None
    ):
        self.app, self.limits, self.budget, self.metrics, self.api_key = app, limits, budget, metrics, api_key
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http":
            await _RequestGuard(self, scope, receive, send).run()
        else:
            await self.app(scope, receive, send)

    def is_authorized(self, headers: Mapping[str, str]) -> bool:
        """Check the API key, sent as ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``."""
        if self.api_key is None:
            return True
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        # Compare in constant time: the response time must not reveal how much of a key is correct.
        return hmac.compare_digest(key.encode(), self.api_key.encode())


class _RequestGuard:
    """One request. It replaces `receive` and `send` of the application to count bytes and to add headers."""

    def __init__(self, middleware: AdmissionMiddleware, scope: Scope, receive: Receive, send: Send):
        self.middleware, self.scope = middleware, scope
        self._receive, self._send = receive, send
        self.received_bytes = 0
        self.reservation = scope.setdefault("state", {})["reservation"] = Reservation(middleware.budget)
        self.complete = scope["method"] in ("GET", "HEAD")  # True when the body has been received
        self.status: int | None = None

    async def run(self) -> None:
        middleware, start = self.middleware, time.perf_counter()
        timeout = middleware.limits.timeout
        try:
            with self.reservation:
                async with asyncio.timeout(timeout):
                    self.admit()
                    await middleware.app(self.scope, self.receive, self.send)
        except HTTPException as error:
            await self.respond_error(error_response(error.status_code, error.detail, error.headers))
        except TimeoutError:
            status, what = (504, "no response") if self.complete else (408, "the body was not received")
            await self.respond_error(error_response(status, f"{what} within {timeout:g} s"))
        except Exception:
            log.exception("%s %r", self.scope["method"], self.scope["path"])
            await self.respond_error(error_response(500, INTERNAL_ERROR))
        finally:
            route = getattr(self.scope.get("route"), "path", "none")
            middleware.metrics.requests.labels(route, str(self.status)).inc()
            middleware.metrics.request_duration.labels(route).observe(time.perf_counter() - start)

    def admit(self) -> None:
        """Check API key, announced body size and resource budget; raises HTTPException."""
        headers = Headers(scope=self.scope)
        if self.scope["path"] not in PUBLIC_PATHS and not self.middleware.is_authorized(headers):
            raise HTTPException(401, "API key required: send Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"})
        if self.complete:
            return
        length = headers.get("content-length", "0")
        size = int(length) if length.isdecimal() and len(length) < 20 else 0
        self.check_size(size)
        self.reservation.reserve(images=1 if self.scope["method"] == "POST" else 0, memory=size)

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
            # The length of a chunked body is not announced, so its memory is reserved as it arrives.
            if self.received_bytes > self.reservation.memory:
                self.reservation.reserve(memory=self.received_bytes - self.reservation.memory)
        return message

    def count(self, message: Message) -> None:
        self.received_bytes += len(message.get("body", b""))
        self.complete = not message.get("more_body", False)

    async def send(self, message: Message) -> None:
        """Send a part of the response with the headers that every response has."""
        if message["type"] == "http.response.start":
            if not self.complete and message["status"] != HTTPStatus.REQUEST_TIMEOUT:
                await self.drain_body()
            self.status = message["status"]
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
            if self.middleware.draining or not self.complete:
                headers["Connection"] = "close"
        await self._send(message)

    async def respond_error(self, response: Response) -> None:
        """Send an error response unless a response has been started."""
        if self.status is None:
            await response(self.scope, self._receive, self.send)

    async def drain_body(self) -> None:
        """Receive and discard the rest of the body."""
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_TIMEOUT):
                while not self.complete and self.received_bytes < DRAIN_BYTES:
                    message = await self._receive()
                    if message["type"] != "http.request":
                        return
                    self.count(message)
