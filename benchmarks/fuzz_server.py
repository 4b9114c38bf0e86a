"""Fuzz a running server: no response has status 500, no request hangs, memory does not grow.

Truncated and mutated image files, decompression bombs, invalid bodies and headers, malformed HTTP, a slow client;
and, if schemathesis is installed, requests generated from the OpenAPI document. Run: make bench-fuzz_server
"""

import argparse
import base64
import io
import json
import random
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
import numpy as np
from PIL import Image

from googlenet.benchmark.memory import rss_bytes

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA")
TYPES = ("image/jpeg", "image/png", "image/x-unknown", "application/octet-stream")
TIMEOUT = 60.0  # seconds until a request counts as hanging


# The data of tensors in JSON that need much more memory or time than their text: values of unexpected types and sizes.
HOSTILE_TENSORS = {
    "one long text among many short ones": b'"' + b"x" * 4000 + b'"' + b',"a"' * 500_000,
    "very long text": b'"' + b"x" * 1_900_000 + b'"' + b',"a"' * 500_000,
    "empty lists": b"[]" + b",[]" * 1_200_000,
    "nested lists": b"[[7],[7,7]],[[7]]" * 50_000,
    "huge numbers": b"9" * 4000 + b",1e300" * 500_000,
    "deep nesting": b"[" * 100_000 + b"]" * 100_000,
}


def tensor_request(data: bytes) -> bytes:
    """Return the body of an inference request with this text as the data of its tensor."""
    head = b'{"inputs": [{"name": "pixels", "shape": [1, 3, 40, 40], "datatype": "UINT8", "data": ['
    return head + data + b"]}]}"


class Case(NamedTuple):
    """A request; `kind` is the category of its defect."""

    kind: str
    method: str
    path: str
    headers: dict[str, str]
    content: bytes


class FuzzResult(NamedTuple):
    """Responses by kind and status, and descriptions of invalid ones."""

    statuses: Counter[str]
    failures: list[str]


def make_images(rng: random.Random) -> list[bytes]:
    """Encode a small image in every format."""
    pixels = np.frombuffer(rng.randbytes(40 * 56 * 3), np.uint8).reshape(40, 56, 3)
    files = []
    for format in FORMATS:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format)
        files.append(buffer.getvalue())
    return files


