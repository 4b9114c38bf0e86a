"""Measure the augmentation of full images, and the start of a training on a large folder.

Throughput: batches at 96 px from JPEG and PNG files of 300x225 pixels, and training steps of googlenet_bn with them,
without augmentation (center crops) and with it (crops of 8 to 100 % of the area with a random interpolation, flips and
photometric distortions), with 0, 1 and 2 worker processes. Images are on disk, or in memory as by default. The ratio of
a row is its speed divided by that without augmentation. The variants of a row run in alternation, in one process.

Start: a training on 200,000 links to 300 JPEGs in 1,000 classes, in a process of its own: seconds from the start of the
process to the end of the first step, and its memory after the first step and after 50 more.
Run: make bench-augmentation
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

SIZE, BATCH, SHAPE = 96, 64, (225, 300)
FORMATS = ("jpg", "png")
AUGMENTATION = {
    "flip": "random", "min_crop_scale": 0.08, "random_interpolation": True, "brightness": 0.4, "contrast": 0.4,
    "saturation": 0.4,
}  # fmt: skip


def write_images(folder: Path, suffix: str, count: int) -> list[Path]:
    """Write images that compress like photographs: smooth colors with noise."""
    folder.mkdir(parents=True)
    paths = []
    for index in range(count):
        rng = np.random.default_rng(index)
        colors = Image.fromarray(rng.integers(30, 220, (9, 12, 3)).astype(np.uint8))
        pixels = np.asarray(colors.resize(SHAPE[::-1], Image.Resampling.BICUBIC)) + rng.normal(0, 4, (*SHAPE, 3))
        paths.append(folder / f"{index:05}.{suffix}")
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def build_batches(root: Path, augmented: bool, in_memory: bool, workers: int) -> Iterator[Any]:
    """Yield the training batches of a folder without end."""
    from googlenet.data.augment import Augment
    from googlenet.data.loader import full_batch_spec, training_batch
    from googlenet.data.preprocess import Preprocess
    from googlenet.data.random_view import full_image_size
    from googlenet.data.sources import LoadOptions, load_dataset

    full_size = full_image_size(SIZE, AUGMENTATION["min_crop_scale"]) if augmented else None
    options = LoadOptions(
        validation=0, size=SIZE, in_memory=in_memory, num_workers=workers, full_size=full_size, check=False
    )
    data = load_dataset(f"folder:{root}", options)
    preprocess, augment = Preprocess(SIZE, 3, data.mean, data.std), Augment(**AUGMENTATION if augmented else {})
    step, count = 0, len(data.train)
    while True:
        yield training_batch(
            data.train, preprocess, augment, full_batch_spec(count, BATCH, step=step, size=SIZE, seed=0)
        )
        step += 1


def build_training_step() -> Callable[[Any], None]:
    """Return a training step of googlenet_bn on this machine's CPU kernels."""
    import googlenet
    from googlenet import kernels
    from googlenet.config.schema import LossConfig, OptimizerConfig
    from googlenet.training.optim import build_optimizer
    from googlenet.training.tasks.classification import ClassificationTask

    model = googlenet.create("googlenet_bn", num_classes=2).train()
    kernels.enable_cpu_kernels(model)
    optimizer = build_optimizer(OptimizerConfig(lr=0.01, momentum=0.9), model)
    task = ClassificationTask(LossConfig())

    def step(batch: Any) -> None:
        optimizer.zero_grad(set_to_none=True)
        task.loss(model, batch).loss.backward()
        optimizer.step()

    return step


def seconds_per_step(batches: Iterator[Any], work: Callable[[Any], object], steps: int) -> float:
    """Return the mean seconds of the next `steps` steps."""
    started = time.perf_counter()
    for _ in range(steps):
        work(next(batches))
    return (time.perf_counter() - started) / steps


def measure_throughput(root: Path, steps: int, rounds: int) -> list[dict[str, Any]]:
    """Return rows with the images per second of loading and of training, with and without augmentation."""
    train = build_training_step()
    rows = []
    for suffix in FORMATS:
        for in_memory in (True, False):
            for workers in (0, 1, 2):
                sides = {name: build_batches(root / suffix, name == "augmented", in_memory, workers)
                         for name in ("plain", "augmented")}  # fmt: skip
                row: dict[str, Any] = {"format": suffix, "in_memory": in_memory, "workers": workers}
                for kind, work in (("loading", lambda batch: None), ("training", train)):
                    times: dict[str, list[float]] = {name: [] for name in sides}
                    for index in range(rounds + 1):
                        for name, batches in sides.items():
                            value = seconds_per_step(batches, work, steps)
                            if index:  # the first round starts the workers and fills the caches
                                times[name].append(value)
                    medians = {name: statistics.median(values) for name, values in times.items()}
                    row[kind] = {name: round(BATCH / value, 1) for name, value in medians.items()}
                    row[kind]["ratio"] = round(medians["plain"] / medians["augmented"], 3)
                    row[kind]["seconds_per_step"] = round(medians["augmented"], 4)
                rows.append(row)
                for batches in sides.values():
                    batches.close()  # type: ignore[attr-defined]
    return rows


