"""Requests that mean harm, against a running server: nothing is answered 500, nothing hangs, memory stays flat.

Truncated and mutated picture files, pictures that ask for gigabytes, wrong types, huge headers, a client that sends a
line a second; and, where schemathesis is installed, what it makes of the server's own OpenAPI document.
Run: make bench-hostile
"""

import argparse
import base64
import io
import json
import random
import re
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
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA")
TYPES = ("image/jpeg", "image/png", "image/x-unknown", "application/octet-stream")
PATIENCE = 60.0  # seconds for an answer; a server that takes longer hangs


class Attack(NamedTuple):
    """A request: `kind` says what is wrong with it."""

    kind: str
    method: str
    path: str
    headers: dict[str, str]
    content: bytes


class Outcome(NamedTuple):
    """`statuses` counts the answers by kind and status; `problems` are those that should not be."""

    statuses: Counter[str]
    problems: list[str]


def pictures(random_numbers: random.Random) -> list[bytes]:
    """A small picture in every format."""
    rows = np.frombuffer(random_numbers.randbytes(40 * 56 * 3), np.uint8).reshape(40, 56, 3)
    files = []
    for kind in FORMATS:
        buffer = io.BytesIO()
        Image.fromarray(rows).save(buffer, kind)
        files.append(buffer.getvalue())
    return files


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that claims so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(100_000)))
        + chunk(b"IEND", b"")
    )


def attacks(seed: int, model: str) -> Iterator[Attack]:
    """Without end, and the same for the same seed."""
    rng = random.Random(seed)
    files = pictures(rng)
    makers = (_broken, _broken, _broken, _bomb, _form, _json, _json, _inference, _inference, _elsewhere)
    while True:
        yield rng.choice(makers)(rng, files, model)


def _broken(rng: random.Random, files: list[bytes], model: str) -> Attack:
    data = bytearray(rng.choice(files))
    if rng.random() < 0.5:
        del data[rng.randrange(len(data)) :]
    for _ in range(rng.randrange(1, 30)):
        if data:
            data[rng.randrange(min(len(data), rng.choice((64, 4096))))] = rng.randrange(256)
    path = rng.choice(("/v1/predict", "/v1/explain", "/v1/predict?top=3", "/v1/predict?sizes=40,56"))
    return Attack("broken", "POST", path, {"content-type": rng.choice(TYPES)}, bytes(data))


def _bomb(rng: random.Random, files: list[bytes], model: str) -> Attack:
    side = rng.choice((6_000, 20_000, 60_000, 2**31 - 1))
    return Attack("bomb", "POST", "/v1/predict", {"content-type": "image/png"}, bomb(side, rng.choice((side, 1))))


def _form(rng: random.Random, files: list[bytes], model: str) -> Attack:
    name = rng.choice(("image", "image", "file", "other", "", "top"))
    file = rng.choice(("a.png", "../../etc/passwd", "", "\u00e4\u202e.png", "x" * 3000))
    fields = [
        f'name="{rng.choice(("top", "sizes", "model", "label"))}"\r\n\r\n{_word(rng)}'
        for _ in range(rng.randrange(25))
    ]
    parts = [
        b"--x\r\nContent-Disposition: form-data; " + part.encode("utf-8", "replace") + b"\r\n" for part in fields
    ]
    head = f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="{file}"\r\n\r\n'
    parts.append(head.encode() + rng.choice(files) + b"\r\n")
    body = b"".join(parts) + rng.choice((b"--x--\r\n", b"", b"--y--", b"\x00" * 50))
    boundary = rng.choice(("; boundary=x", "; boundary=x", "; boundary=x", "", "; boundary=", '; boundary="x'))
    return Attack(
        "form",
        "POST",
        rng.choice(("/v1/predict", "/v1/explain")),
        {"content-type": "multipart/form-data" + boundary},
        body,
    )


def _word(rng: random.Random) -> str:
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


