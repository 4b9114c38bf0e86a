"""The server under load: its pictures per second against those of its own engine, and whether every answer is right.

A server, an engine and the clients each have a process of their own; the engine is measured before and after, alone.
64 connections send 224-pixel pictures without a pause, and every answer is compared with the offline one. Then, under
the same load: a new version twice, a queue that is too short, and SIGTERM. Run: make bench-serving
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

CLASSES = 1000
TOP = 5
PICTURES = 16
CLOSE_ENOUGH = 1e-4  # of a probability: batches of other sizes round otherwise


class Setting(NamedTuple):
    """What is measured: the run, the pictures, the offline answers, and how."""

    run: Path
    pictures: list[bytes]
    right: list[dict[str, float]]
    connections: int
    batch: int
    threads: int


class Tally(NamedTuple):
    """What came of a load: answers by status, wrong ones, requests that got none, and answers in `seconds`."""

    statuses: Counter[int]
    wrong: list[str]
    lost: list[str]
    refused: int
    versions: Counter[int]
    seconds: float

    @property
    def rate(self) -> float:
        """Right answers per second."""
        return self.statuses[200] / self.seconds


def write_run(folder: Path, name: str, size: int, seed: int) -> None:
    """An untrained network: its speed is that of a trained one."""
    from googlenet.data.preprocess import Preprocess
    from googlenet.training.checkpoint import Checkpoint, build_model, save_weights
    from googlenet.training.recipe_file import recipe_from_dict

    folder.mkdir(parents=True, exist_ok=True)
    recipe = recipe_from_dict({"data": {"source": "folder:none"}, "model": {"name": name}, "seed": seed})
    pixels = Preprocess(size, 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    classes = tuple(f"class {number}" for number in range(CLASSES))
    save_weights(
        folder / "model.safetensors", Checkpoint(build_model(recipe, CLASSES, 3), pixels, classes, recipe, {})
    )


def make_pictures(size: int) -> list[bytes]:
    """JPEG files of smooth noise, about as hard to decode as photographs."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(PICTURES):
        rows = Image.fromarray(rng.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        rows.resize((size, size), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def engine_alone(run: Path, batch: int, threads: int, seconds: float) -> float:
    """Pictures per second of the engine by itself, in full batches; in a process of its own."""
    code = (
        "import sys, time, torch\n"
        "from googlenet.verbs.serve import open_run\n"
        "run, batch, threads, seconds = sys.argv[1], *map(float, sys.argv[2:])\n"
        "torch.set_num_threads(int(threads))\n"
        "engine = open_run(run).engine\n"
        "p = engine.preprocess\n"
        "pixels = torch.randint(256, (int(batch), p.channels, p.size, p.size), dtype=torch.uint8)\n"
        "engine(pixels)\n"
        "done, begun = 0, time.perf_counter()\n"
        "while time.perf_counter() - begun < seconds:\n"
        "    engine(pixels)\n"
        "    done += int(batch)\n"
        "print(done / (time.perf_counter() - begun))\n"
    )
    command = [sys.executable, "-c", code, str(run), str(batch), str(threads), str(seconds)]
    # As `googlenet serve` has it; on a machine that is busy otherwise the engine would be many times slower without.
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def offline_answers(run: Path, pictures: list[bytes], folder: Path) -> list[dict[str, float]]:
    """What `googlenet predict` says of each picture: its best classes."""
    names = []
    for number, data in enumerate(pictures):
        names.append(str(folder / f"{number}.jpg"))
        Path(names[-1]).write_bytes(data)
    command = [sys.executable, "-m", "googlenet", "predict", str(run), *names, "--top", str(TOP), "--json"]
    said = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return [{guess["label"]: guess["probability"] for guess in answer["top"]} for answer in said]


@contextmanager
def server(setting: Setting, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """``googlenet serve`` in a process of its own."""
    command = [sys.executable, "-m", "googlenet", "serve", f"net={setting.run}", "--port", "0", "--json",
               "--timeout", "120", "--max-batch", str(setting.batch),
               "--threads", str(setting.threads), *arguments]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"], process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(180)


async def load(url: str, setting: Setting, seconds: float, events: dict[float, Any] | None = None) -> Tally:
    """All connections at once, for so long; `events` are called after so many seconds."""
    place = urlsplit(url)
    tally = Tally(Counter(), [], [], 0, Counter(), 0.0)
    refused = 0
    begun = time.perf_counter()

    async def one(first: int) -> None:
        nonlocal refused
        number, streams = first, None
        while time.perf_counter() - begun < seconds:
            if streams is None:
                try:
                    streams = await asyncio.open_connection(place.hostname, place.port)
                except OSError:
                    refused += 1
                    return
            which = number % PICTURES
            number += 1
            try:
                status, keep, body = await ask(*streams, setting.pictures[which])
            except (OSError, asyncio.IncompleteReadError) as error:
                tally.lost.append(repr(error))
                streams = None
                continue
            tally.statuses[status] += 1
            if status == 200:
                found = json.loads(body)
                tally.versions[found["version"]] += 1
                if problem := differs(found["images"][0]["top"], setting.right[which]):
                    tally.wrong.append(problem)
            elif status == 429:
                await asyncio.sleep(0.05)
            if not keep:
                streams[1].close()
                streams = None
        if streams is not None:
            streams[1].close()

    async def event(after: float, action: Any) -> None:
        await asyncio.sleep(after)
        await asyncio.to_thread(action)

    happening = [asyncio.create_task(event(after, action)) for after, action in (events or {}).items()]
    await asyncio.gather(*(one(number) for number in range(setting.connections)))
    for task in happening:
        await task
    return tally._replace(refused=refused, seconds=time.perf_counter() - begun)


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, picture: bytes) -> tuple[int, bool, bytes]:
    """One request -> status, whether the connection may be used again, body."""
    head = f"POST /v1/predict?top={TOP} HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
    writer.write(f"{head}Content-Length: {len(picture)}\r\n\r\n".encode() + picture)
    lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
    headers = dict(line.split(b": ", 1) for line in lines[1:] if line)
    body = await reader.readexactly(int(headers[b"content-length"]))
    return int(lines[0].split()[1]), headers.get(b"connection") != b"close", body


def differs(top: list[dict[str, Any]], right: dict[str, float]) -> str | None:
    """What is wrong with an answer; None where nothing is."""
    for guess, (label, probability) in zip(top, right.items(), strict=True):
        if abs(guess["probability"] - probability) > CLOSE_ENOUGH:
            return f"{guess['label']} {guess['probability']} for {label} {probability}"
    return None if top[0]["label"] == next(iter(right)) else f"{top[0]['label']} for {next(iter(right))}"


def resident(pid: int) -> float:
    """Resident memory of a process, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1000


def reload(url: str) -> None:
    """Ask for the next version."""
    import httpx

    httpx.post(f"{url}/v1/models/net/reload", timeout=120).raise_for_status()


def main() -> None:
    """Measure, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="googlenet_bn")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=60, help="of load, and of the engine alone before and after")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp())
    write_run(work / "run", options.model, options.size, 0)
    pictures = make_pictures(options.size)
    right = offline_answers(work / "run", pictures, work)
    setting = Setting(work / "run", pictures, right, options.connections, options.batch, options.threads)
    alone = [engine_alone(setting.run, options.batch, options.threads, options.seconds / 2)]
    print(f"engine: {alone[0]:.1f} pictures/s", file=sys.stderr)
    with server(setting) as (url, process):
        asyncio.run(load(url, setting, min(10.0, options.seconds)))
        memory = [resident(process.pid)]
        looks = {
            after: lambda: memory.append(resident(process.pid)) for after in np.linspace(0, options.seconds, 7)[1:-1]
        }
        steady = asyncio.run(load(url, setting, options.seconds, looks))
        memory.append(resident(process.pid))
        print(f"server: {steady.rate:.1f} pictures/s", file=sys.stderr)
    alone.append(engine_alone(setting.run, options.batch, options.threads, options.seconds / 2))
    short = max(10.0, options.seconds / 4)
    with server(setting) as (url, process):
        again = asyncio.run(
            load(url, setting, short, {short / 4: lambda: reload(url), short / 2: lambda: reload(url)})
        )
        ended = asyncio.run(load(url, setting, short, {short / 2: lambda: process.send_signal(signal.SIGTERM)}))
        code = process.wait(180)
    with server(setting, "--queue", str(options.connections // 4)) as (url, _):
        crowded = asyncio.run(load(url, setting, short))
    everything = {"steady": steady, "reload": again, "sigterm": ended, "short queue": crowded}
    document = {
        "model": options.model, "size": options.size, "connections": options.connections, "batch": options.batch,
        "threads": options.threads, "engine_pictures_per_second": [round(rate, 2) for rate in alone],
        "pictures_per_second": round(steady.rate, 2), "ratio": round(steady.rate / statistics.mean(alone), 3),
        "memory_mb": [round(each) for each in memory], "exit_code": code,
        "phases": {
            name: {
                "seconds": round(tally.seconds, 1), "answers": dict(tally.statuses), "wrong": len(tally.wrong),
                "lost": len(tally.lost), "refused_connections": tally.refused, "versions": dict(tally.versions),
                "examples": tally.wrong[:2] + tally.lost[:2],
            }
            for name, tally in everything.items()
        },
    }  # fmt: skip
    if options.json:
        print(json.dumps(document, indent=2))
        return
    print(f"{document['pictures_per_second']} pictures/s, the engine alone {document['engine_pictures_per_second']}: "
          f"ratio {document['ratio']}; memory {document['memory_mb']} MB; exit code {code}")  # fmt: skip
    for name, phase in document["phases"].items():
        print(f"{name}: {phase}")


if __name__ == "__main__":
    main()
