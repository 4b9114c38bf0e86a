"""Invalid requests and limits: each has its own status and a one-line message; no response has status 500."""

import asyncio
import base64
import io
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image
from starlette.exceptions import HTTPException

from googlenet.benchmark.memory import rss_bytes
from googlenet.serving import server as server_module
from googlenet.serving.batching import MicroBatcher
from googlenet.serving.middleware import MemoryPool, Reservation, ResourceBudget
from googlenet.serving.service import InferenceService
from servers import RunningServer, fuzz_server, png, serve_in_thread


def error_message(response: httpx.Response, status: int) -> str:
    """Check the shape of an error response; return its message."""
    assert response.status_code == status, response.text
    (error,) = response.json().values()
    assert set(error) == {"status", "message"} and error["status"] == status
    assert "\n" not in error["message"]
    return str(error["message"])


@pytest.fixture(scope="module")
def strict(small_run: Path) -> Iterator[httpx.Client]:
    """A server with low limits and an API key."""
    limits = {"max_queue": 4, "max_body_bytes": 60_000, "max_images": 3, "max_pixels": 10_000}
    with (
        serve_in_thread(small_run, api_key="s3cret", **limits) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        client.headers["authorization"] = "Bearer s3cret"
        yield client


def post(
    client: httpx.Client, data: bytes, content_type: str = "image/png", query: str = "", **headers: str
) -> httpx.Response:
    return client.post(f"/v1/predict{query}", content=data, headers={"content-type": content_type, **headers})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"images": ["http://127.0.0.1/a.png"]}, "URLs are not fetched"),
        ({"images": ["file:///etc/passwd"]}, "URLs are not fetched"),
        ({"images": ["%%%"]}, "not base64"),
        ({"images": []}, "images"),
        ({"image": ["x"]}, "images"),
        ({"images": ["eA=="], "top": "5"}, "top"),
        ({"images": ["eA=="], "top": 0}, "top"),
        ({"images": ["eA=="], "sizes": [40, 40]}, "duplicate size"),
        ({"images": ["eA=="], "sizes": [8]}, "31 to 1024"),
        ({"images": ["eA=="], "sizes": list(range(40, 50))}, "the limit is 8"),
        ({"images": ["eA=="], "url": "x"}, "url"),
        ({"images": ["eA=="]}, "image 1: not an image"),
        ({"images": [base64.b64encode(png()[:900]).decode()]}, "image 1: damaged image"),
        ([1], "object"),
    ],
)
def test_invalid_json(client: httpx.Client, body: Any, message: str) -> None:
    assert message in error_message(client.post("/v1/predict", json=body), 422)


