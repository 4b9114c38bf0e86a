"""Run the application on a socket with uvicorn, with a timeout for request headers and a graceful shutdown."""

import asyncio
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .middleware import AdmissionMiddleware
from .schemas import error_response

HEADER_TIMEOUT = 10.0  # seconds until a connection without complete request headers is closed
# Seconds before idle connections are closed, so that their clients can still send a request.
IDLE_DELAY = 0.25
BACKLOG = 1024


class _Protocol(H11Protocol):
    """HTTP/1.1 with a timeout for request headers, and errors in the shape of all errors."""

    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_header_timer()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._cancel_header_timer()
        elif self._header_timer is None:
            self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_header_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Send an error response for bytes that are not a valid HTTP request."""
        response = error_response(400, "malformed HTTP request or header too large")
        headers = [*response.raw_headers, (b"connection", b"close")]
        start = h11.Response(status_code=400, headers=headers)
        for event in (start, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _start_header_timer(self) -> None:
        self._header_timer = self.loop.call_later(HEADER_TIMEOUT, self.transport.close)

    def _cancel_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


class Server(uvicorn.Server):
    """Shut down gracefully on SIGTERM and SIGINT: complete all requests. A second signal stops immediately.

    `on_started` is called when the server accepts requests.
    """

    def __init__(self, app: AdmissionMiddleware, on_started: Callable[[], None]):
        settings: dict[str, Any] = {
            "http": _Protocol, "ws": "none", "lifespan": "on", "log_config": None, "access_log": False,
            "server_header": False, "backlog": BACKLOG, "timeout_keep_alive": 15,
            "timeout_graceful_shutdown": round(app.limits.timeout) + 1,
        }  # fmt: skip
        super().__init__(uvicorn.Config(app, **settings))
        self.app, self.on_started = app, on_started  # responses carry `Connection: close` while `app.draining`
        self.drain_deadline: float | None = None
        self.interrupted = False  # by SIGINT

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then call `on_started`."""
        await super().startup(sockets)
        if self.started:
            self.on_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a shutdown signal."""
        self.interrupted |= sig == signal.SIGINT
        if self.app.draining:
            self.should_exit = self.force_exit = True
        self.app.draining = True
        self.drain_deadline = time.monotonic() + self.app.config.drain_seconds

    async def on_tick(self, counter: int) -> bool:
        """Shut down after the drain deadline; uvicorn calls this ten times per second."""
        if self.drain_deadline is not None and time.monotonic() >= self.drain_deadline:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept the connections in the backlog, close the listening sockets, and complete all requests."""
        loop = asyncio.get_running_loop()
        for listener in sockets or []:
            loop.remove_reader(listener.fileno())
            with suppress(BlockingIOError):
                while True:
                    connection, _ = listener.accept()
                    await loop.connect_accepted_socket(
                        lambda: _Protocol(self.config, self.server_state, self.lifespan.state), connection
                    )
        for server in self.servers:
            server.close()
        await asyncio.sleep(IDLE_DELAY)  # uvicorn closes idle connections at once
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """Bind a socket; port 0 selects a free port. Raises ValueError if the address is not available."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        raise ValueError(f"cannot listen on {host}:{port} ({error}); use another --host or --port") from None
    return listener


def url_of(listener: socket.socket) -> str:
    """Return ``http://HOST:PORT`` of a socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
