"""Attack a server for a minute with everything at once, while another process measures its health checks.

Hostile tensors, a million short images, deep and long JSON, thousands of fields, images of every mode and depth with 25
million pixels (32 at a time), large photographs, slow uploads, slow readers, uploads that wait for "100 Continue", huge
headers, connections that are cut, the requests of fuzz_server.py, and a Triton client that works meanwhile. The first
requests arrive while the server starts. Exit code 1 if a response has a status of 500 or more other than 503, if the
Triton client gets wrong values, if the memory exceeds that of the idle server by more than its budget and 300 MB, or,
with ``--strict``, if a health check takes longer than 250 ms. Run: make bench-hostile_server
"""

import argparse
import base64
import io
import json
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
import numpy as np
from PIL import Image

import fuzz_server
from googlenet.benchmark.memory import reset_peak_rss, rss_bytes
from googlenet.serving.config import Limits

MODEL = "small"
TIMEOUT = 90.0  # seconds until a request counts as lost
MAX_LATENCY = 0.25  # seconds of a health check
MEMORY_MARGIN = 300e6  # bytes above the budget: the fragmentation of the allocator, and one computed batch
SLOW_CONNECTIONS = 30
JSON = "application/json"

# Documents that are deep, or long in every part, and no tensor.
LONG_JSON = [
    b'{"images": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    b'{"images": ["' + b"A" * 15_000_000 + b'"]}',
    b"{" + b",".join(b'"name%d": %d' % (index, index) for index in range(300_000)) + b"}",
    b'{"images": ["AAAA"], "sizes": [' + b",".join([b"64"] * 100_000) + b"]}",
    b'{"images": ["AAAA"], "label": "' + b"\\ud800" * 2_000_000 + b'"}',
    b'{"images": [' + b"9" * 3_000_000 + b"]}",
]

# Asks for the health of the server every 20 ms until standard input is closed: HOST PORT. In its own process, because
# the threads of the attacks delay each other.
WATCH_PROGRAM = """
import http.client, json, select, sys, time
host, port = sys.argv[1], int(sys.argv[2])
latencies, failures, due = [], [], time.perf_counter()
while not select.select([sys.stdin], [], [], max(0.0, due - time.perf_counter()))[0]:
    due = max(due + 0.02, time.perf_counter())
    start = time.perf_counter()
    try:
        connection = http.client.HTTPConnection(host, port, timeout=60)
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
        connection.close()
        if status != 200:
            failures.append(str(status))
    except OSError as error:
        failures.append(repr(error))
    latencies.append(time.perf_counter() - start)
print(json.dumps({"latencies": latencies, "failures": failures}))
"""


class Attack(NamedTuple):
    """A kind of request, sent by `threads` threads at a time: `send(url, rng)` returns the status, or a word."""

    name: str
    threads: int
    send: Callable[[str, random.Random], str]