def test_invalid_forms(client: httpx.Client) -> None:
    assert "send one or more files" in error_message(client.post("/v1/predict", files={"a": (None, "")}), 422)
    assert "URLs are not fetched" in error_message(
        client.post("/v1/predict", files={"image": (None, "https://x/y.png")}), 422
    )
    assert "notes.txt: not an image" in error_message(
        client.post("/v1/predict", files={"image": ("notes.txt", b"hello")}), 422
    )
    assert "valid integer" in error_message(post(client, png(), query="?sizes=big"), 422)
    assert "text/csv" in error_message(post(client, b"a,b", "text/csv"), 415)
    error_message(post(client, b"no parts", "multipart/form-data; boundary=x"), 400)
    error_message(post(client, b"no boundary", "multipart/form-data"), 400)
    assert "unknown model 'other'" in error_message(post(client, png(), query="?model=other"), 404)
    assert "no class 'cow'" in error_message(
        client.post("/v1/explain", files={"image": png()}, data={"label": "cow"}), 422
    )
    # Pillow would render this with Ghostscript.
    assert "not an image" in error_message(post(client, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n"), 422)


def test_request_limits(strict: httpx.Client) -> None:
    assert "60,000 bytes" in error_message(post(strict, b"x" * 60_001), 413)
    parts = iter([b"x" * 40_000, b"x" * 40_000])
    chunked = strict.post("/v1/predict", content=parts, headers={"content-type": "image/png"})
    assert "60,000 bytes" in error_message(chunked, 413)
    assert "10,000 allowed" in error_message(post(strict, fuzz_server().png_bomb(101, 100)), 413)
    assert "pixels are more than the 10,000 allowed" in error_message(
        post(strict, fuzz_server().png_bomb(60_000, 60_000)), 413
    )
    error_message(strict.post("/v1/predict", files=[("image", png(8))] * 4), 413)
    assert post(strict, png()).status_code == 200


def test_queue_limit(strict: httpx.Client) -> None:
    async def send() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=strict.base_url, headers=strict.headers, timeout=30) as client:
            requests = [client.post("/v1/predict", files=[("image", png(90, seed))] * 2) for seed in range(30)]
            return list(await asyncio.gather(*requests))

    responses = asyncio.run(send())
    rejected = [response for response in responses if response.status_code == 429]
    assert {response.status_code for response in responses} == {200, 429}
    for response in rejected:
        assert response.headers["retry-after"] == "1" and "busy" in error_message(response, 429)
    assert post(strict, png()).status_code == 200, "the reservations have been released"


def test_slow_uploads_reserve_nothing(strict: httpx.Client) -> None:
    """More slow uploads than the queue has places, of more bytes than the budget, do not keep others out."""
    head = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nX-API-Key: s3cret\r\nContent-Type: image/png\r\n"
    address = urlsplit(str(strict.base_url))
    with ExitStack() as stack:
        for _ in range(30):
            connection = stack.enter_context(socket.create_connection((address.hostname, address.port), timeout=30))
            connection.sendall(head + b"Content-Length: 50000\r\n\r\n" + bytes(100))
        # The server has received them when it answers a request that was sent later.
        assert strict.get("/healthz").status_code == 200
        assert "googlenet_inflight_images 0.0" in strict.get("/metrics").text
        assert post(strict, png()).status_code == 200


def test_timeouts(strict: httpx.Client, small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request exceeds its limit, however fast the machine is."""
    raw_exchange = fuzz_server().raw_exchange
    head = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nX-API-Key: s3cret\r\nContent-Type: image/png\r\n"
    # Each part arrives in time, but the body of 900 bytes is never complete.
    with serve_in_thread(small_run, api_key="s3cret", timeout=0.5) as url:
        received = raw_exchange(url, [head + b"Content-Length: 900\r\n\r\n", b"a", b"b"], 0.1)
    assert received.startswith(b"HTTP/1.1 408") and b"the body was not received within 0.5 s" in received
    monkeypatch.setattr(server_module, "HEADER_TIMEOUT", 0.4)
    received = raw_exchange(str(strict.base_url), [b"POST / HTTP", *[b"a"] * 8], 0.1)
    assert received == b"", "closed without a response"
    with serve_in_thread(small_run, timeout=0.4, max_batch_delay_ms=9000.0) as url:
        response = httpx.post(f"{url}/v1/predict", files={"image": png()})
        assert "no response within 0.4 s" in error_message(response, 504)


def test_api_key(strict: httpx.Client) -> None:
    anonymous = httpx.Client(base_url=strict.base_url)
    for headers in (
        {},
        {"authorization": "Bearer s3cre"},
        {"authorization": "Basic s3cret"},
        {"x-api-key": "s3cret\u00e9".encode()},
    ):
        response = anonymous.post("/v1/predict", content=png(), headers={"content-type": "image/png", **headers})
        assert "API key required" in error_message(response, 401)
        assert response.headers["www-authenticate"] == "Bearer"
    for path in ("/v1/models", "/metrics", "/nothing", "/v1/models/small/reload"):
        error_message(anonymous.get(path), 401)
    assert "API key required" in anonymous.get("/v2").json()["error"]
    for path in ("/", "/healthz", "/v2/health/ready", "/docs", "/openapi.json"):
        response = anonymous.get(path)
        assert response.status_code == 200 and "small" not in response.text, "public pages do not list the models"
    assert post(anonymous, png(), **{"x-api-key": "s3cret"}).status_code == 200


def resident_growth(server: RunningServer, send: Callable[[], httpx.Response]) -> tuple[httpx.Response, float]:
    """Return the response and by how many MB the server's peak memory exceeds that before the request."""
    status = Path(f"/proc/{server.process.pid}/status")
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")  # resets the peak

    def peak() -> float:
        return int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1]) / 1e3  # type: ignore[index]

    before = peak()
    return send(), peak() - before


HOSTILE_DATA = fuzz_server().HOSTILE_TENSORS


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak memory is read from Linux's /proc")
@pytest.mark.parametrize("data", HOSTILE_DATA)
def test_memory_of_hostile_tensors(data: str, server: RunningServer, client: httpx.Client) -> None:
    """Values of unexpected types and sizes: a quick answer, and memory in proportion to the text."""
    content = fuzz_server().tensor_request(HOSTILE_DATA[data])
    response, growth = resident_growth(server, lambda: client.post("/v2/models/small/infer", content=content))
    assert response.status_code in (413, 422), response.text
    # `json_memory` reserves at most 14 bytes per byte, and 120 per list, of which 200,000 are allowed; the body is
    # copied twice.
    assert growth < 16 * len(content) / 1e6 + 24 + 10, f"{growth:.0f} MB for {len(content) / 1e6:.1f} MB"