def png_bomb(width: int, height: int) -> bytes:
    """Return a PNG file of a few hundred bytes whose header declares width x height pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(100_000)))
        + chunk(b"IEND", b"")
    )


def generate_cases(seed: int, model: str) -> Iterator[Case]:
    """Generate an infinite sequence of cases, determined by the seed."""
    rng = random.Random(seed)
    files = make_images(rng)
    generators = (_corrupt, _corrupt, _corrupt, _bomb, _form, _json, _json, _infer, _infer, _route)
    while True:
        yield rng.choice(generators)(rng, files, model)


def _corrupt(rng: random.Random, files: list[bytes], model: str) -> Case:
    data = bytearray(rng.choice(files))
    if rng.random() < 0.5:
        del data[rng.randrange(len(data)) :]
    for _ in range(rng.randrange(1, 30)):
        if data:
            data[rng.randrange(min(len(data), rng.choice((64, 4096))))] = rng.randrange(256)
    path = rng.choice(("/v1/predict", "/v1/explain", "/v1/predict?top=3", "/v1/predict?sizes=40,56"))
    return Case("corrupt", "POST", path, {"content-type": rng.choice(TYPES)}, bytes(data))


def _bomb(rng: random.Random, files: list[bytes], model: str) -> Case:
    size = rng.choice((6_000, 20_000, 60_000, 2**31 - 1))
    return Case("bomb", "POST", "/v1/predict", {"content-type": "image/png"}, png_bomb(size, rng.choice((size, 1))))


def _form(rng: random.Random, files: list[bytes], model: str) -> Case:
    name = rng.choice(("image", "image", "file", "other", "", "top"))
    file = rng.choice(("a.png", "../../etc/passwd", "", "\u00e4\u202e.png", "x" * 3000))
    fields = [
        f'name="{rng.choice(("top", "sizes", "model", "label"))}"\r\n\r\n{_field_value(rng)}'
        for _ in range(rng.randrange(25))
    ]
    parts = [b"--x\r\nContent-Disposition: form-data; " + part.encode("utf-8", "replace") + b"\r\n" for part in fields]
    header = f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="{file}"\r\n\r\n'
    parts.append(header.encode() + rng.choice(files) + b"\r\n")
    body = b"".join(parts) + rng.choice((b"--x--\r\n", b"", b"--y--", b"\x00" * 50))
    boundary = rng.choice(("; boundary=x", "; boundary=x", "; boundary=x", "", "; boundary=", '; boundary="x'))
    return Case(
        "form",
        "POST",
        rng.choice(("/v1/predict", "/v1/explain")),
        {"content-type": "multipart/form-data" + boundary},
        body,
    )


def _field_value(rng: random.Random) -> str:
    return rng.choice(
        (
            "",
            "0",
            "-1",
            "5",
            "1e9",
            "NaN",
            "null",
            "1" * 400,
            "1,2,3",
            "40",
            "40,40",
            "99999",
            "\u0663",
            "'; --",
            "\x00",
            "{}",
            "\u202e",
            "[" * 500,
        )
    )


def _json_value(rng: random.Random, depth: int = 0) -> Any:
    simple = (
        None,
        True,
        0,
        -1,
        5,
        10**30,
        1.5,
        "",
        "a",
        "\ud800",
        "http://127.0.0.1:1/a.png",
        "data:,x",
        "x" * 5000,
        [],
        {},
    )
    if depth < 3 and rng.random() < 0.3:
        return [_json_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return rng.choice(simple)


def _json(rng: random.Random, files: list[bytes], model: str) -> Case:
    valid = base64.b64encode(rng.choice(files)).decode()
    body: dict[str, Any] = {"images": [valid], "top": 3, "sizes": [40], "model": model}
    for _ in range(rng.randrange(1, 4)):
        body[rng.choice(("images", "top", "sizes", "model", "label", "url", "top"))] = _json_value(rng)
    text = json.dumps(body).encode()
    if rng.random() < 0.2:
        text = rng.choice(
            (text[: rng.randrange(len(text))], b"[" * 100_000, b"\xff\xfe", b'{"images":[' + b'"",' * 5000 + b'""]}')
        )
    return Case("json", "POST", rng.choice(("/v1/predict", "/v1/explain")), {"content-type": "application/json"}, text)


def _infer(rng: random.Random, files: list[bytes], model: str) -> Case:
    tensor: dict[str, Any] = {"name": "pixels", "datatype": "UINT8", "shape": [1, 3, 40, 40], "data": [7] * 4800}
    for _ in range(rng.randrange(1, 3)):
        key = rng.choice(("name", "datatype", "shape", "data"))
        tensor[key] = rng.choice(
            (
                _json_value(rng),
                [1, 3, 2**40, 2**40],
                [-1, 3, 40, 40],
                [1, 1, 1, 1],
                [[[[300] * 40] * 40] * 3],
                [True] * 4800,
                [1.5] * 4800,
            )
        )
    body: dict[str, Any] = {
        "inputs": rng.choice(([tensor], [tensor], [tensor, tensor], tensor)),
        "id": rng.choice(("1", 1)),
    }
    if rng.random() < 0.3:
        body["outputs"] = _json_value(rng)
    version = rng.choice(("", "", "/versions/1", "/versions/x", "/versions/99"))
    name = rng.choice((model, model, model, "other", "%2e%2e", "a%00b"))
    return Case(
        "v2",
        "POST",
        f"/v2/models/{name}{version}/infer",
        {"content-type": "application/json"},
        json.dumps(body).encode(),
    )


def _route(rng: random.Random, files: list[bytes], model: str) -> Case:
    method = rng.choice(("GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "POST"))
    path = rng.choice(
        (
            "/",
            "/v1/predict",
            "/v1/models/none",
            "/../../etc/passwd",
            "//",
            "/%00",
            "/v2/models",
            "/metrics",
            "/v1/models/none/reload",
        )
    )
    headers = rng.choice(
        (
            {},
            {"content-type": "a" * 3000},
            {"x-many": "y" * 8000},
            {"content-type": "multipart/form-data"},
            {"accept": "\u00ff"},
        )
    )
    return Case("route", method, path, headers, rng.choice((b"", b"x" * 1000)))


def fuzz(url: str, model: str, count: int, seed: int = 0) -> FuzzResult:
    """Send `count` cases one after the other."""
    statuses: Counter[str] = Counter()
    failures: list[str] = []
    with httpx.Client(base_url=url, timeout=TIMEOUT) as client:
        for index, (kind, method, path, headers, content) in enumerate(islice(generate_cases(seed, model), count)):
            encoded = {name: value.encode("latin-1") for name, value in headers.items()}
            case = f"{index} {kind} {method} {path}"
            try:
                response = client.request(method, path, headers=encoded, content=content)
            except httpx.HTTPError as error:
                failures.append(f"{case}: {type(error).__name__} {error}")
                continue
            statuses[f"{kind} {response.status_code}"] += 1
            if response.status_code >= 500:
                failures.append(f"{case}: {response.status_code} {response.text[:200]}")
            elif response.status_code >= 400 and method != "HEAD":
                error = response.json()["error"]
                text = error if isinstance(error, str) else error["message"]
                if isinstance(error, str) != urlsplit(path).path.startswith("/v2") or "\n" in text:
                    failures.append(f"{case}: unexpected error response: {response.text[:200]}")
    return FuzzResult(statuses, failures)


def raw_exchange(url: str, parts: list[bytes], pause: float, timeout: float = TIMEOUT) -> bytes:
    """Send bytes on a socket, `pause` seconds between the parts; return all bytes that the server sends."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=timeout) as connection:
        received = b""
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
            while part := connection.recv(65_536):
                received += part
        except (ConnectionResetError, BrokenPipeError):
            pass
        return received