def _value(rng: random.Random, depth: int = 0) -> Any:
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
        return [_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return rng.choice(simple)


def _json(rng: random.Random, files: list[bytes], model: str) -> Attack:
    good = base64.b64encode(rng.choice(files)).decode()
    asked: dict[str, Any] = {"images": [good], "top": 3, "sizes": [40], "model": model}
    for _ in range(rng.randrange(1, 4)):
        asked[rng.choice(("images", "top", "sizes", "model", "label", "url", "top"))] = _value(rng)
    text = json.dumps(asked).encode()
    if rng.random() < 0.2:
        text = rng.choice(
            (text[: rng.randrange(len(text))], b"[" * 100_000, b"\xff\xfe", b'{"images":[' + b'"",' * 5000 + b'""]}')
        )
    return Attack(
        "json", "POST", rng.choice(("/v1/predict", "/v1/explain")), {"content-type": "application/json"}, text
    )


def _inference(rng: random.Random, files: list[bytes], model: str) -> Attack:
    tensor: dict[str, Any] = {"name": "pixels", "datatype": "UINT8", "shape": [1, 3, 40, 40], "data": [7] * 4800}
    for _ in range(rng.randrange(1, 3)):
        key = rng.choice(("name", "datatype", "shape", "data"))
        tensor[key] = rng.choice(
            (
                _value(rng),
                [1, 3, 2**40, 2**40],
                [-1, 3, 40, 40],
                [1, 1, 1, 1],
                [[[[300] * 40] * 40] * 3],
                [True] * 4800,
                [1.5] * 4800,
            )
        )
    asked: dict[str, Any] = {
        "inputs": rng.choice(([tensor], [tensor], [tensor, tensor], tensor)),
        "id": rng.choice(("1", 1)),
    }
    if rng.random() < 0.3:
        asked["outputs"] = _value(rng)
    version = rng.choice(("", "", "/versions/1", "/versions/x", "/versions/99"))
    name = rng.choice((model, model, model, "other", "%2e%2e", "a%00b"))
    return Attack(
        "inference",
        "POST",
        f"/v2/models/{name}{version}/infer",
        {"content-type": "application/json"},
        json.dumps(asked).encode(),
    )


def _elsewhere(rng: random.Random, files: list[bytes], model: str) -> Attack:
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
    return Attack("elsewhere", method, path, headers, rng.choice((b"", b"x" * 1000)))


def attack(url: str, model: str, count: int, seed: int = 0) -> Outcome:
    """Send `count` of them one after the other."""
    statuses: Counter[str] = Counter()
    problems: list[str] = []
    with httpx.Client(base_url=url, timeout=PATIENCE) as client:
        for number, (kind, method, path, headers, content) in enumerate(attacks(seed, model)):
            if number == count:
                break
            sent = {name: value.encode("latin-1") for name, value in headers.items()}
            where = f"{number} {kind} {method} {path}"
            try:
                answer = client.request(method, path, headers=sent, content=content)
            except httpx.HTTPError as error:
                problems.append(f"{where}: {type(error).__name__} {error}")
                continue
            statuses[f"{kind} {answer.status_code}"] += 1
            if answer.status_code >= 500:
                problems.append(f"{where}: {answer.status_code} {answer.text[:200]}")
            elif answer.status_code >= 400 and method != "HEAD":
                error = answer.json()["error"]
                if error["status"] != answer.status_code or "\n" in error["message"]:
                    problems.append(f"{where}: not the shape of an error: {answer.text[:200]}")
    return Outcome(statuses, problems)


def speak(url: str, said: list[bytes], pause: float, patience: float = PATIENCE) -> bytes:
    """Say something on a socket, `pause` seconds between the parts; all that is answered until the server closes."""
    place = urlsplit(url)
    with socket.create_connection((place.hostname, place.port), timeout=patience) as line:
        heard = b""
        try:
            for part in said:
                line.sendall(part)
                time.sleep(pause)
            while part := line.recv(65_536):
                heard += part
        except (ConnectionResetError, BrokenPipeError):
            pass
        return heard


def rude(url: str) -> dict[str, str]:
    """What a server says to heads that are too long or no HTTP at all; by name, the first line of the answer."""
    head = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    cases = {
        "a huge header": [head + b"X: " + b"y" * 500_000 + b"\r\n\r\n"],
        "very many headers": [head + b"".join(b"X-%d: y\r\n" % n for n in range(20_000)) + b"\r\n"],
        "no HTTP": [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200)],
        "a length that is no number": [head + b"Content-Length: 1e9\r\n\r\n"],
        "a negative length": [head + b"Content-Length: -5\r\n\r\n"],
        "two lengths": [head + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef"],
        "chunks that are none": [head + b"Content-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"],
        "more bytes than allowed": [head + b"Content-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"]
        + [b"f4240\r\n" + bytes(1_000_000) + b"\r\n"] * 25 + [b"0\r\n\r\n"],
    }  # fmt: skip
    return {name: speak(url, said, 0).split(b"\r\n")[0].decode("latin-1") for name, said in cases.items()}


def resident(pid: int) -> float:
    """Resident memory of a process, in MB."""
    (found,) = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found) / 1000


