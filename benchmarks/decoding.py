"""Pictures per second from JPEG files to batches: our streamed folder, and torchvision's ImageFolder with DataLoader.

Both decode the same files, resize and cut the centre square, and give float batches in [0, 1] in a random order, with
the same number of worker processes; an epoch each round, in turn, each in a process of its own. The clock runs from
the second batch on, so that neither starting a process nor importing counts. Prints a table, and with ``--json`` one
JSON document. Run: make bench-decoding
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

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

CLASSES = 10
WIDTH, HEIGHT = 500, 375
SIDES = ("ours", "torchvision")


def write_picture(root: Path, number: int) -> None:
    """A JPEG of a photograph's size in bytes: shapes on a slow gradient, with noise, at quality 90."""
    rng = np.random.default_rng(number)
    slow = Image.fromarray(rng.integers(30, 220, (4, 5, 3)).astype(np.uint8))
    image = slow.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(25):
        x, y, w, h = (int(n) for n in rng.integers((0, 0, 10, 10), (WIDTH, HEIGHT, 150, 120)))
        colour = tuple(rng.integers(0, 255, 3).tolist())
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)((x, y, x + w, y + h), fill=colour)
    noisy = np.asarray(image) + rng.normal(0, 9, (HEIGHT, WIDTH, 3))
    folder = root / f"class{number % CLASSES}"
    folder.mkdir(exist_ok=True)
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(folder / f"{number:06}.jpg", quality=90)


def ours(root: Path, size: int, batch: int, workers: int) -> Iterator[Tensor]:
    """Our batches, of one epoch."""
    from googlenet.data.loader import Augment, steps_per_epoch, training_batch
    from googlenet.data.preprocess import Preprocess
    from googlenet.data.sources import load_dataset

    data = load_dataset(f"folder:{root}", validation=0, size=size, channels=3, resident=False, workers=workers)
    preprocess = Preprocess(size, 3, (0.0,) * 3, (1.0,) * 3)
    for step in range(steps_per_epoch(len(data.train.labels), batch)):
        yield training_batch(
            data.train, preprocess, Augment(), step=step, batch_size=batch, size=size, seed=0
        ).images  # fmt: skip


def torchvision(root: Path, size: int, batch: int, workers: int) -> Iterator[Tensor]:
    """Their batches, of one epoch."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import CenterCrop, Compose, Resize, ToTensor

    folder = ImageFolder(str(root), Compose([Resize(size), CenterCrop(size), ToTensor()]))
    for images, _ in DataLoader(folder, batch, shuffle=True, num_workers=workers):
        yield images


def images_per_second(side: str, root: Path, size: int, batch: int, workers: int) -> float:
    """The speed of one epoch after its first batch."""
    batches = {"ours": ours, "torchvision": torchvision}[side](root, size, batch, workers)
    assert next(batches).shape[1:] == (3, size, size)
    started, count = time.perf_counter(), 0
    for images in batches:
        count += len(images)
    return count / (time.perf_counter() - started)


def compare(pictures: int, size: int, batch: int, workers: int, rounds: int) -> dict[str, object]:
    """Medians of both sides, round by round in turn, on freshly made files."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "pictures"
        root.mkdir()
        with ProcessPoolExecutor() as pool:
            list(pool.map(partial(write_picture, root), range(pictures), chunksize=16))
        weight = sum(path.stat().st_size for path in root.rglob("*.jpg")) / pictures
        measured: dict[str, list[float]] = {side: [] for side in SIDES}
        environment = {**os.environ, "XDG_CACHE_HOME": str(Path(scratch) / "cache")}
        options = [str(option) for option in (size, batch, workers)]
        for round_ in range(rounds + 1):
            for side in SIDES:
                command = [sys.executable, __file__, "--side", side, str(root), *options]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
                if round_:  # the first fills the caches of both: the system's, and ours of what can be used
                    measured[side].append(float(done.stdout))
    medians = {side: round(statistics.median(values), 1) for side, values in measured.items()}
    return {
        "images_per_second": medians,
        "ratio": round(medians["ours"] / medians["torchvision"], 3),
        "rounds": {side: [round(value, 1) for value in values] for side, values in measured.items()},
        "pictures": pictures,
        "bytes_per_picture": round(weight),
        "size": size,
        "batch": batch,
        "workers": workers,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def main() -> None:
    """Parse the command line and print."""
    if sys.argv[1:2] == ["--side"]:
        side, root, *options = sys.argv[2:]
        print(images_per_second(side, Path(root), *map(int, options)))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--pictures", type=int, default=2000, help=f"JPEGs of {WIDTH}x{HEIGHT} (default 2000)")
    parser.add_argument("--size", type=int, default=224, help="pixels of a side (default 224)")
    parser.add_argument("--batch", type=int, default=64, help="pictures in a batch (default 64)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: the cores)")
    parser.add_argument("--rounds", type=int, default=3, help="measured epochs of each side (default 3)")
    args = parser.parse_args()
    found = compare(args.pictures, args.size, args.batch, args.workers, args.rounds)
    if args.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{args.pictures} JPEGs of {WIDTH}x{HEIGHT}, {found['bytes_per_picture']} bytes each, to {args.size} px")
    print(f"{'':<14}{'images/s':>10}  rounds")
    for side in SIDES:
        print(f"{side:<14}{found['images_per_second'][side]:>10}  {found['rounds'][side]}")  # type: ignore[index]
    print(f"ratio {found['ratio']}, {args.workers} workers, {found['cores']} cores, torch {found['torch']}")


if __name__ == "__main__":
    main()
