"""GoogLeNet at 224 px, batch 1: our files beside torchvision's network with the same weights in the same engines.

Trains torchvision's port of GoogLeNet on Fashion-MNIST for a minute (or takes ``--run``), exports it with int8, and
measures latency at 224 px, every side in a process of its own, in turn. The int8 files' accuracy is of the 10,000
test pictures at the run's own size. Prints a table and the ratios, and with ``--json`` one JSON document. Run:
make bench-deployment
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import googlenet
from googlenet.deployment.benchmark import Row, measure, table
from googlenet.deployment.export import Exported, Int8, Trained, export
from googlenet.deployment.sides import our_sides, peer_sides
from googlenet.verbs.export import run_pictures

SIZE = 224
RECIPE = ["--model.name=googlenet_torchvision", "--model.pools=ceil", "--model.dropout=0"]


def quickest(rows: Sequence[Row], wanted: Callable[[Row], bool]) -> Row:
    """The row of least latency at batch 1, of those `wanted`."""
    return min((row for row in rows if row.batch == 1 and wanted(row)), key=lambda row: row.latency)


def ratios(rows: Sequence[Row], done: Exported) -> dict[str, object]:
    """What the rows come to; times in seconds, of batch 1."""
    float32 = quickest(rows, lambda row: not row.peer and row.precision == "float32")
    peer = quickest(rows, lambda row: row.peer and row.name.startswith("torchvision, o"))
    eager = quickest(rows, lambda row: row.name == "torchvision, torch")
    int8 = quickest(rows, lambda row: row.precision == "int8")
    assert float32.share is not None
    engine = int8.name.split()[1]
    exact, found = (done.description.accuracy[key]["top1"] for key in ("float32", f"{engine}:int8"))
    return {
        "float32": float32.name,
        "peer": peer.name,
        "int8": int8.name,
        "float32_to_peer": round(float32.latency / peer.latency, 3),
        "float32_to_product": round(1 / float32.share, 3),
        "peer_to_int8": round(peer.latency / int8.latency, 2),
        "eager_to_float32": round(eager.latency / float32.latency, 2),
        "eager_to_int8": round(eager.latency / int8.latency, 2),
        "top1": exact,
        "top1_int8": found,
        "top1_lost": round(exact - found, 4),
        "images": done.description.accuracy["float32"]["images"],
        "left_in_float32": done.description.int8["engines"][engine]["left_in_float32"],
    }


def main() -> None:
    """Train, export, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="a run of googlenet_torchvision (default: one is trained)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=10.0, help="of computing for each figure (default 10)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        if not options.run:
            recipe = googlenet.read_recipe("fashion-mnist-fast", RECIPE)
            options.run = googlenet.fit(recipe, work / "run").run
        run = googlenet.load(options.run)
        trained = Trained("googlenet_torchvision", run.network, run.preprocess, run.classes)
        formats = ["onnx", "openvino", "ncnn"]
        done = export(trained, run_pictures(run), work / "exported", formats, int8=Int8(), threads=options.threads)
        cases = [(SIZE, batch) for batch in options.batches]
        engines = ["torch", "onnxruntime", "openvino", "ncnn"]
        sides = our_sides(trained, done.folder, done.description, engines, [SIZE], work)
        sides += peer_sides(trained, cases, work)
        rows = measure(sides, cases, [options.threads], options.seconds, options.rounds)
    found = ratios(rows, done)
    about = {
        "threads": options.threads,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "cores": os.cpu_count(),
    }
    about |= {"cpu_capability": torch.backends.cpu.get_cpu_capability(), "versions": dict(done.description.versions)}
    lines = [*table(rows), *(f"{key}: {value}" for key, value in found.items())]
    print("\n".join(lines), file=sys.stderr if options.json else sys.stdout)
    if options.json:
        print(json.dumps({**about, "ratios": found, "rows": [row._asdict() for row in rows]}, indent=2))


if __name__ == "__main__":
    main()
