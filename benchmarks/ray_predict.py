"""20,000 pictures answered by two workers under Ray Data; one of them is killed half-way.

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
from googlenet.data.sources import load_dataset
from googlenet.deployment.ray_predicting import PART, Answers, part_file, predict_in_parts
from googlenet.verbs.predict_in_parts import answers_of


def write_pictures(folder: Path, count: int) -> list[str]:
    """The first pictures of Fashion-MNIST as PNG files; their paths, in order."""
    folder.mkdir()
    images = load_dataset("fashion-mnist", validation=0).train.images
    paths = []
    for number in range(count):
        paths.append(str(folder / f"{number:06d}.png"))
        Image.fromarray(images[number, 0].numpy()).save(paths[-1])
    return paths


def workers_of(parent: int) -> list[int]:
    """The processes under `parent` that answer parts."""
    parents, named = {}, []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                status, command = (folder / "status").read_text(), (folder / "cmdline").read_bytes()
            except OSError:
                continue
            parents[int(folder.name)] = int(status.partition("PPid:")[2].split()[0])
            if b"MapWorker" in command:
                named.append(int(folder.name))

    def ours(pid: int) -> bool:
        while pid > 1 and pid != parent:
            pid = parents.get(pid, 0)
        return pid == parent

    return [pid for pid in named if ours(pid)]


def main() -> None:
    """Write the pictures, train for seconds, answer, kill, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()

    import pyarrow.parquet as pq
    import ray

    work = Path(tempfile.mkdtemp())
    run = str(googlenet.fit(googlenet.read_recipe("fashion-mnist-smoke"), work / "run", progress=False).run)
    size = googlenet.load(run).preprocess.size
    paths = write_pictures(work / "pictures", options.pictures)
    out, parts = work / "out", -(-options.pictures // PART)
    ray.init(num_cpus=options.workers, include_dashboard=False, log_to_driver=False, logging_level="error")
    found: list[tuple[int, ...]] = []

    def answer() -> None:
        def ready() -> Answers:
            return answers_of(run, None, 5, [size], False)

        with contextlib.redirect_stdout(sys.stderr):  # Ray tells there of workers that died
            found.append(predict_in_parts(paths, ready, {}, out, options.workers))

    begun = time.perf_counter()
    working = threading.Thread(target=answer)
    working.start()
    while sum(part_file(out, number).exists() for number in range(parts)) < parts // 2 and working.is_alive():
        time.sleep(0.05)
    killed = workers_of(os.getpid())[:1]
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    at = sum(part_file(out, number).exists() for number in range(parts))
    working.join()
    seconds = time.perf_counter() - begun
    rows = Counter(path for file in out.glob("part-*.parquet") for path in pq.read_table(file)["path"].to_pylist())
    document = {
        "pictures": options.pictures, "workers": options.workers, "parts": parts, "killed": len(killed),
        "parts_when_killed": at, "rows": sum(rows.values()), "missing": len(set(paths) - set(rows)),
        "twice": sum(count > 1 for count in rows.values()), "problems": found[0][1], "seconds": round(seconds, 1),
    }  # fmt: skip
    print(json.dumps(document, indent=2) if options.json else document)
    ray.shutdown()
    sys.exit(0 if document["rows"] == options.pictures and not document["missing"] and not document["twice"] else 1)


if __name__ == "__main__":
    main()