def malformed_http(url: str) -> dict[str, str]:
    """Send malformed HTTP requests; return the first line of the response to each, by name."""
    head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    chunked = head + b"Content-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
    cases = {
        "header too large": [head + b"X: " + b"y" * 500_000 + b"\r\n\r\n"],
        "too many headers": [head + b"".join(b"X-%d: y\r\n" % n for n in range(20_000)) + b"\r\n"],
        "TLS handshake": [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200)],
        "non-integer content length": [head + b"Content-Length: 1e9\r\n\r\n"],
        "negative content length": [head + b"Content-Length: -5\r\n\r\n"],
        "two content lengths": [head + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef"],
        "invalid chunk": [chunked + b"zz\r\n"],
        "body too large": [chunked] + [b"f4240\r\n" + bytes(1_000_000) + b"\r\n"] * 25 + [b"0\r\n\r\n"],
    }
    return {name: raw_exchange(url, parts, 0).split(b"\r\n")[0].decode("latin-1") for name, parts in cases.items()}


def write_run(folder: Path) -> None:
    """Save a small network with random weights."""
    from googlenet.checkpoint.format import Checkpoint, build_network, write_checkpoint
    from googlenet.config.parse import recipe_from_dict
    from googlenet.data.preprocess import Preprocess

    folder.mkdir(parents=True, exist_ok=True)
    recipe = recipe_from_dict(
        {"data": {"source": "folder:none"}, "model": {"name": "googlenet_bn", "width_mult": 0.25}}
    )
    preprocess = Preprocess(size=64, channels=3, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    classes = ("cat", "dog", "bird", "fish", "fox")
    write_checkpoint(
        folder / "model.safetensors", Checkpoint(build_network(recipe, 5, 3), preprocess, classes, recipe, {})
    )


def run_schemathesis(url: str, examples: int) -> dict[str, Any] | None:
    """Run schemathesis on the OpenAPI document; return exit code and last lines, None if it is not installed."""
    program = shutil.which("schemathesis") or shutil.which("schemathesis", path=str(Path(sys.executable).parent))
    if program is None:
        return None
    command = [program, "run", f"{url}/openapi.json", "--checks", "not_a_server_error", "--no-color",
               "--max-examples", str(examples), "--generation-deterministic",
               "--request-timeout", str(TIMEOUT)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tempfile.mkdtemp())
    return {"exit_code": done.returncode, "output": done.stdout.strip().splitlines()[-12:]}


def main() -> None:
    """Start a server, fuzz it, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--examples", type=int, default=25, help="schemathesis examples per route and phase")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args()
    run = Path(tempfile.mkdtemp()) / "run"
    write_run(run)
    command = [sys.executable, "-m", "googlenet", "serve", f"small={run}", "--port", "0", "--json", "--timeout", "10"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        fuzz(url, "small", 300, args.seed + 1)
        before = rss_bytes(server.pid) / 1e6
        start = time.monotonic()
        result = fuzz(url, "small", args.requests, args.seed)
        seconds = time.monotonic() - start
        after = rss_bytes(server.pid) / 1e6
        responses = malformed_http(url)
        slow = raw_exchange(url, [b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\n", *[b"X: y\r\n"] * 12], 1.0)
        generated = run_schemathesis(url, args.examples)
        healthy = httpx.get(f"{url}/healthz").status_code == 200
    finally:
        server.terminate()
        code = server.wait(30)
    document = {
        "requests": sum(result.statuses.values()), "seconds": round(seconds, 1),
        "by_status": dict(sorted(result.statuses.items())), "failures": result.failures,
        "malformed_http": responses, "slow_headers": slow.split(b"\r\n")[0].decode() or "closed",
        "memory_mb": {"after 300": round(before), "end": round(after)}, "schemathesis": generated,
        "healthy": healthy, "exit_code": code,
    }  # fmt: skip
    if args.json:
        print(json.dumps(document, indent=2))
        return
    print(f"{document['requests']:,} requests in {seconds:.0f} s, {len(result.failures)} failures, "
          f"{before:.0f} MB before and {after:.0f} MB after, exit code {code}")  # fmt: skip
    print("\n".join(result.failures[:20]))
    if generated:
        print("\n".join(generated["output"]))


if __name__ == "__main__":
    main()
