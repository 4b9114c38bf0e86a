"""Ray: batch prediction with two workers of which one is killed, and the server in two replicas."""

import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from googlenet.cli import serve
from googlenet.cli.main import main
from googlenet.cli.serve import build_app
from googlenet.distributed import ray_serve
from googlenet.distributed.batch_predict import Job, _check_job, _Worker, predict_sharded, shard_file
from googlenet.distributed.ray_serve import Replicas, build_ray_application, start_ray_serve
from googlenet.inference.predict import PredictOptions
from googlenet.serving.config import ServeConfig
from servers import png, predict_offline, probabilities

ray = pytest.importorskip("ray")
cloudpickle = pytest.importorskip("ray.cloudpickle")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A local cluster with two CPUs."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


def find_descendants(command: str) -> list[int]:
    """Return the processes below this one whose command line contains a text."""
    parents, matching = {}, []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                status, command_line = (folder / "status").read_text(), (folder / "cmdline").read_bytes()
            except OSError:
                continue
            parents[int(folder.name)] = int(status.partition("PPid:")[2].split()[0])
            if command.encode() in command_line:
                matching.append(int(folder.name))

    def is_descendant(pid: int) -> bool:
        while pid > 1 and pid != os.getpid():
            pid = parents.get(pid, 0)
        return pid == os.getpid()

    return [pid for pid in matching if is_descendant(pid)]


def write_images(folder: Path, count: int, invalid: str) -> list[str]:
    """Write random images and one invalid file; return the paths."""
    rng = np.random.default_rng(0)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{index:03d}.png")
    (folder / invalid).write_bytes(b"not an image")
    return sorted(map(str, folder.iterdir()))


def make_job(run: Path | str) -> Job:
    return Job(str(run), options=PredictOptions(top_k=2, sizes=(64,)))


