"""Classify 20,000 images with two Ray Data workers, of which one is killed half-way.

Run: make bench-ray_predict
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from PIL import Image

import googlenet
from googlenet.data.sources import LoadOptions, load_dataset
from googlenet.distributed.batch_predict import SHARD_SIZE, Job, Summary, predict_sharded, shard_file


def write_images(folder: Path, count: int) -> list[str]:
    """Write the first images of Fashion-MNIST as PNG files; return their paths."""
    folder.mkdir()
    images = load_dataset("fashion-mnist", LoadOptions(validation=0)).train.images
    paths = []
    for index in range(count):
        paths.append(str(folder / f"{index:06d}.png"))
        Image.fromarray(images[index, 0].numpy()).save(paths[-1])
    return paths


def find_workers() -> list[int]:
    """Return the worker processes below this process."""
    parents, workers = {}, []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                status, command = (folder / "status").read_text(), (folder / "cmdline").read_bytes()
            except OSError:
                continue
            parents[int(folder.name)] = int(status.partition("PPid:")[2].split()[0])
            if b"MapWorker" in command:
                workers.append(int(folder.name))

    def is_descendant(pid: int) -> bool:
        while pid > 1 and pid != os.getpid():
            pid = parents.get(pid, 0)
        return pid == os.getpid()

    return [pid for pid in workers if is_descendant(pid)]


def main() -> None:
    """Write the images, train for a few seconds, predict, kill a worker, count the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args()

    import pyarrow.parquet as pq
    import ray

    work = Path(tempfile.mkdtemp())
    run = str(googlenet.fit(googlenet.read_recipe("fashion-mnist-smoke"), work / "run", progress=False).run)
    paths = write_images(work / "images", args.images)
    out, shards = work / "out", -(-args.images // SHARD_SIZE)
    ray.init(num_cpus=args.workers, include_dashboard=False, log_to_driver=False, logging_level="error")
    summaries: list[Summary] = []

    def predict() -> None:
        with contextlib.redirect_stdout(sys.stderr):  # Ray prints messages about workers to standard output
            summaries.append(predict_sharded(paths, Job(run), out, args.workers))

    def count_shards() -> int:
        return sum(shard_file(out, index).exists() for index in range(shards))

    start = time.perf_counter()
    thread = threading.Thread(target=predict)
    thread.start()
    while count_shards() < shards // 2 and thread.is_alive():
        time.sleep(0.05)
    killed = find_workers()[:1]
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    shards_when_killed = count_shards()
    thread.join()
    seconds = time.perf_counter() - start
    rows = Counter(path for file in out.glob("shard-*.parquet") for path in pq.read_table(file)["path"].to_pylist())
    document = {
        "images": args.images, "workers": args.workers, "shards": shards, "killed": len(killed),
        "shards_when_killed": shards_when_killed, "rows": sum(rows.values()), "missing": len(set(paths) - set(rows)),
        "duplicates": sum(count > 1 for count in rows.values()), "errors": summaries[0].errors,
        "seconds": round(seconds, 1),
    }  # fmt: skip
    print(json.dumps(document, indent=2) if args.json else document)
    ray.shutdown()
    complete = document["rows"] == args.images and not document["missing"] and not document["duplicates"]
    sys.exit(0 if complete else 1)


if __name__ == "__main__":
    main()