class Photos(NamedTuple):
    """Valid image files: one of every mode and depth with as many pixels as are allowed, and large photographs."""

    modes: list[bytes]
    large: list[bytes]

    @classmethod
    def make(cls, side: int = 5000) -> "Photos":
        """Encode gradients, which compress well, and smooth noise; `side` is in pixels."""
        ramp = np.linspace(0, 65535, side).astype(np.uint16)
        deep = np.broadcast_to(ramp, (side, side)).copy()
        gray = Image.fromarray((deep >> 8).astype(np.uint8))
        color = Image.merge("RGB", (gray, gray.rotate(90), gray.rotate(180)))
        png = [gray.convert(mode) for mode in ("1", "L", "LA", "P")] + [color, color.convert("RGBA")]
        tiff = [
            gray.convert("I"),
            gray.convert("F"),
            color.convert("CMYK"),
            color.convert("LAB"),
            Image.fromarray(deep),
        ]
        modes = [_encode(image, "PNG") for image in (*png, Image.fromarray(deep.T.copy()))]
        modes += [_encode(image, "TIFF") for image in tiff]
        modes += [_encode(image, "JPEG") for image in (gray, color, color.convert("CMYK"))]
        noise = np.random.default_rng(0).integers(0, 256, (side // 40, side // 32, 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize((side * 6 // 5, side * 4 // 5), Image.Resampling.BICUBIC)
        return cls(modes, [_encode(image, kind) for kind in ("JPEG", "WEBP", "PNG")])


def _encode(image: Image.Image, kind: str) -> bytes:
    options: dict[str, dict[str, Any]] = {"PNG": {"compress_level": 1}, "TIFF": {"compression": "tiff_adobe_deflate"}}
    buffer = io.BytesIO()
    image.save(buffer, kind, **options.get(kind, {"quality": 85}))
    return buffer.getvalue()


def post(url: str, path: str, content: bytes, content_type: str) -> str:
    """Send one request on its own connection; return the status."""
    response = httpx.post(url + path, content=content, headers={"content-type": content_type}, timeout=TIMEOUT)
    return str(response.status_code)


def attacks(photos: Photos) -> list[Attack]:
    """Return all kinds of requests."""
    tensors = list(fuzz_server.HOSTILE_TENSORS.values())
    cases = fuzz_server.generate_cases(0, MODEL)
    lock = threading.Lock()

    def tensor(url: str, rng: random.Random) -> str:
        return post(url, f"/v2/models/{MODEL}/infer", fuzz_server.tensor_request(rng.choice(tensors)), JSON)

    def short_images(url: str, rng: random.Random) -> str:
        length = rng.choice((10, 300_000, 1_000_000))
        text = b'{"images": [' + b'"AAAA",' * length + b'"AAAA"]}'
        return post(url, "/v1/predict", text, JSON)

    def any_mode(url: str, rng: random.Random) -> str:
        return post(url, "/v1/predict", rng.choice(photos.modes), "image/png")

    def long_json(url: str, rng: random.Random) -> str:
        return post(url, rng.choice(("/v1/predict", f"/v2/models/{MODEL}/infer")), rng.choice(LONG_JSON), JSON)

    def many_fields(url: str, rng: random.Random) -> str:
        part = b'--x\r\nContent-Disposition: form-data; name="f%d"; filename="%d.png"\r\n\r\n\x89PNG\r\n'
        body = b"".join(part % (index, index) for index in range(rng.choice((33, 5000, 50_000))))
        return post(url, "/v1/predict", body + b"--x--\r\n", "multipart/form-data; boundary=x")

    def photograph(url: str, rng: random.Random) -> str:
        image = rng.choice(photos.large)
        if rng.random() < 0.2:
            body = json.dumps({"images": [base64.b64encode(image).decode()], "sizes": [40, 64, 224]}).encode()
            return post(url, "/v1/predict", body, JSON)
        return post(url, rng.choice(("/v1/predict", "/v1/explain")), image, "image/jpeg")

    def fuzz_case(url: str, rng: random.Random) -> str:
        with lock:
            case = next(cases)
        headers = {name: value.encode("latin-1") for name, value in case.headers.items()}
        return str(
            httpx.request(
                case.method, url + case.path, headers=headers, content=case.content, timeout=TIMEOUT
            ).status_code
        )

    def huge_headers(url: str, rng: random.Random) -> str:
        return Counter(
            line.split()[1] if line.split() else "closed" for line in fuzz_server.malformed_http(url).values()
        ).most_common(1)[0][0]

    return [
        Attack("hostile tensors", 2, tensor), Attack("a million short images", 1, short_images),
        Attack("deep and long JSON", 1, long_json), Attack("thousands of fields", 1, many_fields),
        Attack("images of every mode at the limit of pixels", 32, any_mode), Attack("large photographs", 6, photograph),
        Attack("slow uploads", SLOW_CONNECTIONS, slow_upload), Attack("slow readers", 8, slow_reader),
        Attack("expect 100-continue", 2, expect_continue), Attack("malformed HTTP", 1, huge_headers),
        Attack("cut connections", 4, cut_connection), Attack("fuzz cases", 2, fuzz_case),
    ]  # fmt: skip


def request_head(url: str, length: int, close: bool = False) -> bytes:
    """Return the headers of an upload of `length` bytes."""
    lines = ["POST /v1/predict HTTP/1.1", f"Host: {urlsplit(url).hostname}", "Content-Type: image/png"]
    lines += [f"Content-Length: {length}", *(["Connection: close"] if close else []), "", ""]
    return "\r\n".join(lines).encode()


def slow_upload(url: str, rng: random.Random) -> str:
    """Send a body of up to 20 MB a little at a time, for ten seconds, then the rest or nothing."""
    address, body = urlsplit(url), rng.randbytes(64)
    head = request_head(url, rng.choice((3000, 20_000_000)), close=True)
    with socket.create_connection((address.hostname, address.port), timeout=TIMEOUT) as connection:
        connection.sendall(head)
        for _ in range(40):
            time.sleep(0.25)
            try:
                connection.sendall(body)
            except OSError:
                break
        connection.shutdown(socket.SHUT_WR) if rng.random() < 0.5 else connection.sendall(bytes(2000))
        connection.settimeout(2)
        with suppress(OSError):
            return (connection.recv(4096).split() or [b"", b"closed"])[1].decode()
    return "closed"


def slow_reader(url: str, rng: random.Random) -> str:
    """Request a class activation map and read the response at 4 kB/s for ten seconds."""
    address, image = urlsplit(url), fuzz_server.make_images(rng)[1]
    head = request_head(url, len(image), close=True).replace(b"/v1/predict", b"/v1/explain?sizes=512")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # or the kernel would receive everything
        connection.settimeout(TIMEOUT)
        connection.connect((address.hostname, address.port))
        connection.sendall(head + image)
        status = (connection.recv(1024).split() or [b"", b"closed"])[1].decode()
        for _ in range(40):
            time.sleep(0.25)
            if not connection.recv(1024):
                break
    return status


def expect_continue(url: str, rng: random.Random) -> str:
    """Send the body when the server asks for it: of a valid length, or one that is too large."""
    address, image = urlsplit(url), fuzz_server.png_bomb(64, 64)
    length = rng.choice((len(image), 30_000_000))
    head = request_head(url, length, close=True).replace(b"Connection", b"Expect: 100-continue\r\nConnection")
    with socket.create_connection((address.hostname, address.port), timeout=TIMEOUT) as connection:
        connection.sendall(head)
        received = connection.recv(4096)
        if received.startswith(b"HTTP/1.1 100"):
            connection.sendall(image)
            received = received.partition(b"\r\n\r\n")[2] or connection.recv(4096)
    return (received.split() or [b"", b"closed"])[1].decode()


class TritonClient:
    """A client of the Open Inference Protocol; its responses are compared with that of the idle server."""

    def __init__(self, url: str):
        import tritonclient.http as triton

        self.module, self.address = triton, url.removeprefix("http://")
        pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)
        self.tensor = triton.InferInput("pixels", pixels.shape, "UINT8")
        self.tensor.set_data_from_numpy(pixels)
        self.expected = self.infer()

    def infer(self) -> np.ndarray[Any, Any]:
        """Return the logits."""
        with self.module.InferenceServerClient(self.address, network_timeout=TIMEOUT) as client:
            logits: np.ndarray[Any, Any] = client.infer(MODEL, [self.tensor]).as_numpy("logits")
            return logits

    def send(self, url: str, rng: random.Random) -> str:
        """Infer once a tenth of a second; returns "wrong" if the logits differ by more than rounding."""
        time.sleep(0.1)
        try:
            logits = self.infer()
        except self.module.InferenceServerException as error:
            return str(error.status())
        return "200" if np.allclose(logits, self.expected, rtol=1e-4, atol=1e-4) else "wrong"


def cut_connection(url: str, rng: random.Random) -> str:
    """Send a valid request or a part of it and reset the connection, before or while the server responds."""
    address, image = urlsplit(url), fuzz_server.png_bomb(64, 64)
    request = request_head(url, len(image)) + image
    with socket.create_connection((address.hostname, address.port), timeout=TIMEOUT) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.sendall(request[: rng.choice((len(request), rng.randrange(1, len(request))))])
        time.sleep(rng.choice((0, 0.001, 0.02, 0.1)))
    return "cut"


def run_attacks(url: str, kinds: Sequence[Attack], seconds: float) -> dict[str, Counter[str]]:
    """Run all attacks at the same time; return the responses of each kind by status."""
    results = {attack.name: Counter[str]() for attack in kinds}
    deadline, seeds, lock = time.monotonic() + seconds, count(), threading.Lock()

    def repeat(attack: Attack, seed: int) -> None:
        rng = random.Random(seed)
        while time.monotonic() < deadline:
            try:
                status = attack.send(url, rng)
            except (httpx.HTTPError, OSError) as error:
                status = type(error).__name__
            with lock:
                results[attack.name][status] += 1

    threads = [
        threading.Thread(target=repeat, args=(attack, next(seeds))) for attack in kinds for _ in range(attack.threads)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@contextmanager
def watch_health(url: str, result: dict[str, Any]) -> Iterator[None]:
    """Measure health checks in another process; at the end, add `latencies` (seconds) and `failures` to `result`."""
    address = urlsplit(url)
    command = [sys.executable, "-c", WATCH_PROGRAM, str(address.hostname), str(address.port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield
        output, _ = process.communicate()
        result |= json.loads(output)


def summarize(
    statuses: dict[str, Counter[str]], health: dict[str, Any], idle: int, peak: int, max_memory: int
) -> dict[str, Any]:
    """Return the document; `failures` are the reasons for exit code 1, `warnings` those with ``--strict`` only."""
    latencies = sorted(health["latencies"])
    worst, p99 = latencies[-1], latencies[int(0.99 * (len(latencies) - 1))]
    above_budget = peak - idle - max_memory
    errors = {
        f"{name}: {status}": number for name, by_status in statuses.items() for status, number in by_status.items()
        if status.isdecimal() and int(status) >= 500 and status != "503"
    }  # fmt: skip
    failures = [f"{number} x {what}" for what, number in errors.items()]
    failures += [f"{count['wrong']} wrong responses: {name}" for name, count in statuses.items() if count["wrong"]]
    failures += [f"health check: {failure}" for failure in sorted(set(health["failures"]))]
    if above_budget > MEMORY_MARGIN:
        failures.append(f"the memory exceeds the idle server and its budget by {above_budget / 1e6:.0f} MB")
    slow = [f"a health check took {1e3 * worst:.0f} ms"] if worst > MAX_LATENCY else []
    return {
        "statuses": {name: dict(by_status) for name, by_status in statuses.items()},
        "server_errors": sum(errors.values()), "health_checks": len(latencies),
        "health_max_ms": round(1e3 * worst, 1), "health_p99_ms": round(1e3 * p99, 1),
        "idle_mb": round(idle / 1e6), "peak_mb": round(peak / 1e6), "budget_mb": round(max_memory / 1e6),
        "above_budget_mb": round(above_budget / 1e6), "failures": failures, "warnings": slow,
    }  # fmt: skip


def start_under_load(run: Path, image: bytes) -> tuple[subprocess.Popen[bytes], str, Counter[str]]:
    """Start the server while eight clients already send an image; return the process, URL, and statuses.

    Before the server listens, connections are refused; that is no status.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "googlenet", "serve", f"{MODEL}={run}", "--port", str(port), "--json"]
    server = subprocess.Popen([*command, "--engine", "torch"], stdout=subprocess.PIPE)
    url, statuses, lock, started = f"http://127.0.0.1:{port}", Counter[str](), threading.Lock(), threading.Event()

    def send_repeatedly() -> None:
        while not started.is_set():
            with suppress(httpx.ConnectError):
                status = post(url, "/v1/predict", image, "image/png")
                with lock:
                    statuses[status] += 1
            time.sleep(0.01)

    threads = [threading.Thread(target=send_repeatedly) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert server.stdout is not None
    line = server.stdout.readline()
    time.sleep(3)
    started.set()
    for thread in threads:
        thread.join()
    if not line:
        raise SystemExit("the server did not start")
    return server, url, statuses


def main() -> int:
    """Start a server, attack it, and print the result; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--side", type=int, default=5000, help="height and width of the 16-bit images in pixels")
    parser.add_argument("--only", default="", metavar="NAME", help="run attacks whose name contains this")
    parser.add_argument("--strict", action="store_true", help="a slow health check is a failure")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args()
    run, health = Path(tempfile.mkdtemp()) / "run", dict[str, Any]()
    fuzz_server.write_run(run)
    photos = Photos.make(args.side)
    server, url, start_statuses = start_under_load(run, photos.modes[0])
    try:
        kinds = [*attacks(photos), Attack("Triton client", 1, TritonClient(url).send)]
        kinds = [attack for attack in kinds if args.only in attack.name]
        fuzz_server.fuzz(url, MODEL, 300, seed=1)
        idle = rss_bytes(server.pid)
        reset_peak_rss(server.pid)
        start = time.monotonic()
        with watch_health(url, health):
            # The clients of a real attack do not take the server's processors.
            os.nice(10)
            statuses = {"while the server starts": start_statuses, **run_attacks(url, kinds, args.seconds)}
        seconds, peak = time.monotonic() - start, rss_bytes(server.pid, peak=True)
        after = post(url, "/v1/predict", photos.large[0], "image/jpeg")
    finally:
        server.terminate()
        code = server.wait(60)
    document = summarize(statuses, health, idle, peak, Limits().max_memory)
    document |= {"seconds": round(seconds, 1), "after": after, "exit_code": code}
    if code or after != "200":
        document["failures"].append(f"afterwards: status {after}, exit code {code}")
    if args.strict:
        document["failures"] += document["warnings"]
    print(
        json.dumps(document, indent=2) if args.json else "\n".join(f"{key}: {value}" for key, value in document.items())
    )
    print("\n".join(document["failures"]), file=sys.stderr)
    return 1 if document["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
