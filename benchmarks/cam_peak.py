"""Do class activation maps point at the object? 200 scenes with one garment each, at a known place.

A small network learns from scenes to name the garment; it is never told where it is. Then the class activation map of
its answer is drawn for test scenes, whose garments are of Fashion-MNIST's test part: how often does the map's peak,
enlarged to the picture, lie in the garment's box? Beside it: the true class's map; a network that has learned
nothing; and a place by chance, which lies in the box as often as the box is large. Run: make bench-cam_peak
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

import googlenet
from googlenet.data.fashion_mnist import CLASSES, load_fashion_mnist
from googlenet.data.preprocess import Preprocess
from googlenet.detection.dataset import Picture
from googlenet.detection.scenes import Scenes, draw_scene
from googlenet.evaluation.significance import bootstrap_interval
from googlenet.insight import drawing
from googlenet.insight.cam import class_maps, enlarged, peaks
from googlenet.models.network import Network

# Of a scene, and of what the network sees of it: larger, so that its last map has 8x8 positions.
SIDE, SIZE = 96, 128
LOOKS = Scenes(seed=5, sides=(SIDE, SIDE), scales=(1.0, 1.75), objects=(1, 1), visible=1.0)
FLAGS = [
    "--model.width=0.25", "--model.stem_stride=2", f"--size.train={SIZE}", "--epochs=5", "--batch_size=32",
    "--augment.flip=random", "--data.validation=0.1",
]  # fmt: skip
# The number of the first scene of the training part that is not trained on: what was chosen was chosen by those.
FURTHER = 1_000_000
SHOWN = 5


class Peaks(NamedTuple):
    """Which scenes' peaks lie in the box, (scenes,) bool: of the answered class's map, and of the true class's."""

    answered: Tensor
    true: Tensor
    right: Tensor


def scenes(part: int, count: int, start: int = 0) -> list[Picture]:
    """So many scenes with a garment: of the training part of Fashion-MNIST (`part` 0) or of its test part (1)."""
    data = load_fashion_mnist(None, 0)
    garments = data.train if part == 0 else data.test
    found: list[Picture] = []
    number = start
    while len(found) < count:
        picture = draw_scene(LOOKS, garments, part, number)
        found += [picture] if len(picture.labels) else []
        number += 1
    return found


def write(pictures: list[Picture], folder: Path) -> None:
    """A folder per class, for training."""
    for name in CLASSES:
        (folder / name.replace("/", "-")).mkdir(parents=True)
    for number, picture in enumerate(pictures):
        name = CLASSES[int(picture.labels[0])].replace("/", "-")
        Image.fromarray(picture.pixels[0].numpy()).save(folder / name / f"{number}.png")


def measure(model: Network, preprocess: Preprocess, pictures: list[Picture], labels: Tensor) -> Peaks:
    """Ask the network about every scene."""
    pixels = preprocess(torch.stack([picture.pixels for picture in pictures]))
    boxes = torch.stack([picture.boxes[0] for picture in pictures])
    maps, logits = class_maps(model, pixels, range(model.num_classes))
    answers, rows = logits.argmax(1), torch.arange(len(pictures))

    def inside(classes: Tensor) -> Tensor:
        down, across = (peaks(maps[rows, classes].unsqueeze(1), SIDE, SIDE)[:, 0] + 0.5).unbind(1)
        left, top, right, bottom = boxes.unbind(1)
        return (across >= left) & (across < right) & (down >= top) & (down < bottom)

    return Peaks(inside(answers), inside(labels), answers == labels)


def draw(model: Network, preprocess: Preprocess, pictures: list[Picture], classes: tuple[str, ...]) -> bytes:
    """The first scenes with their boxes; below, the maps of the network's answers over them, with their peaks."""
    from matplotlib.patches import Rectangle

    figure = drawing.sheet(4.0)
    axes = figure.subplots(2, SHOWN, sharex=True, sharey=True)
    for column, picture in enumerate(pictures[:SHOWN]):
        pixels = preprocess(picture.pixels.unsqueeze(0))
        with torch.no_grad():
            answer = int(model(pixels).argmax())
        values = class_maps(model, pixels, [answer]).maps[0, 0]
        seen = drawing.Seen("", picture.pixels.float())
        drawing.show(axes[0, column], seen)
        over = enlarged(values[None, None], SIDE, SIDE)
        drawing.overlay(axes[1, column], seen, values, float(over.min()), float(over.max()))
        left, top, right, bottom = picture.boxes[0].tolist()
        for axis in axes[:, column]:
            axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec="#E69F00", lw=1.5))
        axes[0, column].set_title(CLASSES[int(picture.labels[0])], fontsize=9)
        axes[1, column].set_title(f"answer: {classes[answer]}", fontsize=9)
        axes[1, column].set_xlabel("pixels")
    for axis in axes[:, 0]:
        axis.set_ylabel("pixels")
    return drawing.png(figure)


def main() -> None:
    """Draw scenes, train, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=2500, help="training scenes (default 2500)")
    parser.add_argument("--scenes", type=int, default=200, help="scenes to measure on (default 200)")
    parser.add_argument("--picture", type=Path, help="a PNG file for the first scenes and their maps")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    pictures, further = scenes(1, options.scenes), scenes(0, options.scenes, FURTHER)
    work = Path(tempfile.mkdtemp())
    write(scenes(0, options.train), work / "scenes")
    started = time.perf_counter()
    recipe = googlenet.read_recipe("fashion-mnist-fast", [f"--data.source=folder:{work / 'scenes'}", *FLAGS])
    fitted = googlenet.fit(recipe, work / "run")
    seconds = time.perf_counter() - started
    run = googlenet.load(fitted.run)
    print(f"trained: {fitted.run}", file=sys.stderr)
    order = [run.classes.index(name.replace("/", "-")) for name in CLASSES]

    def labels_of(pictures: list[Picture]) -> Tensor:
        return torch.tensor([order[int(picture.labels[0])] for picture in pictures])

    untrained = googlenet.create(**{**run.network.arguments, "seed": 1}).eval()
    found = measure(run.network, run.preprocess, pictures, labels_of(pictures))
    chosen_by = measure(run.network, run.preprocess, further, labels_of(further))
    nothing = measure(untrained, run.preprocess, pictures, labels_of(pictures))
    boxes = torch.stack([picture.boxes[0] for picture in pictures])
    area = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).mean().item() / SIDE**2
    interval = bootstrap_interval(found.answered)
    if options.picture:
        options.picture.write_bytes(draw(run.network, run.preprocess, pictures, run.classes))
    document = {
        "scenes": len(pictures),
        "side": SIDE,
        "size": SIZE,
        "map": run.network.forward_features(torch.zeros(1, 1, SIZE, SIZE)).shape[-1],
        "inside": found.answered.double().mean().item(),
        "interval": list(interval),
        "inside_training_part": chosen_by.answered.double().mean().item(),
        "inside_true_class": found.true.double().mean().item(),
        "inside_untrained": nothing.answered.double().mean().item(),
        "inside_by_chance": area,
        "top1": found.right.double().mean().item(),
        "top1_validation": fitted.metrics["validation"]["top1"],
        "train": options.train,
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if options.json:
        print(json.dumps(document, indent=2))
        return
    for key, value in document.items():
        print(f"{key:<22}{value}")


if __name__ == "__main__":
    main()