def write_run(folder: Path) -> None:
    """A small network with random weights."""
    from googlenet.data.preprocess import Preprocess
    from googlenet.training.checkpoint import Checkpoint, build_model, save_weights
    from googlenet.training.recipe_file import recipe_from_dict

    folder.mkdir(parents=True, exist_ok=True)
    recipe = recipe_from_dict({"data": {"source": "folder:none"}, "model": {"name": "googlenet_bn", "width": 0.25}})
    pixels = Preprocess(size=64, channels=3, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    classes = ("cat", "dog", "bird", "fish", "fox")
    save_weights(folder / "model.safetensors", Checkpoint(build_model(recipe, 5, 3), pixels, classes, recipe, {}))


def schemathesis(url: str, examples: int) -> dict[str, Any] | None:
    """What schemathesis finds from the OpenAPI document: exit code and last lines; None where it is not installed."""
    program = shutil.which("schemathesis") or shutil.which("schemathesis", path=str(Path(sys.executable).parent))
    if program is None:
        return None
    command = [program, "run", f"{url}/openapi.json", "--checks", "not_a_server_error", "--no-color",
               "--max-examples", str(examples), "--generation-deterministic",
               "--request-timeout", str(PATIENCE)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tempfile.mkdtemp())
    return {"exit_code": done.returncode, "said": done.stdout.strip().splitlines()[-12:]}


def main() -> None:
    """Start a server, attack it, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--examples", type=int, default=25, help="of schemathesis, for each route and phase")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    run = Path(tempfile.mkdtemp()) / "run"
    write_run(run)
    command = [sys.executable, "-m", "googlenet", "serve", f"small={run}", "--port", "0", "--json", "--timeout", "10"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        attack(url, "small", 300, options.seed + 1)
        before = resident(server.pid)
        started = time.monotonic()
        outcome = attack(url, "small", options.requests, options.seed)
        seconds = time.monotonic() - started
        after = resident(server.pid)
        said = rude(url)
        slow = speak(url, [b"POST /v1/predict HTTP/1.1\r\nHost: x\r\n", *[b"X: y\r\n"] * 12], 1.0)
        found = schemathesis(url, options.examples)
        well = httpx.get(f"{url}/healthz").status_code
    finally:
        server.terminate()
        code = server.wait(30)
    document = {
        "requests": sum(outcome.statuses.values()), "seconds": round(seconds, 1),
        "by_status": dict(sorted(outcome.statuses.items())),
        "problems": outcome.problems, "rude": said, "slow_head": slow.split(b"\r\n")[0].decode() or "closed",
        "memory_mb": {"after 300": round(before), "at the end": round(after)}, "schemathesis": found,
        "healthy_at_the_end": well == 200, "exit_code": code,
    }  # fmt: skip
    if options.json:
        print(json.dumps(document, indent=2))
        return
    print(f"{document['requests']:,} requests in {seconds:.0f} s, {len(outcome.problems)} problems, "
          f"{before:.0f} MB before and {after:.0f} MB after, exit code {code}")  # fmt: skip
    print("\n".join(outcome.problems[:20]))
    if found:
        print("\n".join(found["said"]))


if __name__ == "__main__":
    main()
