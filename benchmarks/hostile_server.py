"""Attack a server for a minute with everything at once, while another process measures its health checks.

Hostile tensors, a million short images, eight 16-bit images of 25 million pixels at a time, large photographs, slow
uploads, huge headers, connections that are cut, and the requests of fuzz_server.py. Exit code 1 if a response has a
status of 500 or more other than 503, if the memory exceeds that of the idle server by more than its budget and 300 MB,
or, with ``--strict``, if a health check takes longer than 250 ms. Run: make bench-hostile_server
"""

import argparse
import base64
import io
import json
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
    """Valid image files: deep ones of 16 bits and 25 million pixels, and large photographs."""

    deep: list[bytes]
    large: list[bytes]

    @classmethod
    def make(cls, side: int = 5000) -> "Photos":
        """Encode gradients, which compress well, and smooth noise; `side` is in pixels."""
        ramp = np.linspace(0, 65535, side).astype(np.uint16)
        deep = [
            _encode(np.broadcast_to(rows, (side, side)).copy(), "PNG") for rows in (ramp, ramp[:, None], ramp[::-1])
        ]
        noise = np.random.default_rng(0).integers(0, 256, (side // 40, side // 32, 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize((side * 6 // 5, side * 4 // 5), Image.Resampling.BICUBIC)
        return cls(deep, [_encode(np.asarray(image), kind) for kind in ("JPEG", "WEBP", "PNG")])


def _encode(pixels: np.ndarray[Any, Any], kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **({"compress_level": 1} if kind == "PNG" else {"quality": 85}))
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
        return post(
            url, f"/v2/models/{MODEL}/infer", fuzz_server.tensor_request(rng.choice(tensors)), "application/json"
        )

    def short_images(url: str, rng: random.Random) -> str:
        length = rng.choice((10, 300_000, 1_000_000))
        text = b'{"images": [' + b'"AAAA",' * length + b'"AAAA"]}'
        return post(url, "/v1/predict", text, "application/json")

    def deep_image(url: str, rng: random.Random) -> str:
        return post(url, "/v1/predict", rng.choice(photos.deep), "image/png")

    def photograph(url: str, rng: random.Random) -> str:
        image = rng.choice(photos.large)
        if rng.random() < 0.2:
            body = json.dumps({"images": [base64.b64encode(image).decode()], "sizes": [40, 64, 224]}).encode()
            return post(url, "/v1/predict", body, "application/json")
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
        Attack("16-bit images of 25 million pixels", 8, deep_image), Attack("large photographs", 6, photograph),
        Attack("slow uploads", SLOW_CONNECTIONS, slow_upload), Attack("malformed HTTP", 1, huge_headers),
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
    kinds = [attack for attack in attacks(photos) if args.only in attack.name]
    command = [
        sys.executable,
        "-m",
        "googlenet",
        "serve",
        f"{MODEL}={run}",
        "--port",
        "0",
        "--json",
        "--engine",
        "torch",
    ]
    server = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        fuzz_server.fuzz(url, MODEL, 300, seed=1)
        idle = rss_bytes(server.pid)
        reset_peak_rss(server.pid)
        start = time.monotonic()
        with watch_health(url, health):
            statuses = run_attacks(url, kinds, args.seconds)
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
