"""Fine-tune on 60 images: two classes of Fashion-MNIST, from a network trained on the other eight.

Prints for each seed the accuracy on the 12 validation images, which select the weights, the accuracy on 400 other
images, and the seconds of fine-tuning. Run: make bench-finetune
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
from googlenet.data.sources import LoadOptions, load_dataset
from googlenet.evaluation.metrics import classification_metrics
from googlenet.evaluation.predictor import NetworkPredictor, predict_split


def write_images(split: Split, label: int, count: int, folder: Path) -> None:
    """Write the first `count` images of a class as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in (split.labels == label).nonzero().flatten()[:count].tolist():
        Image.fromarray(split.images[index, 0].numpy()).save(folder / f"{index}.png")


def write_folders(work: Path, classes: list[str], num_images: int) -> None:
    """Write the folders two (30 images of each of `classes`), others (200 of each) and eight (the other classes)."""
    data = load_dataset("fashion-mnist", LoadOptions(validation=0))
    for label, name in enumerate(data.classes):
        folder = name.replace("/", "-")
        if name in classes:
            write_images(data.train, label, 30, work / "two" / folder)
            write_images(data.test, label, 200, work / "others" / folder)
        else:
            write_images(data.train, label, num_images, work / "eight" / folder)


def main() -> None:
    """Write the folders, train on eight classes, fine-tune on two, print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", nargs=2, default=["Sandal", "Sneaker"])
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--images", type=int, default=700, help="images of each of the eight classes (default 700)")
    parser.add_argument("--folder", type=Path, help="folder of images and runs (default: a temporary one)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args()
    work = args.folder or Path(tempfile.mkdtemp())
    write_folders(work, args.classes, args.images)
    flags = [f"--data.source=folder:{work / 'eight'}", "--data.val_split=0.1", "--epochs=3"]
    first = googlenet.fit(googlenet.read_recipe("fashion-mnist-fast", flags), work / "first")
    top1 = first.metrics["validation"]["top1"]
    print(f"eight classes: validation top-1 {top1:.4f}, {first.seconds:.0f} s", file=sys.stderr)
    others = load_dataset(f"folder:{work / 'others'}", LoadOptions(validation=0, size=28)).train
    runs = []
    for seed in range(args.seeds):
        flags = [f"--data.source=folder:{work / 'two'}", f"--model.init_from={work / 'first'}", f"--seed={seed}"]
        recipe = googlenet.read_recipe("folder-finetune", flags)
        result = googlenet.fit(recipe, work / f"finetuned-{seed}", progress=False)
        run = googlenet.load(result.run)
        predictor = NetworkPredictor(run.model, run.preprocess, run.classes)
        top1 = classification_metrics(predict_split(predictor, others))["top1"]
        validation = result.metrics["validation"]["top1"]
        runs.append({"seed": seed, "validation": validation, "others": top1, "seconds": result.seconds})
        print(runs[-1], file=sys.stderr)
    accuracies = [run["others"] for run in runs]
    mean, sd = statistics.mean(accuracies), statistics.stdev(accuracies) if len(runs) > 1 else 0.0
    if args.json:
        document = {"classes": args.classes, "images": 400, "runs": runs, "mean": mean, "sd": sd}
        print(json.dumps({**document, "torch": torch.__version__}, indent=2))
        return
    print(f"{' and '.join(args.classes)}, 400 other images: mean {mean:.4f}, sd {sd:.4f}, n = {len(runs)}; "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}")  # fmt: skip


if __name__ == "__main__":
    main()
