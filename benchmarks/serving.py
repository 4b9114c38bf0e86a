"""Load test of the server: images per second relative to its engine alone, and whether responses are correct.

Server, engine and clients run in separate processes; the engine is measured before and after, alone, in full batches.
The network has initial weights and no calibration images, so ``auto`` is the fastest engine in float32; ``--engine``
names another engine and precision.
The unfolded network in eager PyTorch is served too, for comparison. 64 connections
send 224-pixel images continuously, and every response is compared with the prediction without a server. Then, under
the same load: two reloads, a queue that is too short, and SIGTERM. Run: make bench-serving
"""

import argparse
import asyncio
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from _cli import googlenet
from googlenet.benchmark.memory import rss_bytes
from googlenet.devices import cpu_features

NUM_CLASSES = 1000
TOP_K = 5
NUM_IMAGES = 16
FULL_PRECISION = ("auto", "auto:float32")
# Of a probability: other batch sizes round differently, in float32 and in a reduced precision.
TOLERANCE, REDUCED_TOLERANCE = 1e-4, 0.05
LOGIT_SCALE = 30.0  # spreads the predictions of initial weights, so that rounding does not change the first class


class Setup(NamedTuple):
    """The run, the images, their expected probabilities, and the load."""

    run: Path
    images: list[bytes]
    expected: list[dict[str, float]]
    engine: str
    connections: int
    batch: int
    threads: int


class LoadResult(NamedTuple):
    """Responses by status, wrong responses, failed requests, refused connections, responses by version, duration."""

    statuses: Counter[int]
    wrong: list[str]
    lost: list[str]
    refused: int
    versions: Counter[int]
    seconds: float

    @property
    def rate(self) -> float:
        """Successful responses per second."""
        return self.statuses[200] / self.seconds


