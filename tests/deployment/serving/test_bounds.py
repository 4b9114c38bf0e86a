"""What a server does not take on: each bound has its own answer, in one shape and one line; never a 500."""

import asyncio
import base64
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from googlenet.deployment.serving import server as server_module
from servers import Running, hostile, in_thread, png


def problem(answer: httpx.Response, status: int) -> str:
    """The message of an error, in the one shape."""
    assert answer.status_code == status, answer.text
    (error,) = answer.json().values()
    assert set(error) == {"status", "message"} and error["status"] == status
    assert "\n" not in error["message"]
    return str(error["message"])


@pytest.fixture(scope="module")
def strict(small_run: Path) -> Iterator[httpx.Client]:
    """A server with narrow bounds and a key."""
    limits = {"queue": 4, "max_bytes": 60_000, "max_pictures": 3, "max_pixels": 10_000}
    with in_thread(small_run, key="s3cret", **limits) as url, httpx.Client(base_url=url, timeout=30) as client:
        client.headers["authorization"] = "Bearer s3cret"
        yield client


def post(
    client: httpx.Client, data: bytes, kind: str = "image/png", query: str = "", **headers: str
) -> httpx.Response:
    return client.post(f"/v1/predict{query}", content=data, headers={"content-type": kind, **headers})


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"images": ["http://127.0.0.1/a.png"]}, "fetches nothing"),
        ({"images": ["file:///etc/passwd"]}, "fetches nothing"),
        ({"images": ["%%%"]}, "not base64"),
        ({"images": []}, "images"),
        ({"image": ["x"]}, "images"),
        ({"images": ["eA=="], "top": "5"}, "top"),
        ({"images": ["eA=="], "top": 0}, "top"),
        ({"images": ["eA=="], "sizes": [40, 40]}, "twice"),
        ({"images": ["eA=="], "sizes": [8]}, "31 to 1024"),
        ({"images": ["eA=="], "sizes": list(range(40, 50))}, "at most 8"),
        ({"images": ["eA=="], "url": "x"}, "url"),
        ({"images": ["eA=="]}, "picture 1: not a picture"),
        ({"images": [base64.b64encode(png()[:900]).decode()]}, "picture 1: damaged picture"),
        ([1], "object"),
    ],
)
def test_wrong_json(client: httpx.Client, asked: Any, said: str) -> None:
    assert said in problem(client.post("/v1/predict", json=asked), 422)