def test_many_short_images(server: RunningServer, client: httpx.Client) -> None:
    """A million images are rejected before they are parsed, a few too many with their number."""
    for count, message in ((1_200_000, "too many values"), (33, "33 images; the limit is 32"), (200, "200 images")):
        response = client.post("/v1/predict", json={"images": ["AAAA"] * count})
        assert message in error_message(response, 413)
    label = "a, b, " * 40
    response = client.post("/v1/predict", json={"images": ["AAAA"], "label": label})
    assert "image 1: not an image" in error_message(response, 422), "commas in options are no images"


def test_other_hosts_and_origins(server: RunningServer, client: httpx.Client) -> None:
    """Web pages of other sites cannot use a server on this machine: by name (DNS rebinding) or by a blind request."""
    port = client.base_url.port
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "[::2]:80", ""):
        assert client.get("/v1/models", headers={"host": host}).status_code == 403
    for host in ("127.0.0.1", f"localhost:{port}", "LOCALHOST", f"[::1]:{port}", "localhost."):
        assert client.get("/v1/models", headers={"host": host}).status_code == 200
    for origin in ("https://evil.example", "null", "http://127.0.0.2", "file://"):
        response = client.post("/v1/models/small/reload", headers={"origin": origin})
        assert "are not accepted" in error_message(response, 403)
        assert client.get("/healthz", headers={"origin": origin}).status_code == 200
    assert client.post("/v1/predict", files={"image": png()}, headers={"origin": server.url}).status_code == 200


def test_rejected_upload_is_not_received(strict: httpx.Client) -> None:
    """A client that waits for permission to send its body is rejected without it."""
    head = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Type: image/png\r\n"
    for lines, status in ((b"Content-Length: 50000\r\n\r\n", b"401"), (b"Content-Length: 60001\r\n", b"413")):
        key = b"" if status == b"401" else b"X-API-Key: s3cret\r\n\r\n"
        received = fuzz_server().raw_exchange(str(strict.base_url), [head + lines + key], 0.1)
        assert received.startswith(b"HTTP/1.1 " + status), "no 100 Continue before"


def gray_png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height), 99).save(buffer, "PNG")
    return buffer.getvalue()


def test_decoding_waits_for_memory(small_run: Path) -> None:
    """Images that need more than the budget together are decoded one by one; one that does alone is rejected."""
    image, larger = gray_png(600, 1000), gray_png(800, 1000)  # 10 bytes per pixel are reserved: 6 and 8 MB
    with serve_in_thread(small_run, max_memory=14_000_000) as url, httpx.Client(base_url=url, timeout=30) as client:
        with ThreadPoolExecutor(6) as pool:
            responses = list(pool.map(lambda _: post(client, image), range(6)))
        assert [response.status_code for response in responses] == [200] * 6
        assert "needs 8 MB of memory" in error_message(post(client, larger), 413)


