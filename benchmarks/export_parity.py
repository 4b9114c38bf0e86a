"""Every member of the family in every engine, at its least size, its own, and an odd rectangle, batches of 1 and 7.

Prints the largest difference of a logit from PyTorch by member and engine. The weights have learnt for 30 steps:
fresh ones of a deep network round so coarsely that PyTorch's float32 is 4e-4 from its own float64. Then one trained
network (``--run``, or one of fashion-mnist-fast) on all 10,000 test pictures of Fashion-MNIST: raw bytes into the
fused network and the files, against ``Preprocess`` and the network as it was trained. Run: make bench-export_parity
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

import googlenet
from googlenet.data.sources import load_dataset
from googlenet.deployment import parity
from googlenet.deployment.engines import open_engine
from googlenet.deployment.export import Pictures, Trained, export
from googlenet.errors import FailedError
from googlenet.models.catalogue import MODELS

Found = dict[str, float | str]

FORMATS = ("onnx", "openvino", "ncnn", "torch")
# Thirty steps of each member, at its least size.
BUDGET = ["--data.limit=1440", "--batch_size=48", "--model.pools=null"]


def member(name: str, pictures: torch.Tensor, work: Path, threads: int) -> Found:
    """The largest difference by engine; where a format cannot say the network, why."""
    entry = MODELS[name]
    flags = [*BUDGET, f"--model.name={name}", f"--size.train={max(entry.min_size, 28)}"]
    fitted = googlenet.fit(googlenet.read_recipe("fashion-mnist-fast", flags), work / name, progress=False)
    run = googlenet.load(fitted.run)
    preprocess = replace(run.preprocess, size=entry.input_size)
    found: Found = {}
    for format in FORMATS:
        trained = Trained(name, run.network, preprocess, run.classes)
        try:
            done = export(trained, Pictures(pictures), work / f"{name}-{format}", [format], threads=threads)
            found |= done.description.max_error
        except (FailedError, ValueError) as error:
            found[format] = str(error)
    return found


def whole_test_set(run: Path | None, work: Path, threads: int) -> dict[str, float]:
    """The largest difference over 10,000 pictures, by engine, at the run's own size."""
    run = run or googlenet.fit(googlenet.read_recipe("fashion-mnist-fast"), work / "run").run
    known = googlenet.load(run)
    images = load_dataset("fashion-mnist", validation=0).test.images
    model, preprocess = known.network.eval(), known.preprocess
    trained = Trained(known.recipe.model.name, model, preprocess, known.classes)
    done = export(trained, Pictures(images[:7]), work / "all", list(FORMATS), threads=threads)
    engines = {name: open_engine(done.folder, name, threads) for name in done.description.files}
    fused = googlenet.fuse(model, preprocess)
    found = dict.fromkeys(("fused", *engines), 0.0)
    for pixels in torch.split(images, 200):
        with torch.inference_mode():
            expected = model(preprocess.normalise(pixels.float()))
            answers = {"fused": fused(pixels), **{name: engine(pixels) for name, engine in engines.items()}}
        for name, answer in answers.items():
            found[name] = max(found[name], parity.difference(answer, expected))
    return found


def main() -> None:
    """Go through the catalogue."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--run", type=Path, help="a run of Fashion-MNIST (default: one of fashion-mnist-fast)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pictures = load_dataset("fashion-mnist", validation=0, limit=7).test.images
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for name in options.models:
            started = time.perf_counter()
            rows.append({"name": name, **member(name, pictures, Path(place), options.threads)})
            print(f"{rows[-1]}, {time.perf_counter() - started:.0f} s", file=sys.stderr)
        everything = whole_test_set(options.run, Path(place), options.threads)
    document = {
        "bound": parity.BOUND,
        "rows": rows,
        "pictures": 10_000,
        "all": everything,
        "torch": torch.__version__,
    }
    print(json.dumps(document, indent=2) if options.json else everything)


if __name__ == "__main__":
    main()
