"""Fine-tuning on 60 pictures: two classes of Fashion-MNIST, from a network trained on the other eight.

Prints each seed's accuracy on the 12 validation pictures, by which the weights were chosen, and on 400 others, and
the seconds of fine-tuning. Run: make bench-finetune
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image

import googlenet
from googlenet.data.dataset import Split
from googlenet.data.folder import load_folder
from googlenet.data.sources import load_dataset
from googlenet.evaluation.metrics import scores
from googlenet.training.task import Classification


def write_pictures(split: Split, label: int, count: int, folder: Path) -> None:
    """The first `count` pictures of one class, as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in (split.labels == label).nonzero().flatten()[:count].tolist():
        Image.fromarray(split.images[row, 0].numpy()).save(folder / f"{row}.png")


def main() -> None:
    """Make the folders, train on eight classes, fine-tune on two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", nargs=2, default=["Sandal", "Sneaker"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=700, help="of each of the eight classes (default 700)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--folder", type=Path, help="where pictures and runs go (default: a temporary one)")
    options = parser.parse_args()
    work = options.folder or Path(tempfile.mkdtemp())
    data = load_dataset("fashion-mnist", validation=0)
    for label, name in enumerate(data.classes):
        place = name.replace("/", "-")
        if name in options.classes:
            write_pictures(data.train, label, 30, work / "two" / place)
            write_pictures(data.test, label, 200, work / "others" / place)
        else:
            write_pictures(data.train, label, options.pictures, work / "eight" / place)
    flags = [f"--data.source=folder:{work / 'eight'}", "--data.validation=0.1", "--epochs=3"]
    before = googlenet.fit(googlenet.read_recipe("fashion-mnist-fast", flags), work / "first")
    first = before.metrics["validation"]["top1"]
    print(f"eight classes: validation top-1 {first:.4f}, {before.seconds:.0f} s", file=sys.stderr)
    others = load_folder(work / "others", validation=0, size=28).train
    figures, runs = [], []
    for seed in range(options.seeds):
        flags = [f"--data.source=folder:{work / 'two'}", f"--model.weights={work / 'first'}", f"--seed={seed}"]
        fitted = googlenet.fit(googlenet.read_recipe("folder-finetune", flags), work / f"mine-{seed}", progress=False)
        run = googlenet.load(fitted.run)
        found = scores(Classification(run.recipe.loss).score(run.model, others, run.preprocess))["top1"]
        figures.append(found)
        held = fitted.metrics["validation"]["top1"]
        runs.append({"seed": seed, "validation": held, "others": found, "seconds": fitted.seconds})
        print(f"seed {seed}: validation {held:.4f}, 400 others {found:.4f}, {fitted.seconds:.0f} s", file=sys.stderr)
    spread = statistics.stdev(figures) if len(figures) > 1 else 0.0
    if options.json:
        found = {"classes": options.classes, "pictures": 400, "runs": runs, "mean": statistics.mean(figures)}
        print(json.dumps({**found, "sd": spread, "torch": torch.__version__}, indent=2))
        return
    print(f"{' and '.join(options.classes)}, 400 others: mean {statistics.mean(figures):.4f}, sd {spread:.4f}, "
          f"n = {len(figures)}; {torch.get_num_threads()} threads, torch {torch.__version__}")  # fmt: skip


if __name__ == "__main__":
    main()