def write_links(root: Path, images: list[Path], links: int, classes: int) -> None:
    """Write class folders with links to the images, in turn."""
    for label in range(classes):
        (root / f"{label:04}").mkdir(parents=True)
    for index in range(links):
        target = images[index % len(images)]
        os.symlink(target, root / f"{index % classes:04}" / f"{index // classes:04}{target.suffix}")


def start_training(root: Path, started: float) -> None:
    """Train 51 steps on a folder, and print the seconds since `started` to the first, and the memory."""
    from googlenet.config.parse import read_recipe
    from googlenet.training import fit as module

    flags = {
        "--data.source": f"folder:{root}", "--size.train": str(SIZE), "--batch_size": "32", "--epochs": "0.009",
        "--model.width_mult": "0.25", "--data.val_split": "1000", "--optimizer.name": "sgd",
        **{f"--augment.{key}": json.dumps(value).strip('"') for key, value in AUGMENTATION.items()},
    }  # fmt: skip
    recipe = read_recipe("fashion-mnist-fast", [item for pair in flags.items() for item in pair])
    train_step, memory, first = module.train_step, [], []

    def timed(run: Any, state: Any) -> Any:
        if state.step == 51:
            print(json.dumps({"seconds": first[0], "memory_mb": memory[0], "memory_after_50_steps_mb": memory[-1]}))
            sys.stdout.flush()
            os._exit(0)
        result = train_step(run, state)
        first.append(round(time.time() - started, 1))
        memory.append(round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000))
        return result

    module.train_step = timed
    with tempfile.TemporaryDirectory() as out:
        module.fit(recipe, Path(out) / "run", progress=False)


def measure_start(root: Path, images: list[Path], links: int, classes: int) -> dict[str, Any]:
    """Start a training twice, without and with the results that the first one has cached."""
    write_links(root / "links", images, links, classes)
    environment = {**os.environ, "XDG_CACHE_HOME": str(root / "cache")}
    document: dict[str, Any] = {"links": links, "classes": classes, "images": len(images)}
    for name in ("first", "second"):
        command = [sys.executable, __file__, "--start", str(root / "links"), str(time.time())]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
        if not done.stdout:
            raise SystemExit("the training ended before its 51st step")
        document[name] = json.loads(done.stdout.splitlines()[-1])
    return document


def main() -> None:
    """Measure both, or, with --start, start one training."""
    if sys.argv[1:2] == ["--start"]:
        start_training(Path(sys.argv[2]), float(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--images", type=int, default=640, help="files of each format (default 640)")
    parser.add_argument("--steps", type=int, default=10, help=f"steps of {BATCH} images per round (default 10)")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default 5)")
    parser.add_argument("--links", type=int, default=200_000, help="links for the start (default 200,000)")
    parser.add_argument("--classes", type=int, default=1000, help="classes for the start (default 1,000)")
    parser.add_argument("--only", choices=["throughput", "start"], help="measure one of the two")
    args = parser.parse_args()
    document: dict[str, Any] = {"size": SIZE, "batch": BATCH, "cores": os.cpu_count(), "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as work:
        os.environ["XDG_CACHE_HOME"] = str(Path(work) / "cache")
        files = {}
        for suffix in FORMATS:
            half = args.images // 2
            files[suffix] = [*write_images(Path(work) / suffix / "a", suffix, half),
                             *write_images(Path(work) / suffix / "b", suffix, half)]  # fmt: skip
        if args.only != "start":
            document["throughput"] = measure_throughput(Path(work), args.steps, args.rounds)
        if args.only != "throughput":
            document["start"] = measure_start(Path(work), files["jpg"][:300], args.links, args.classes)
    if args.json:
        print(json.dumps(document, indent=2))
        return
    for row in document.get("throughput", ()):
        where = "memory" if row["in_memory"] else "disk"
        print(
            f"{row['format']} {where:<7}{row['workers']} workers  loading {row['loading']}  training {row['training']}"
        )
    if "start" in document:
        print(document["start"])


if __name__ == "__main__":
    main()