def write_run(folder: Path, name: str, size: int, seed: int) -> None:
    """Save an untrained network, which is as fast as a trained one."""
    from googlenet.checkpoint.format import Checkpoint, build_network, write_checkpoint
    from googlenet.config.parse import recipe_from_dict
    from googlenet.data.preprocess import Preprocess

    folder.mkdir(parents=True, exist_ok=True)
    recipe = recipe_from_dict({"data": {"source": "folder:none"}, "model": {"name": name}, "seed": seed})
    preprocess = Preprocess(size, 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    classes = tuple(f"class {index}" for index in range(NUM_CLASSES))
    network = build_network(recipe, NUM_CLASSES, 3)
    network.classifier.weight.data *= LOGIT_SCALE
    write_checkpoint(folder / "model.safetensors", Checkpoint(network, preprocess, classes, recipe, {}))


def make_images(size: int) -> list[bytes]:
    """Encode smooth noise as JPEG files, which take about as long to decode as photos."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(NUM_IMAGES):
        image = Image.fromarray(rng.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        image.resize((size, size), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


# Measures an engine in full batches: RUN ENGINE BATCH THREADS SECONDS. It prints images per second and the engine.
ENGINE_PROGRAM = """
import sys, time, torch
from googlenet.inference.loading import load_predictor
run, engine, batch, threads, seconds = sys.argv[1], sys.argv[2], *map(float, sys.argv[3:])
torch.set_num_threads(int(threads))
predictor = load_predictor(run, engine, int(threads), task="classification").predictor
preprocess = predictor.preprocess
images = torch.randint(256, (int(batch), preprocess.channels, preprocess.size, preprocess.size), dtype=torch.uint8)
predictor.predict(images)
count, start = 0, time.perf_counter()
while time.perf_counter() - start < seconds:
    predictor.predict(images)
    count += int(batch)
print(count / (time.perf_counter() - start), predictor.name, predictor.precision)
"""


# Serves the network without an engine: RUN BATCH THREADS. It prints the line of `googlenet serve --json`.
EAGER_PROGRAM = """
import json, os, sys
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
from googlenet.serving.app import build_asgi_app
from googlenet.serving.config import Limits, ServeConfig
from googlenet.serving.server import Server, listen, url_of
run, batch, threads = sys.argv[1], *map(int, sys.argv[2:])
listener = listen("127.0.0.1", 0)
config = ServeConfig({"net": run}, None, threads, Limits(max_batch_size=batch, timeout=120.0))
app = build_asgi_app(config)
Server(app, lambda: print(json.dumps({"url": url_of(listener)}), flush=True)).run(sockets=[listener])
"""


def measure_engine(setup: Setup, seconds: float) -> tuple[float, str]:
    """Measure the images per second of the engine alone, in its own process; return its name and precision too."""
    arguments = [str(setup.run), setup.engine, str(setup.batch), str(setup.threads), str(seconds)]
    # `googlenet serve` sets this too. Without it the engine is many times slower on a machine with other load.
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    command = [sys.executable, "-c", ENGINE_PROGRAM, *arguments]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    rate, _, engine = output.strip().partition(" ")
    return float(rate), engine


def predict_offline(run: Path, engine: str, images: list[bytes], folder: Path) -> list[dict[str, float]]:
    """Predict each image with ``googlenet predict``."""
    paths = []
    for index, data in enumerate(images):
        paths.append(str(folder / f"{index}.jpg"))
        Path(paths[-1]).write_bytes(data)
    predictions = googlenet("predict", str(run), *paths, "--engine", engine, "--top-k", str(TOP_K))
    return [{item["label"]: item["probability"] for item in prediction["top"]} for prediction in predictions]


@contextmanager
def run_server(setup: Setup, *arguments: str, eager: bool = False) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run ``googlenet serve`` in its own process, or `EAGER_PROGRAM`."""
    command = [sys.executable, "-m", "googlenet", "serve", f"net={setup.run}", "--port", "0", "--json",
               "--timeout", "120", "--max-batch-size", str(setup.batch), "--engine", setup.engine,
               "--threads", str(setup.threads), *arguments]  # fmt: skip
    if eager:
        command = [sys.executable, "-c", EAGER_PROGRAM, str(setup.run), str(setup.batch), str(setup.threads)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"], process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(180)


class LoadTest:
    """Clients that send images continuously for a number of seconds, each on its own connection."""

    def __init__(self, url: str, setup: Setup, seconds: float):
        self.address, self.setup = urlsplit(url), setup
        self.start = time.perf_counter()
        self.deadline = self.start + seconds
        self.statuses: Counter[int] = Counter()
        self.versions: Counter[int] = Counter()
        self.wrong: list[str] = []
        self.lost: list[str] = []
        self.refused = 0

    async def run(self, events: dict[float, Callable[[], Any]]) -> LoadResult:
        """Run all clients; `events` are functions that are called after a number of seconds."""
        tasks = [asyncio.create_task(self._call_later(delay, action)) for delay, action in events.items()]
        await asyncio.gather(*(self._client(index) for index in range(self.setup.connections)))
        await asyncio.gather(*tasks)
        seconds = time.perf_counter() - self.start
        return LoadResult(self.statuses, self.wrong, self.lost, self.refused, self.versions, seconds)

    async def _call_later(self, delay: float, action: Callable[[], Any]) -> None:
        await asyncio.sleep(delay)
        await asyncio.to_thread(action)

    async def _client(self, index: int) -> None:
        streams = None
        while time.perf_counter() < self.deadline:
            if streams is None:
                try:
                    streams = await asyncio.open_connection(self.address.hostname, self.address.port)
                except OSError:
                    self.refused += 1
                    return
            try:
                status, keep_alive, body = await post(*streams, self.setup.images[index % NUM_IMAGES])
            except (OSError, asyncio.IncompleteReadError) as error:
                self.lost.append(repr(error))
                streams = None
                continue
            self._check(status, body, self.setup.expected[index % NUM_IMAGES])
            index += 1
            if status == 429:
                await asyncio.sleep(0.05)
            if not keep_alive:
                streams[1].close()
                streams = None
        if streams is not None:
            streams[1].close()

    def _check(self, status: int, body: bytes, expected: dict[str, float]) -> None:
        self.statuses[status] += 1
        if status == 200:
            response = json.loads(body)
            self.versions[response["version"]] += 1
            tolerance = TOLERANCE if self.setup.engine in FULL_PRECISION else REDUCED_TOLERANCE
            if difference := compare(response["images"][0]["top"], expected, tolerance):
                self.wrong.append(difference)


def run_load(
    url: str, setup: Setup, seconds: float, events: dict[float, Callable[[], Any]] | None = None
) -> LoadResult:
    """Run a `LoadTest`."""

    async def run() -> LoadResult:
        return await LoadTest(url, setup, seconds).run(events or {})

    return asyncio.run(run())


async def post(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, image: bytes) -> tuple[int, bool, bytes]:
    """Send one request; return status, whether the connection stays open, and body."""
    head = f"POST /v1/predict?top={TOP_K} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\n"
    writer.write(f"{head}Content-Length: {len(image)}\r\n\r\n".encode() + image)
    lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
    headers = dict(line.split(b": ", 1) for line in lines[1:] if line)
    body = await reader.readexactly(int(headers[b"content-length"]))
    return int(lines[0].split()[1]), headers.get(b"connection") != b"close", body


def compare(top: list[dict[str, Any]], expected: dict[str, float], tolerance: float) -> str | None:
    """Describe the difference between a response and the expected probabilities; None if they are equal."""
    for item, (label, probability) in zip(top, expected.items(), strict=True):
        if abs(item["probability"] - probability) > tolerance:
            return f"{item['label']} {item['probability']}, expected {label} {probability}"
    best = next(iter(expected))
    return None if top[0]["label"] == best else f"{top[0]['label']}, expected {best}"


def reload(url: str) -> None:
    """Reload the model."""
    import httpx

    httpx.post(f"{url}/v1/models/net/reload", timeout=120).raise_for_status()


def measure_steady_load(setup: Setup, seconds: float) -> tuple[LoadResult, list[int]]:
    """Return the result of a steady load, and the memory of the server in MB along it."""
    with run_server(setup) as (url, process):
        run_load(url, setup, min(10.0, seconds))
        memory: list[int] = []

        def record() -> None:
            memory.append(round(rss_bytes(process.pid) / 1e6))

        record()
        events = dict.fromkeys(np.linspace(0, seconds, 7)[1:-1], record)
        result = run_load(url, setup, seconds, events)
        record()
    return result, memory


def to_document(result: LoadResult) -> dict[str, Any]:
    """Convert a result to JSON."""
    return {
        "seconds": round(result.seconds, 1), "responses": dict(result.statuses), "wrong": len(result.wrong),
        "lost": len(result.lost), "refused_connections": result.refused, "versions": dict(result.versions),
        "examples": result.wrong[:2] + result.lost[:2],
    }  # fmt: skip


def main() -> None:
    """Run all phases and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="googlenet_bn")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--engine", default="auto", help="such as openvino:bfloat16")
    parser.add_argument("--seconds", type=float, default=40, help="of load, and of the engine alone in total")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp())
    write_run(work / "run", args.model, args.size, 0)
    images = make_images(args.size)
    expected = predict_offline(work / "run", args.engine, images, work)
    setup = Setup(work / "run", images, expected, args.engine, args.connections, args.batch, args.threads)
    rate, engine_name = measure_engine(setup, args.seconds / 2)
    engine = [rate]
    print(f"engine: {rate:.1f} images/s, {engine_name}", file=sys.stderr)
    steady, memory = measure_steady_load(setup, args.seconds)
    print(f"server: {steady.rate:.1f} images/s", file=sys.stderr)
    if not steady.statuses[200]:
        raise SystemExit(f"no request succeeded: {dict(steady.statuses)}, {steady.lost[:2]}")
    engine.append(measure_engine(setup, args.seconds / 2)[0])
    short = max(10.0, args.seconds / 4)
    with run_server(setup, eager=True) as (url, _):
        run_load(url, setup, short / 2)
        eager = run_load(url, setup, short)
    print(f"eager: {eager.rate:.1f} images/s", file=sys.stderr)
    phases = {"steady": steady, "eager": eager}
    with run_server(setup) as (url, process):
        events = {short / 4: lambda: reload(url), short / 2: lambda: reload(url)}
        phases["reload"] = run_load(url, setup, short, events)
        phases["sigterm"] = run_load(url, setup, short, {short / 2: lambda: process.send_signal(signal.SIGTERM)})
        code = process.wait(180)
    with run_server(setup, "--max-queue", str(args.connections // 4)) as (url, _):
        phases["short queue"] = run_load(url, setup, short)
    document = {
        "model": args.model, "size": args.size, "connections": args.connections, "batch": args.batch,
        "threads": args.threads, "engine": engine_name, "cpu": cpu_features(),
        "engine_images_per_second": [round(rate, 2) for rate in engine],
        "images_per_second": round(steady.rate, 2), "ratio": round(steady.rate / statistics.mean(engine), 3),
        "eager_images_per_second": round(eager.rate, 2), "eager_factor": round(steady.rate / eager.rate, 2),
        "memory_mb": memory, "exit_code": code,
        "phases": {name: to_document(result) for name, result in phases.items()},
    }  # fmt: skip
    if args.json:
        print(json.dumps(document, indent=2))
        return
    print(f"{document['images_per_second']} images/s, engine alone {document['engine_images_per_second']}, "
          f"ratio {document['ratio']}; memory {document['memory_mb']} MB; exit code {code}")  # fmt: skip
    for name, phase in document["phases"].items():
        print(f"{name}: {phase}")


if __name__ == "__main__":
    main()
