"""Lifecycle of the server: start, reload under load, graceful shutdown, wrong usage. No request is lost."""

import asyncio
import re
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from googlenet.cli.main import main
from googlenet.files import write_atomically
from googlenet.serving import repository
from googlenet.serving.repository import file_signature
from servers import RunningServer, png, predict_offline, probabilities, run_server, serve_in_thread

CLIENTS = 12


def other_weights(run: Path) -> bytes:
    """Return the weights file of a run with another bias of the classifier."""
    with safe_open(run / "model.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    tensors["classifier.bias"] = torch.tensor([3.0, -1.0, 0.5, 0.0, 1.0])
    return save(tensors, metadata)


class Load:
    """Clients that send the same image repeatedly, each on its own connection, in a thread."""

    def __init__(self, url: str, image: bytes):
        self.url, self.image = url, image
        self.responses: list[httpx.Response] = []
        self.errors: list[str] = []
        self.refused_connections = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run_clients()))

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    async def _run_clients(self) -> None:
        async with httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=CLIENTS)) as client:
            await asyncio.gather(*(self._run_client(client) for _ in range(CLIENTS)))

    async def _run_client(self, client: httpx.AsyncClient) -> None:
        while not self._stop.is_set():
            try:
                response = await client.post(f"{self.url}/v1/predict?top=5", files={"image": self.image})
                self.responses.append(response)
            except httpx.ConnectError:
                self.refused_connections += 1
                return
            except httpx.HTTPError as error:
                self.errors.append(repr(error))

    def wait_for_responses(self, count: int) -> None:
        target = len(self.responses) + count
        wait_until(lambda: len(self.responses) > target)


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def predict_png(run: Path, folder: Path) -> dict[str, float]:
    (folder / "image.png").write_bytes(png())
    (prediction,) = predict_offline(run, [folder / "image.png"])
    return prediction


@pytest.mark.slow
def test_reload_and_shutdown_under_load(small_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    with run_server(f"a={run}", "--reload-interval", "0.1", "--engine", "torch") as server:
        model_url = f"{server.url}/v1/models/a"
        httpx.post(f"{server.url}/v1/predict", files={"image": png()}).raise_for_status()
        expected = [predict_png(run, tmp_path)]
        with Load(server.url, png()) as load:
            load.wait_for_responses(20)
            write_atomically(run / "model.safetensors", b"not a weights file")
            time.sleep(0.5)
            assert httpx.get(model_url).json()["version"] == 1, "an invalid file is not loaded"
            response = httpx.post(f"{model_url}/reload")
            assert response.status_code == 409
            assert "version 1 is still active" in response.json()["error"]["message"]
            write_atomically(run / "model.safetensors", other_weights(small_run))
            wait_until(lambda: httpx.get(model_url).json()["version"] == 2)
            load.wait_for_responses(40)
            assert httpx.post(f"{model_url}/reload").json()["version"] == 3
            expected.append(predict_png(run, tmp_path))
            load.wait_for_responses(40)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(20) == 0
        assert load.errors == []
        assert load.refused_connections == CLIENTS, "every client continued until the server was stopped"
    assert expected[0] != pytest.approx(expected[1], abs=0.05)
    versions: Counter[int] = Counter()
    for response in load.responses:
        assert response.status_code == 200, response.text
        body = response.json()
        versions[body["version"]] += 1
        target = expected[0 if body["version"] == 1 else 1]
        assert probabilities(body["images"][0]["top"]) == pytest.approx(target, abs=1e-5)
    assert set(versions) == {1, 2, 3}


@pytest.mark.slow
def test_shutdown_completes_queued_requests(small_run: Path, tmp_path: Path) -> None:
    async def send(server: RunningServer) -> list[httpx.Response]:
        headers = {"x-api-key": "from-file"}
        async with httpx.AsyncClient(base_url=server.url, timeout=30, headers=headers) as client:
            requests = [asyncio.create_task(client.post("/v1/predict", files={"image": png()})) for _ in range(9)]
            while "googlenet_inflight_images 9.0" not in (await client.get("/metrics")).text:
                assert not any(request.done() for request in requests), "the batch was computed too early"
                await asyncio.sleep(0.02)
            server.process.send_signal(signal.SIGINT)
            await asyncio.sleep(0.1)
            ready = await client.get("/v2/health/ready")
            assert ready.status_code == 503 and ready.headers["connection"] == "close"
            return list(await asyncio.gather(*requests))

    (tmp_path / "key").write_text("from-file\n")
    options = ["--max-batch-delay-ms", "1500", "--max-batch-size", "64", "--api-key-file", tmp_path / "key"]
    options += ["--engine", "torch", "--drain-seconds", "0.3"]
    with run_server(small_run, *options) as server:
        assert server.url.startswith("http://127.0.0.1:")
        models = [
            httpx.get(f"{server.url}/v1/models", headers={"x-api-key": key}) for key in ("", "other", "from-file")
        ]
        assert [response.status_code for response in models] == [401, 401, 200]
        assert models[2].json()["models"][0]["name"] == "small", "the default name is that of the folder"
        responses = asyncio.run(send(server))
        assert [response.status_code for response in responses] == [200] * 9
        assert {response.headers["connection"] for response in responses} == {"close"}
        assert server.process.wait(20) == 130, "interrupted"
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/healthz")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["missing"], 1, "missing: no such file"),
        (["{run}", "--port", "99999"], 2, "--port"),
        (["{run}", "--max-batch-size", "0"], 2, "--max-batch-size"),
        (["{run}", "--timeout", "0"], 2, "--timeout"),
        (["{run}", "--max-batch-delay-ms", "nan"], 2, "--max-batch-delay-ms"),
        (["{run}", "--replicas", "4:1"], 2, "--replicas"),
        (["{run}", "{run}"], 2, "duplicate model name small"),
        (["a={run}", "--api-key-file", "{empty}"], 1, "write the API key to this file"),
        (["a={run}", "--api-key-file", "{key}"], 1, "ASCII characters without spaces"),
        (["{run}", "--drain-seconds", "-1"], 2, "--drain-seconds"),
        (["{run}", "--host", "203.0.113.7"], 1, "cannot listen on"),
    ],
)
def test_wrong_usage(
    arguments: list[str], code: int, message: str, small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "key").write_text("schl\u00fcssel\n")
    values = {"run": small_run, "empty": tmp_path / "empty", "key": tmp_path / "key"}
    assert serve([text.format(**values) for text in arguments]) == code
    out, err = capsys.readouterr()
    assert message in err and len(err.splitlines()) == 1 and not out


