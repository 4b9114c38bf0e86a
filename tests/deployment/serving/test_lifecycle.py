"""From the command line to the end: starting, a new version under load, an end under load. Nothing is lost."""

import asyncio
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from googlenet.cli import main
from googlenet.files import write_atomically
from servers import Running, offline, png, said, served

CLIENTS = 12


def other_weights(run: Path) -> bytes:
    """The run's file with other numbers in it."""
    with safe_open(run / "model.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    tensors["classifier.bias"] = torch.tensor([3.0, -1.0, 0.5, 0.0, 1.0])
    return save(tensors, metadata)


class Load:
    """Clients that ask one after the other for the same picture, each on a connection of its own, until `stop`."""

    def __init__(self, url: str, picture: bytes):
        self.url, self.picture = url, picture
        self.answers: list[httpx.Response] = []
        self.lost: list[str] = []
        self.refused = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()))

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    async def _all(self) -> None:
        async with httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=CLIENTS)) as client:
            await asyncio.gather(*(self._one(client) for _ in range(CLIENTS)))

    async def _one(self, client: httpx.AsyncClient) -> None:
        while not self._stop.is_set():
            try:
                answer = await client.post(f"{self.url}/v1/predict?top=5", files={"image": self.picture})
                self.answers.append(answer)
            except httpx.ConnectError:
                self.refused += 1
                return
            except httpx.HTTPError as error:
                self.lost.append(repr(error))


def wait_for(what: str, until: object, seconds: float = 120) -> None:
    """Wait until `until()` is true."""
    end = time.monotonic() + seconds
    while not until():  # type: ignore[operator]
        assert time.monotonic() < end, what
        time.sleep(0.02)


def test_a_new_version_and_an_end_under_load(small_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    with served(f"a={run}", "--watch", "0.1") as server:
        httpx.post(f"{server.url}/v1/predict", files={"image": png()}).raise_for_status()
        (first,) = expected = [offline_of(run, tmp_path)]
        with Load(server.url, png()) as load:
            wait_for("answers", lambda: len(load.answers) > 20)
            write_atomically(run / "model.safetensors", b"no weights at all")
            time.sleep(0.5)
            about = httpx.get(f"{server.url}/v1/models/a").json()
            assert about["version"] == 1, "a version that cannot be read changes nothing"
            broken = httpx.post(f"{server.url}/v1/models/a/reload")
            assert broken.status_code == 409 and "version 1 of a stays" in broken.json()["error"]["message"]
            write_atomically(run / "model.safetensors", other_weights(small_run))
            wait_for("version 2", lambda: httpx.get(f"{server.url}/v1/models/a").json()["version"] == 2)
            asked = len(load.answers)
            wait_for("answers of version 2", lambda: len(load.answers) > asked + 40)
            assert httpx.post(f"{server.url}/v1/models/a/reload").json()["version"] == 3
            expected.append(offline_of(run, tmp_path))
            asked = len(load.answers)
            wait_for("answers of version 3", lambda: len(load.answers) > asked + 40)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(20) == 0
        assert load.lost == []
        assert load.refused == CLIENTS, "each went on until there was nobody to connect to"
    assert first != pytest.approx(expected[1], abs=0.05)
    versions: Counter[int] = Counter()
    for answer in load.answers:
        assert answer.status_code == 200, answer.text
        found = answer.json()
        versions[found["version"]] += 1
        right = expected[0 if found["version"] == 1 else 1]
        assert said(found["images"][0]["top"]) == pytest.approx(right, abs=1e-5)
    assert set(versions) == {1, 2, 3}


def offline_of(run: Path, folder: Path) -> dict[str, float]:
    (folder / "picture.png").write_bytes(png())
    (answer,) = offline(run, [folder / "picture.png"])
    return answer


def test_what_has_been_sent_is_answered(small_run: Path, tmp_path: Path) -> None:
    """A signal while requests wait in the queue: all of them are answered, on connections that then close."""

    async def ask(server: Running) -> list[httpx.Response]:
        key = {"x-api-key": "from-file"}
        async with httpx.AsyncClient(base_url=server.url, timeout=30, headers=key) as asking:
            posts = [asyncio.create_task(asking.post("/v1/predict", files={"image": png()})) for _ in range(9)]
            while "googlenet_pictures_accepted 9.0" not in (await asking.get("/metrics")).text:
                assert not any(post.done() for post in posts), "the batch was computed before all had come"
                await asyncio.sleep(0.02)
            server.process.send_signal(signal.SIGINT)
            await asyncio.sleep(0.1)
            ready = await asking.get("/v2/health/ready")
            assert ready.status_code == 503 and ready.headers["connection"] == "close"
            return list(await asyncio.gather(*posts))

    (tmp_path / "key").write_text("from-file\n")
    options = ["--max-wait", "1500", "--max-batch", "64", "--api-key-file", tmp_path / "key"]
    with served(small_run, *options) as server:
        assert server.url.startswith("http://127.0.0.1:")
        listed = [
            httpx.get(f"{server.url}/v1/models", headers={"x-api-key": key}) for key in ("", "other", "from-file")
        ]
        assert [answer.status_code for answer in listed] == [401, 401, 200]
        assert listed[2].json()["models"][0]["name"] == "small", "a run is called as its folder is"
        answers = asyncio.run(ask(server))
        assert [answer.status_code for answer in answers] == [200] * 9
        assert {answer.headers["connection"] for answer in answers} == {"close"}
        assert server.process.wait(20) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/healthz")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["missing"], 1, "missing: no such file"),
        (["{run}", "--port", "99999"], 2, "--port"),
        (["{run}", "--max-batch", "0"], 2, "--max-batch"),
        (["{run}", "{run}"], 2, "two runs are called small"),
        (["a={run}", "--api-key-file", "{empty}"], 1, "write the key into it"),
        (["{run}", "--host", "203.0.113.7"], 1, "cannot listen there"),
    ],
)
def test_wrong_usage(
    arguments: list[str], code: int, said: str, small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").touch()
    filled = [text.format(run=small_run, empty=tmp_path / "empty") for text in arguments]
    assert called(filled) == code
    out, err = capsys.readouterr()
    assert said in err and len(err.splitlines()) == 1 and not out


def called(arguments: list[str]) -> int:
    """The exit code of ``googlenet serve``, without a process of its own."""
    try:
        return main(["serve", *arguments])
    except SystemExit as end:
        return int(end.code or 0)


def test_a_port_that_is_taken(small_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert called([str(small_run), "--port", str(taken.getsockname()[1])]) == 1
    said = capsys.readouterr().err
    assert "name another --host or --port" in said and len(said.splitlines()) == 1