def test_end_of_batching_is_reported(small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error outside of a batch makes health checks and requests fail; it does not make clients wait."""

    def fail(self: MicroBatcher) -> None:
        raise ZeroDivisionError

    with serve_in_thread(small_run) as url:
        assert httpx.get(f"{url}/healthz").status_code == 200
        with monkeypatch.context() as patch:
            patch.setattr(MicroBatcher, "_next_batch", fail)
            assert httpx.post(f"{url}/v1/predict", files={"image": png()}).status_code == 500
        assert httpx.get(f"{url}/healthz").status_code == 503
        assert httpx.post(f"{url}/v1/predict", files={"image": png()}).status_code == 500


def test_unexpected_exception(small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("secret details")

    monkeypatch.setattr(InferenceService, "predict", fail)
    with serve_in_thread(small_run) as url:
        response = httpx.post(f"{url}/v1/predict", files={"image": png()})
    assert "see the log" in error_message(response, 500) and "secret" not in response.text


def test_fuzzing(server: RunningServer, client: httpx.Client, small_run: Path) -> None:
    """Send the first cases of benchmarks/fuzz_server.py."""
    fuzz = fuzz_server()
    expected = client.post("/v1/predict", files={"image": png()}).json()["images"][0]["top"]
    fuzz.fuzz(server.url, "small", 150, seed=3)  # until then memory grows to its working size
    before = rss_bytes(server.process.pid) / 1e6
    result = fuzz.fuzz(server.url, "small", 300)
    assert result.failures == []
    assert sum(result.statuses.values()) == 300
    assert {kind.split()[0] for kind in result.statuses} == {"corrupt", "bomb", "form", "json", "v2", "route"}
    # Allocators keep some pages (measured: 1 to 4 times the bytes sent). A leak of the pixels of all images, or of one
    # decompression bomb, would be more than 25 times the bytes sent.
    sent = sum(len(case.content) for case in islice(fuzz.generate_cases(0, "small"), 300)) / 1e6
    growth = rss_bytes(server.process.pid) / 1e6 - before
    assert growth < 16 * sent, f"{sent:.1f} MB were sent, the server grew by {growth:.1f} MB"
    responses = fuzz.malformed_http(server.url)
    # An empty line means that the connection was closed while the client was still sending.
    assert len(responses) == 8
    assert all(line == "" or line.startswith(("HTTP/1.1 400 ", "HTTP/1.1 413 ")) for line in responses.values())
    assert responses["non-integer content length"] == "HTTP/1.1 400 "
    assert responses["body too large"].startswith("HTTP/1.1 413")
    assert client.post("/v1/predict", files={"image": png()}).json()["images"][0]["top"] == expected


@pytest.mark.parametrize("content_type", ["image/png", "application/json", "multipart/form-data; boundary=x"])
def test_cut_connection_is_no_server_error(
    content_type: str, small_run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that disconnects while it sends is counted as such, without a traceback in the log."""
    head = (
        f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\nContent-Length: 900\r\n\r\n"
    )
    with serve_in_thread(small_run) as url, httpx.Client(base_url=url) as client:
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(head.encode() + b"--x\r\n")
        deadline = time.monotonic() + 20
        while 'status="499"' not in (metrics := client.get("/metrics").text) and time.monotonic() < deadline:
            time.sleep(0.02)
    assert 'googlenet_requests_total{route="/v1/predict",status="499"} 1.0' in metrics
    assert 'status="500"' not in metrics
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_nothing_is_computed_for_a_client_that_left(small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request whose client closes the connection is cancelled and frees its memory."""
    cancelled = threading.Event()

    async def wait_until_cancelled(*_: object) -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    monkeypatch.setattr(InferenceService, "predict", wait_until_cancelled)
    image = png()
    head = f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: {len(image)}"
    with serve_in_thread(small_run) as url, httpx.Client(base_url=url) as client:
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(head.encode() + b"\r\n\r\n" + image)
        assert cancelled.wait(20)
        metrics = client.get("/metrics").text
    assert 'googlenet_requests_total{route="/v1/predict",status="499"} 1.0' in metrics
    assert "googlenet_inflight_images 0.0" in metrics and "googlenet_inflight_bytes 0.0" in metrics


@pytest.mark.parametrize(("held", "requested"), [(80, 30), (100, 1)])
def test_decoding_that_cannot_start_in_time_is_rejected(held: int, requested: int) -> None:
    """With 503 and a time to retry, before the request itself times out; the others keep their turn."""

    async def run() -> None:
        pool = MemoryPool(100, timeout=0.05)
        async with pool.hold(held):
            with pytest.raises(HTTPException) as raised:
                async with pool.hold(requested):
                    pass
            assert raised.value.status_code == 503 and raised.value.headers == {"Retry-After": "5"}
            async with asyncio.timeout(5), pool.hold(100 - held):
                pass
        assert pool.free == 100

    asyncio.run(run())


@pytest.mark.parametrize("data", [b'"a",' * 3000 + b"1", b"{}," * 250_000 + b"1", b"[]," * 250_000 + b"1"])
def test_tensors_of_texts_and_lists_are_not_parsed(data: bytes, client: httpx.Client) -> None:
    response = client.post("/v2/models/small/infer", content=fuzz_server().tensor_request(data))
    assert response.status_code == 422 and "too many lists or texts" in response.json()["error"]


def test_large_requests_leave_memory_to_small_ones() -> None:
    """Above 1 MB, a tenth is not available; a request that needs more than half can use all."""
    budget = ResourceBudget(max_images=8, max_memory=100_000_000)
    first, second, small = (Reservation(budget) for _ in range(3))
    first.reserve(memory=48_000_000)
    second.reserve(memory=42_000_000)
    with pytest.raises(HTTPException) as error:
        second.reserve(memory=900_000)
    assert error.value.status_code == 429
    small.reserve(images=1, memory=900_000)
    Reservation(ResourceBudget(8, 100_000_000)).reserve(memory=100_000_000)
