"""Compare every network in every engine with PyTorch, at its minimum and default size and an odd rectangle.

Prints the largest difference of a logit by network and engine, for batches of 1 and 7. The weights are trained for 30
steps: initial weights of a deep network amplify rounding, so that PyTorch's float32 differs by 4e-4 from its own
float64. Then one trained network (``--run``, or one of fashion-mnist-fast) is compared on all 10,000 test images of
Fashion-MNIST: raw pixels into the folded network and the files, and `Preprocess` and the network as trained.
Run: make bench-export_parity
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
from googlenet.data.sources import LoadOptions, load_dataset
from googlenet.errors import FailedError
from googlenet.export.backends import BACKENDS
from googlenet.export.engine import open_exported
from googlenet.export.exporter import ExportData, ExportOptions, export
from googlenet.export.parity import MAX_ERROR, relative_error
from googlenet.models.registry import MODELS

FORMATS = list(BACKENDS)
# Thirty steps of each network at its minimum size.
BUDGET = ["--data.max_samples=1440", "--batch_size=48", "--model.pool_mode=null"]


def compare_model(name: str, images: torch.Tensor, work: Path, threads: int) -> dict[str, float | str]:
    """Return the largest difference by engine, or the error message of a format that does not support the network."""
    spec = MODELS[name]
    flags = [*BUDGET, f"--model.name={name}", f"--size.train={max(spec.min_size, 28)}"]
    result = googlenet.fit(googlenet.read_recipe("fashion-mnist-fast", flags), work / name, progress=False)
    run = googlenet.load(result.run)
    checkpoint = replace(run, preprocess=replace(run.preprocess, size=spec.input_size))
    errors: dict[str, float | str] = {}
    for format_name in FORMATS:
        out = work / f"{name}-{format_name}"
        try:
            exported = export(checkpoint, ExportData(images), out, [format_name], ExportOptions(threads=threads))
            errors |= exported.manifest.max_error
        except (FailedError, ValueError) as error:
            errors[BACKENDS[format_name].engine] = str(error)
    return errors


def compare_test_set(run: Path | None, work: Path, threads: int) -> dict[str, float]:
    """Return the largest difference over 10,000 images by engine, at the run's own size."""
    run = run or googlenet.fit(googlenet.read_recipe("fashion-mnist-fast"), work / "run").run
    checkpoint = googlenet.load(run)
    images = load_dataset("fashion-mnist", LoadOptions(validation=0)).test.images
    model, preprocess = checkpoint.network.eval(), checkpoint.preprocess
    options = ExportOptions(threads=threads)
    exported = export(checkpoint, ExportData(images[:7]), work / "exported", FORMATS, options)
    predictors = {name: open_exported(exported.folder, name, threads) for name in exported.manifest.files}
    folded = googlenet.fold(model, preprocess)
    errors = dict.fromkeys(("folded", *predictors), 0.0)
    for pixels in torch.split(images, 200):
        with torch.inference_mode():
            expected = model(preprocess.normalize(pixels.float()))
            outputs = {"folded": folded(pixels), **{name: p.predict(pixels) for name, p in predictors.items()}}
        for name, output in outputs.items():
            errors[name] = max(errors[name], relative_error(output, expected))
    return errors


def main() -> None:
    """Compare all networks and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--run", type=Path, help="a run of Fashion-MNIST (default: one of fashion-mnist-fast)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    images = load_dataset("fashion-mnist", LoadOptions(validation=0, max_samples=7)).test.images
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            started = time.perf_counter()
            rows.append({"name": name, **compare_model(name, images, Path(folder), args.threads)})
            print(f"{rows[-1]}, {time.perf_counter() - started:.0f} s", file=sys.stderr)
        test_set = compare_test_set(args.run, Path(folder), args.threads)
    document = {
        "max_error": MAX_ERROR,
        "rows": rows,
        "images": 10_000,
        "test_set": test_set,
        "torch": torch.__version__,
    }
    print(json.dumps(document, indent=2) if args.json else test_set)


if __name__ == "__main__":
    main()
