"""Compare the speed from JPEG files to batches: a folder that is decoded lazily, and torchvision's ImageFolder.

Both decode the same files, resize and crop the center square, and yield float batches in [0, 1] in a random order, with
the same number of worker processes. Each side runs in its own process, in alternation, one epoch per round. The time
starts with the second batch, so that starting processes and importing modules are not included. Prints a table, and
with ``--json`` one JSON document. Run: make bench-decoding
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

NUM_CLASSES = 10
WIDTH, HEIGHT = 500, 375


def write_image(root: Path, index: int) -> None:
    """Write a JPEG with the file size of a photograph: shapes on a smooth gradient, with noise, at quality 90."""
    rng = np.random.default_rng(index)
    gradient = Image.fromarray(rng.integers(30, 220, (4, 5, 3)).astype(np.uint8))
    image = gradient.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(25):
        x, y, w, h = (int(n) for n in rng.integers((0, 0, 10, 10), (WIDTH, HEIGHT, 150, 120)))
        color = tuple(rng.integers(0, 255, 3).tolist())
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)((x, y, x + w, y + h), fill=color)
    noisy = np.asarray(image) + rng.normal(0, 9, (HEIGHT, WIDTH, 3))
    folder = root / f"class{index % NUM_CLASSES}"
    folder.mkdir(exist_ok=True)
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(folder / f"{index:06}.jpg", quality=90)


def googlenet_batches(root: Path, size: int, batch: int, workers: int) -> Iterator[Tensor]:
    """Yield the batches of one epoch of this package."""
    from googlenet.data.augment import Augment
    from googlenet.data.loader import full_batch_spec, steps_per_epoch, training_batch
    from googlenet.data.preprocess import Preprocess
    from googlenet.data.sources import LoadOptions, load_dataset

    options = LoadOptions(validation=0, size=size, channels=3, in_memory=False, num_workers=workers)
    train = load_dataset(f"folder:{root}", options).train
    preprocess = Preprocess(size, 3, (0.0,) * 3, (1.0,) * 3)
    num_images = len(train.labels)
    for step in range(steps_per_epoch(num_images, batch)):
        spec = full_batch_spec(num_images, batch, step=step, size=size, seed=0)
        yield training_batch(train, preprocess, Augment(), spec).images


def torchvision_batches(root: Path, size: int, batch: int, workers: int) -> Iterator[Tensor]:
    """Yield the batches of one epoch of torchvision and PyTorch's DataLoader."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import CenterCrop, Compose, Resize, ToTensor

    folder = ImageFolder(str(root), Compose([Resize(size), CenterCrop(size), ToTensor()]))
    for images, _ in DataLoader(folder, batch, shuffle=True, num_workers=workers):
        yield images


SIDES = {"googlenet": googlenet_batches, "torchvision": torchvision_batches}


def measure(side: str, root: Path, size: int, batch: int, workers: int) -> float:
    """Return the images per second of one epoch after its first batch."""
    batches = SIDES[side](root, size, batch, workers)
    assert next(batches).shape[1:] == (3, size, size)
    started, count = time.perf_counter(), 0
    for images in batches:
        count += len(images)
    return count / (time.perf_counter() - started)


def compare(images: int, size: int, batch: int, workers: int, rounds: int) -> dict[str, Any]:
    """Write the files, measure both sides in alternation, and return the medians."""
    with tempfile.TemporaryDirectory() as work:
        root = Path(work) / "images"
        root.mkdir()
        with ProcessPoolExecutor() as pool:
            list(pool.map(partial(write_image, root), range(images), chunksize=16))
        num_bytes = sum(path.stat().st_size for path in root.rglob("*.jpg")) / images
        speeds: dict[str, list[float]] = {side: [] for side in SIDES}
        environment = {**os.environ, "XDG_CACHE_HOME": str(Path(work) / "cache")}
        options = [str(option) for option in (size, batch, workers)]
        for index in range(rounds + 1):
            for side, values in speeds.items():
                command = [sys.executable, __file__, "--side", side, str(root), *options]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
                if index:  # the first round fills the caches of the system and of this package
                    values.append(float(done.stdout))
    medians = {side: round(statistics.median(values), 1) for side, values in speeds.items()}
    return {
        "images_per_second": medians,
        "ratio": round(medians["googlenet"] / medians["torchvision"], 3),
        "rounds": {side: [round(value, 1) for value in values] for side, values in speeds.items()},
        "images": images,
        "bytes_per_image": round(num_bytes),
        "size": size,
        "batch": batch,
        "workers": workers,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def main() -> None:
    """Compare, or, with --side, measure one side and print its speed."""
    if sys.argv[1:2] == ["--side"]:
        side, root, *options = sys.argv[2:]
        print(measure(side, Path(root), *map(int, options)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--images", type=int, default=2000, help=f"JPEGs of {WIDTH}x{HEIGHT} (default 2000)")
    parser.add_argument("--size", type=int, default=224, help="height and width in pixels (default 224)")
    parser.add_argument("--batch", type=int, default=64, help="images per batch (default 64)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="worker processes (default: one per core)")
    parser.add_argument("--rounds", type=int, default=3, help="measured epochs of each side (default 3)")
    args = parser.parse_args()
    document = compare(args.images, args.size, args.batch, args.workers, args.rounds)
    if args.json:
        print(json.dumps(document, indent=2))
        return
    print(f"{args.images} JPEGs of {WIDTH}x{HEIGHT}, {document['bytes_per_image']} bytes each, to {args.size} px")
    print(f"{'':<14}{'images/s':>10}  rounds")
    for side in SIDES:
        print(f"{side:<14}{document['images_per_second'][side]:>10}  {document['rounds'][side]}")
    print(f"ratio {document['ratio']}, {args.workers} workers, {document['cores']} cores, torch {document['torch']}")


if __name__ == "__main__":
    main()
