"""Beyond one process: a folder answered by two workers, of which one is killed; the server in two replicas."""

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

from googlenet.deployment.ray_predicting import Answers, _check_plan, _Worker, part_file, predict_in_parts
from googlenet.deployment.ray_serving import Replicas, ray_application, run_under_ray
from googlenet.deployment.serving.limits import Limits
from googlenet.verbs.predict_in_parts import answers_of
from googlenet.verbs.serve import Plan, gate_of
from servers import offline, png, said

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two workers' worth of a local cluster."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


def descendants(name: str) -> list[int]:
    """The processes under this one whose command has `name` in it."""
    parents, named = {}, []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                status, command = (folder / "status").read_text(), (folder / "cmdline").read_bytes()
            except OSError:
                continue
            parents[int(folder.name)] = int(
                next(row.split()[1] for row in status.splitlines() if row.startswith("PPid"))
            )
            if name.encode() in command:
                named.append(int(folder.name))

    def ours(pid: int) -> bool:
        while pid > 1:
            pid = parents.get(pid, 0)
            if pid == os.getpid():
                return True
        return False

    return [pid for pid in named if ours(pid)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 pictures, of which one is none."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(30):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{number:03d}.png")
    (folder / "017.png").write_bytes(b"no picture")
    return folder


def test_parts_as_one_worker_writes_them(folder: Path, small_run: Path, tmp_path: Path) -> None:
    """What a worker does, without a cluster: every picture once, as `predict` answers; then nothing is left to do."""
    import pyarrow.parquet as pq

    out, paths, run = tmp_path / "out", sorted(map(str, folder.iterdir())), str(small_run)
    out.mkdir()

    def ready() -> Answers:
        return answers_of(run, None, 2, [64], False)

    worker = _Worker(ready, str(out))
    parts = [paths[start : start + 4] for start in range(0, 30, 4)]
    assert worker({"part": [3], "paths": [parts[3]]}) == {"part": [3]}
    with pytest.raises(ValueError, match="holds parts, and no plan.json that says of what"):
        predict_in_parts(paths, ready, {"run": run}, out, 1, part=4)
    part_file(out, 3).unlink()
    worker({"part": list(range(8)), "paths": parts})
    with pytest.raises(ValueError, match="holds parts"):
        predict_in_parts(paths, ready, {"run": run}, out, 1, part=4)
    kept = [part_file(out, number).rename(tmp_path / f"{number}.parquet") for number in range(8)]
    _check_plan(out, paths, {"run": run}, 4)
    for number, file in enumerate(kept):
        file.rename(part_file(out, number))
    assert predict_in_parts(paths, ready, {"run": run}, out, 1, part=4) == (30, 1, 8, 8)
    rows = [row for number in range(8) for row in pq.read_table(part_file(out, number)).to_pylist()]
    assert [row["path"] for row in rows] == paths, "each once, in order"
    assert [row["path"] for row in rows if row["problem"]] == [str(folder / "017.png")]
    good = [row for row in rows if not row["problem"]]
    for row, right in zip(good, offline(small_run, [Path(row["path"]) for row in good]), strict=True):
        assert row["label"] == max(right, key=right.__getitem__)
        assert row["probability"] == pytest.approx(right[row["label"]], abs=1e-5)
        assert [guess["label"] for guess in row["top"]] == sorted(right, key=right.__getitem__)[:-3:-1]
    for about, part in (({"run": "other"}, 4), ({"run": run}, 5)):
        with pytest.raises(ValueError, match="begun with other (run|part)"):
            predict_in_parts(paths, ready, about, out, 1, part=part)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_loses_nothing(small_run: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    folder, out, run = tmp_path / "pictures", tmp_path / "out", str(small_run)
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(150):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{number:03d}.png")
    (folder / "077.png").write_bytes(b"no picture")
    paths = sorted(map(str, folder.iterdir()))
    done: list[Any] = []
    about = {"run": run}

    def go() -> None:
        done.append(predict_in_parts(paths, lambda: answers_of(run, None, 2, [64], False), about, out, 2, part=4))

    working = threading.Thread(target=go)
    working.start()
    end = time.monotonic() + 120
    while not any(out.glob("part-*.parquet")) and time.monotonic() < end:
        time.sleep(0.01)
    killed = descendants("MapWorker")
    assert killed
    os.kill(killed[0], signal.SIGKILL)
    assert not part_file(out, 37).exists(), "it was killed before the end"
    working.join(200)
    assert done == [(150, 1, 38, 0)]
    rows = [row for file in sorted(out.glob("part-*.parquet")) for row in pq.read_table(file).to_pylist()]
    assert Counter(row["path"] for row in rows) == Counter(paths), "each once"
    assert [row["path"] for row in rows if row["problem"]] == [str(folder / "077.png")]
    good = [row for row in rows if not row["problem"]][::30]
    expected = offline(small_run, [Path(row["path"]) for row in good])
    for row, right in zip(good, expected, strict=True):
        assert row["label"] == max(right, key=right.__getitem__)
        assert row["probability"] == pytest.approx(right[row["label"]], abs=1e-5)
        assert len(row["top"]) == 2
    # A run that goes on does what is missing; one about something else is refused.
    part_file(out, 5).unlink()
    kept = part_file(out, 6).stat().st_mtime_ns
    again = predict_in_parts(paths, lambda: answers_of(run, None, 2, [64], False), about, out, 1, part=4)
    assert again == (150, 1, 38, 37)
    assert part_file(out, 6).stat().st_mtime_ns == kept
    with pytest.raises(ValueError, match="begun with other run"):
        predict_in_parts(paths, lambda: answers_of(run, None, 2, [64], False), {"run": "other"}, out, 1, part=4)
    assert json.loads((out / "plan.json").read_text())["pictures"] == 150


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_the_server_in_replicas(small_run: Path) -> None:
    plan = Plan({"small": str(small_run)}, None, None, 1, Limits(), "s3cret", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    stop = run_under_ray(ray_application(lambda: gate_of(plan), Replicas(2, 2, 1), 64), "127.0.0.1", port)
    try:
        with httpx.Client(base_url=url, timeout=60, headers={"x-api-key": "s3cret"}) as client:
            (small_run.parent / "one.png").write_bytes(png())
            (right,) = offline(small_run, [small_run.parent / "one.png"])
            for _ in range(12):
                answer = client.post("/v1/predict?top=5", files={"image": png()}).json()
                assert said(answer["images"][0]["top"]) == pytest.approx(right, abs=1e-5)
            refused = client.post("/v1/predict", files={"image": b"no"})
            assert refused.status_code == 422 and "not a picture" in refused.json()["error"]["message"]
            assert httpx.get(f"{url}/v1/models", timeout=60).status_code == 401
            assert "What does the network see?" in client.get("/").text
            assert client.get("/v2/health/ready").json() == {"ready": True}
    finally:
        stop()