def serve(arguments: list[str]) -> int:
    """Run ``googlenet serve`` in this process and return its exit code."""
    try:
        return main(["serve", *arguments])
    except SystemExit as exit_:
        return int(exit_.code or 0)


@pytest.mark.release
def test_access_log(small_run: Path, tmp_path: Path) -> None:
    """Each request is one line with its id, which the response has as well. Ids that break a line are replaced."""
    with run_server(small_run, "--access-log") as server:
        named = httpx.get(f"{server.url}/v1/models", headers={"x-request-id": "order-7.3"})
        forged = httpx.post(f"{server.url}/v1/no%0Apath", content=b"12345", headers={"x-request-id": "a b"})
        server.process.terminate()
        assert server.process.stderr is not None
        lines = [line.partition(" 127.0.0.1 ")[2] for line in server.process.stderr.read().decode().splitlines()]
    assert named.headers["x-request-id"] == "order-7.3"
    assert re.fullmatch(r"[0-9a-f]{32}", forged.headers["x-request-id"])
    numbers = (r"0 bytes received, [\d.]+ ms, request order-7\.3", r"5 bytes received, [\d.]+ ms, request [0-9a-f]{32}")
    expected = (rf"GET '/v1/models' 200, {numbers[0]}", rf"POST '/v1/no\\npath' 404, {numbers[1]}")
    found = [line for line in lines if line]
    assert len(found) == 2
    assert all(re.fullmatch(pattern, line) for pattern, line in zip(expected, found, strict=True)), found


def test_port_in_use(small_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert serve([str(small_run), "--port", str(listener.getsockname()[1])]) == 1
    message = capsys.readouterr().err
    assert "use another --host or --port" in message and len(message.splitlines()) == 1


def test_changes_of_every_kind_of_model_are_noticed(tmp_path: Path) -> None:
    """The signature that is watched covers runs, weights files, exported folders and the members of an ensemble."""
    ensemble = ("ensemble/ensemble.json", "ensemble/member-2/model.safetensors")
    files = ("run/model.safetensors", "export/model.json", *ensemble)
    for name in (*files, "file.safetensors"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1")
    for name in (*files, "file.safetensors"):
        model = str(tmp_path / name.partition("/")[0])
        before = file_signature(model)
        write_atomically(tmp_path / name, b"2")
        assert file_signature(model) != before, name
    assert file_signature(str(tmp_path / "missing")) == ()


def test_watching_survives_an_error(small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that fails for a moment does not end the search for new versions."""
    calls: list[str] = []

    def fail(path: str) -> tuple[tuple[int, int, int], ...]:
        calls.append(path)
        raise OSError("the share is gone")

    with serve_in_thread(small_run, reload_interval=0.01):
        monkeypatch.setattr(repository, "file_signature", fail)
        wait_until(lambda: len(calls) > 3)
