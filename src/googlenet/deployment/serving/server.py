"""The application on a socket: uvicorn, with patience bounded before a request and an orderly end."""

import asyncio
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .errors import error_response
from .gate import Gate

# A connection on which no whole head has come by then is closed.
HEAD_SECONDS = 10.0
# After the signal to stop: so long are requests still taken, each answer telling its client to connect no more here.
LEAVE_SECONDS = 0.5
WAITING_TO_BE_ACCEPTED = 1024


class _Protocol(H11Protocol):
    """HTTP/1.1, for clients that may be slow in every way."""

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._forget_head()
        elif self._head is None:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is told so in the shape of all errors."""
        refusal = error_response(400, "this is not HTTP, or a head that is too long")
        headers = [*refusal.raw_headers, (b"connection", b"close")]
        for event in (
            h11.Response(status_code=400, headers=headers),
            h11.Data(data=bytes(refusal.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _expect_head(self) -> None:
        self._head = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _forget_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None


class Server(uvicorn.Server):
    """Stops in order: on SIGTERM or SIGINT every request that has come is answered; a second signal is final."""

    def __init__(self, gate: Gate, started: Callable[[], None]):
        settings: dict[str, Any] = {
            "http": _Protocol, "ws": "none", "lifespan": "on", "log_config": None, "access_log": False,
            "server_header": False, "backlog": WAITING_TO_BE_ACCEPTED, "timeout_keep_alive": 15,
            "timeout_graceful_shutdown": round(gate.limits.timeout) + 1,
        }  # fmt: skip
        super().__init__(uvicorn.Config(gate, **settings))
        self.gate, self._told = gate, started
        self._leave: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does; then say so."""
        await super().startup(sockets)
        if self.started:
            self._told()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to leave; at once where it is asked for again."""
        if self.gate.draining:
            self.should_exit = self.force_exit = True
        self.gate.draining = True
        self._leave = time.monotonic() + LEAVE_SECONDS

    async def on_tick(self, counter: int) -> bool:
        """As uvicorn does, ten times a second; and whether it is time to go."""
        if self._leave is not None and time.monotonic() >= self._leave:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does; but first whoever is connected, or waits to be, may say what they came for."""
        loop = asyncio.get_running_loop()
        for listening in sockets or []:
            loop.remove_reader(listening.fileno())
            with suppress(BlockingIOError):
                while True:
                    connected, _ = listening.accept()
                    await loop.connect_accepted_socket(self._protocol, connected)
        for server in self.servers:
            server.close()
        await asyncio.sleep(LEAVE_SECONDS / 2)
        await super().shutdown(sockets)

    def _protocol(self) -> _Protocol:
        return _Protocol(self.config, self.server_state, self.lifespan.state)


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address; port 0 takes a free one. ValueError where the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, OverflowError) as error:
        raise ValueError(f"{host}:{port}: cannot listen there ({error}); name another --host or --port") from None
    return bound


def address_of(bound: socket.socket) -> str:
    """http://HOST:PORT of a socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(gate: Gate, bound: socket.socket, started: Callable[[], None]) -> None:
    """Answer on the socket until a signal says to stop; `started` is called when the first request may come."""
    Server(gate, started).run(sockets=[bound])