def read_rows(out: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return [row for file in sorted(out.glob("shard-*.parquet")) for row in pq.read_table(file).to_pylist()]


def check_rows(rows: list[dict[str, Any]], run: Path) -> None:
    """Compare rows with predictions without Ray."""
    expected = predict_offline(run, [Path(row["path"]) for row in rows], engine=None)
    for row, target in zip(rows, expected, strict=True):
        assert row["label"] == max(target, key=target.__getitem__)
        assert row["probability"] == pytest.approx(target[row["label"]], abs=1e-5)
        assert [item["label"] for item in row["top"]] == sorted(target, key=target.__getitem__)[:-3:-1]


def test_shards_without_a_cluster(small_run: Path, tmp_path: Path) -> None:
    """A worker writes each image once, with the predictions of `predict`; then nothing is left to do."""
    folder, out, job = tmp_path / "images", tmp_path / "out", make_job(small_run)
    folder.mkdir()
    out.mkdir()
    paths = write_images(folder, 30, "017.png")
    worker = _Worker(job, str(out))
    shards = [paths[start : start + 4] for start in range(0, 30, 4)]
    assert worker({"shard": [3], "paths": [shards[3]]}) == {"shard": [3]}
    with pytest.raises(ValueError, match=r"contains shards but no job\.json"):
        predict_sharded(paths, job, out, 1, shard_size=4)
    shard_file(out, 3).unlink()
    _check_job(out, paths, job, 4)
    worker({"shard": list(range(8)), "paths": shards})
    assert predict_sharded(paths, job, out, 1, shard_size=4) == (30, 1, 8, 8)
    rows = read_rows(out)
    assert [row["path"] for row in rows] == paths, "each once, in order"
    assert [row["path"] for row in rows if row["error"]] == [str(folder / "017.png")]
    check_rows([row for row in rows if not row["error"]], small_run)
    with pytest.raises(ValueError, match="other run, run_sha256;"):
        predict_sharded(paths, make_job("other"), out, 1, shard_size=4)
    with pytest.raises(ValueError, match="other shard_size"):
        predict_sharded(paths, job, out, 1, shard_size=5)
    with pytest.raises(ValueError, match="other images, paths_sha256"):
        predict_sharded(paths[1:], job, out, 1, shard_size=4)


def test_job_of_a_changed_network(tmp_path: Path) -> None:
    """Files of two networks are never mixed: of a run trained again, a member of an ensemble, another export."""
    for name in ("run/model.safetensors", "ensemble/member-1/model.safetensors", "export/model.json"):
        file, out = tmp_path / name, tmp_path / f"out-{name.partition('/')[0]}"
        file.parent.mkdir(parents=True)
        out.mkdir()
        file.write_bytes(b"first")
        job = make_job(tmp_path / name.partition("/")[0])
        _check_job(out, ["a.png"], job, 4)
        _check_job(out, ["a.png"], job, 4)
        file.write_bytes(b"other")
        with pytest.raises(ValueError, match="other run_sha256;"):
            _check_job(out, ["a.png"], job, 4)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_killed_worker_loses_nothing(small_run: Path, tmp_path: Path) -> None:
    folder, out, job = tmp_path / "images", tmp_path / "out", make_job(small_run)
    folder.mkdir()
    paths = write_images(folder, 150, "077.png")
    summaries: list[Any] = []
    thread = threading.Thread(target=lambda: summaries.append(predict_sharded(paths, job, out, 2, shard_size=4)))
    thread.start()
    deadline = time.monotonic() + 120
    while not any(out.glob("shard-*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.01)
    workers = find_descendants("MapWorker")
    assert workers
    os.kill(workers[0], signal.SIGKILL)
    assert not shard_file(out, 37).exists(), "the worker was killed before the end"
    thread.join(200)
    assert summaries == [(150, 1, 38, 0)]
    rows = read_rows(out)
    assert Counter(row["path"] for row in rows) == Counter(paths), "each once"
    assert [row["path"] for row in rows if row["error"]] == [str(folder / "077.png")]
    check_rows([row for row in rows if not row["error"]][::30], small_run)
    # A resumed job computes the missing shards only.
    shard_file(out, 5).unlink()
    modified = shard_file(out, 6).stat().st_mtime_ns
    assert predict_sharded(paths, job, out, 1, shard_size=4) == (150, 1, 38, 37)
    assert shard_file(out, 6).stat().st_mtime_ns == modified
    assert json.loads((out / "job.json").read_text())["images"] == 150


def test_replicas_find_the_models_and_get_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas run in another working directory, and Ray stores what is sent to them."""
    sent: list[Any] = []
    monkeypatch.setattr(ray_serve, "build_ray_application", lambda *arguments: sent.extend(arguments))
    monkeypatch.setattr(ray_serve, "start_ray_serve", lambda *_: lambda: None)
    monkeypatch.setattr(signal, "pthread_sigmask", lambda *_: None)
    monkeypatch.setattr(signal, "sigwait", lambda _: signal.SIGTERM)
    monkeypatch.setattr(serve, "build_app", lambda config: config)
    (tmp_path / "runs" / "cats").mkdir(parents=True)
    (tmp_path / "key").write_text("s3cret\n")
    monkeypatch.chdir(tmp_path)
    arguments = ["serve", "runs/cats", "--replicas", "1:3", "--threads", "2", "--api-key-file", "key", "--port", "0"]
    assert main(arguments) == 0
    build_replica, replicas, _ = sent
    assert replicas == Replicas(1, 3, num_cpus=2)
    assert b"s3cret" not in cloudpickle.dumps(build_replica)
    monkeypatch.chdir("/")
    config = build_replica()
    assert config.models == {"cats": str(tmp_path / "runs" / "cats")} and config.api_key == "s3cret"
    (tmp_path / "key").unlink()
    with pytest.raises((ValueError, OSError), match="key"):
        build_replica()


@pytest.mark.release
@pytest.mark.usefixtures("cluster")
def test_server_in_replicas(small_run: Path) -> None:
    config = ServeConfig({"small": str(small_run)}, threads=1, api_key="s3cret", reload_interval=0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    application = build_ray_application(lambda: build_app(config), Replicas(2, 2, num_cpus=1), max_queue=64)
    stop = start_ray_serve(application, "127.0.0.1", port)
    try:
        with httpx.Client(base_url=url, timeout=60, headers={"x-api-key": "s3cret"}) as client:
            (small_run.parent / "image.png").write_bytes(png())
            (target,) = predict_offline(small_run, [small_run.parent / "image.png"], engine=None)
            for _ in range(12):
                response = client.post("/v1/predict?top=5", files={"image": png()}).json()
                assert probabilities(response["images"][0]["top"]) == pytest.approx(target, abs=1e-5)
            error = client.post("/v1/predict", files={"image": b"no"})
            assert error.status_code == 422 and "not an image" in error.json()["error"]["message"]
            assert httpx.get(f"{url}/v1/models", timeout=60).status_code == 401
            assert "Image classification" in client.get("/").text
            assert client.get("/v2/health/ready").json() == {"ready": True}
    finally:
        stop()