def test_wrong_forms(client: httpx.Client) -> None:
    assert "send one or more files" in problem(client.post("/v1/predict", files={"a": (None, "")}), 422)
    assert "fetches nothing" in problem(client.post("/v1/predict", files={"image": (None, "https://x/y.png")}), 422)
    assert "notes.txt: not a picture" in problem(
        client.post("/v1/predict", files={"image": ("notes.txt", b"hello")}), 422
    )
    assert "whole numbers" in problem(post(client, png(), query="?sizes=big"), 422)
    assert "text/csv" in problem(post(client, b"a,b", "text/csv"), 415)
    problem(post(client, b"no parts", "multipart/form-data; boundary=x"), 400)
    problem(post(client, b"no boundary", "multipart/form-data"), 400)
    assert "is called 'other'" in problem(post(client, png(), query="?model=other"), 404)
    assert "no class 'cow'" in problem(client.post("/v1/explain", files={"image": png()}, data={"label": "cow"}), 422)
    # Pillow would ask Ghostscript to draw this.
    assert "not a picture" in problem(post(client, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n"), 422)


def test_too_much_of_one_request(strict: httpx.Client) -> None:
    assert "60,000 bytes" in problem(post(strict, b"x" * 60_001), 413)
    parts = iter([b"x" * 40_000, b"x" * 40_000])
    unannounced = strict.post("/v1/predict", content=parts, headers={"content-type": "image/png"})
    assert "60,000 bytes" in problem(unannounced, 413)
    assert "10,000 allowed" in problem(post(strict, hostile().bomb(101, 100)), 413)
    assert "more than 10,000 pixels" in problem(post(strict, hostile().bomb(60_000, 60_000)), 413)
    problem(strict.post("/v1/predict", files=[("image", png(8))] * 4), 413)
    assert post(strict, png()).status_code == 200


def test_the_queue_is_bounded(strict: httpx.Client) -> None:
    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=strict.base_url, headers=strict.headers, timeout=30) as asking:
            posts = [asking.post("/v1/predict", files=[("image", png(90, seed))] * 2) for seed in range(30)]
            return list(await asyncio.gather(*posts))

    answers = asyncio.run(ask())
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert all(answer.headers["retry-after"] == "1" and "busy" in problem(answer, 429) for answer in refused)
    assert post(strict, png()).status_code == 200, "what was taken has been given back"


def test_time_is_bounded(strict: httpx.Client, small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request here is late by itself, however fast the machine is."""
    head = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nX-API-Key: s3cret\r\nContent-Type: image/png\r\n"
    # Each of the pieces comes in time; the whole request, announced as 900 bytes, never does.
    with in_thread(small_run, key="s3cret", timeout=0.5) as url:
        heard = hostile().speak(url, [head + b"Content-Length: 900\r\n\r\n", b"a", b"b"], 0.1)
    assert heard.startswith(b"HTTP/1.1 408") and b"had not arrived within 0.5 s" in heard
    monkeypatch.setattr(server_module, "HEAD_SECONDS", 0.4)
    assert hostile().speak(str(strict.base_url), [b"POST / HTTP", *[b"a"] * 8], 0.1) == b"", (
        "closed without an answer"
    )
    with in_thread(small_run, timeout=0.4, max_wait=9.0) as impatient:
        assert "within 0.4 s" in problem(httpx.post(f"{impatient}/v1/predict", files={"image": png()}), 504)


def test_key(strict: httpx.Client) -> None:
    stranger = httpx.Client(base_url=strict.base_url)
    for headers in (
        {},
        {"authorization": "Bearer s3cre"},
        {"authorization": "Basic s3cret"},
        {"x-api-key": "s3cret\u00e9".encode()},
    ):
        refused = stranger.post("/v1/predict", content=png(), headers={"content-type": "image/png", **headers})
        assert "key" in problem(refused, 401)
        assert refused.headers["www-authenticate"] == "Bearer"
    for path in ("/v1/models", "/metrics", "/v2", "/nothing", "/v1/models/small/reload"):
        problem(stranger.get(path), 401)
    for path in ("/", "/healthz", "/v2/health/ready", "/docs"):
        assert stranger.get(path).status_code == 200
    assert post(stranger, png(), **{"x-api-key": "s3cret"}).status_code == 200


def test_fuzzed(server: Running, client: httpx.Client, small_run: Path) -> None:
    """The beginning of what benchmarks/hostile.py sends."""
    right = client.post("/v1/predict", files={"image": png()}).json()["images"][0]["top"]
    hostile().attack(server.url, "small", 150, seed=3)  # until then memory grows to its working size
    before = hostile().resident(server.process.pid)
    outcome = hostile().attack(server.url, "small", 300)
    assert outcome.problems == []
    assert sum(outcome.statuses.values()) == 300
    assert {kind.split()[0] for kind in outcome.statuses} == {
        "broken",
        "bomb",
        "form",
        "json",
        "inference",
        "elsewhere",
    }
    # Nothing of them stays: allocators keep some pages (measured: 1 to 4 times what was sent), while one picture of
    # the many that ask for gigabytes, or the pixels of all the others, would be 25 times that and more.
    sent = sum(len(attack.content) for attack in islice(hostile().attacks(0, "small"), 300)) / 1e6
    grown = hostile().resident(server.process.pid) - before
    assert grown < 16 * sent, f"{sent:.1f} MB were sent, the server grew by {grown:.1f} MB"
    said = hostile().rude(server.url)
    # Each is refused, or the connection closed while the client still sends (an empty line); none is taken.
    assert len(said) == 8
    assert all(line == "" or line.startswith(("HTTP/1.1 400 ", "HTTP/1.1 413 ")) for line in said.values()), said
    assert said["a length that is no number"] == "HTTP/1.1 400 "
    assert said["more bytes than allowed"].startswith("HTTP/1.1 413")
    assert client.post("/v1/predict", files={"image": png()}).json()["images"][0]["top"] == right
