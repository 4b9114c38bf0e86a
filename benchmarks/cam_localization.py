"""Measure whether class activation maps point at the object, on 200 scenes with one garment each at a known position.

A small network is trained to classify the garment in a scene, without box labels. Then the class activation map of its
prediction is computed for test scenes with garments of Fashion-MNIST's test set: how often is the peak of the upsampled
map inside the garment's box? Baselines: the map of the true class; an untrained network; a random position, which is
inside the box with a probability equal to the box's share of the image. Run: make bench-cam_localization
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
from googlenet.checkpoint.format import Checkpoint
from googlenet.data.sources import LoadOptions, load_dataset
from googlenet.detection.data.dataset import Sample
from googlenet.detection.data.scenes import Scenes, draw_scene
from googlenet.evaluation.confidence import wilson_interval
from googlenet.evaluation.plots import to_png
from googlenet.explain import plotting
from googlenet.explain.cam import class_maps
from googlenet.explain.plotting import peak_positions, upsample_maps
from googlenet.models.network import Network

# Scenes of 96 px are resized to 128 px, so that the last feature map has 8x8 positions.
SCENE_SIZE, IMAGE_SIZE = 96, 128
SCENES = Scenes(seed=5, sides=(SCENE_SIZE, SCENE_SIZE), scales=(1.0, 1.75), objects=(1, 1), visible=1.0)
FLAGS = [
    "--model.width_mult=0.25", "--model.stem_stride=2", f"--size.train={IMAGE_SIZE}", "--epochs=5", "--batch_size=32",
    "--augment.flip=random", "--data.val_split=0.1",
]  # fmt: skip
# The index of the first scene of the training set that is not trained on. These scenes selected the settings.
HELD_OUT = 1_000_000
NUM_DRAWN = 5


class Peaks(NamedTuple):
    """Whether the peaks of the predicted and of the true class's map are inside the box, and the class is correct.

    Each is bool (scenes,).
    """

    predicted: Tensor
    true: Tensor
    correct: Tensor


def generate_scenes(split: int, count: int, start: int = 0) -> list[Sample]:
    """Generate `count` scenes with a garment of Fashion-MNIST's training set (`split` 0) or test set (1)."""
    data = load_dataset("fashion-mnist", LoadOptions(validation=0))
    garments = data.train if split == 0 else data.test
    samples: list[Sample] = []
    index = start
    while len(samples) < count:
        sample = draw_scene(SCENES, garments, split, index)
        samples += [sample] if len(sample.labels) else []
        index += 1
    return samples


def class_names() -> list[str]:
    """Return the names of the garments as folder names."""
    classes = load_dataset("fashion-mnist", LoadOptions(validation=0, max_samples=1)).classes
    return [name.replace("/", "-") for name in classes]


def write_folder(samples: list[Sample], folder: Path) -> None:
    """Write the scenes into one folder per class, for training."""
    names = class_names()
    for name in names:
        (folder / name).mkdir(parents=True)
    for index, sample in enumerate(samples):
        path = folder / names[int(sample.labels[0])] / f"{index}.png"
        Image.fromarray(sample.pixels[0].numpy()).save(path)


def find_peaks(model: Network, run: Checkpoint, samples: list[Sample], labels: Tensor) -> Peaks:
    """Compute the class activation maps of all scenes and compare their peaks with the boxes."""
    pixels = run.preprocess(torch.stack([sample.pixels for sample in samples]))
    boxes = torch.stack([sample.boxes[0] for sample in samples])
    maps, logits = class_maps(model, pixels, range(model.num_classes))
    predicted, scenes = logits.argmax(1), torch.arange(len(samples))

    def is_inside(classes: Tensor) -> Tensor:
        positions = peak_positions(maps[scenes, classes].unsqueeze(1), SCENE_SIZE, SCENE_SIZE)[:, 0] + 0.5
        y, x = positions.unbind(1)
        left, top, right, bottom = boxes.unbind(1)
        return (x >= left) & (x < right) & (y >= top) & (y < bottom)

    return Peaks(is_inside(predicted), is_inside(labels), predicted == labels)


def draw(run: Checkpoint, samples: list[Sample]) -> bytes:
    """Draw the first scenes with their boxes (top), and the maps of the predicted classes with their peaks (bottom)."""
    from matplotlib.patches import Rectangle

    names = class_names()
    figure = plotting.figure_of_height(4.0)
    axes = figure.subplots(2, NUM_DRAWN, sharex=True, sharey=True)
    for column, sample in enumerate(samples[:NUM_DRAWN]):
        pixels = run.preprocess(sample.pixels.unsqueeze(0))
        with torch.no_grad():
            predicted = int(run.network(pixels).argmax())
        values = class_maps(run.network, pixels, [predicted]).maps[0, 0]
        image = plotting.DisplayImage("", sample.pixels.float())
        plotting.show_image(axes[0, column], image)
        upsampled = upsample_maps(values[None, None], SCENE_SIZE, SCENE_SIZE)
        plotting.overlay_map(axes[1, column], image, values, plotting.value_limits(upsampled))
        left, top, right, bottom = sample.boxes[0].tolist()
        for axis in axes[:, column]:
            axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec="#E69F00", lw=1.5))
        axes[0, column].set_title(names[int(sample.labels[0])], fontsize=9)
        axes[1, column].set_title(f"predicted: {run.classes[predicted]}", fontsize=9)
        axes[1, column].set_xlabel("pixels")
    for axis in axes[:, 0]:
        axis.set_ylabel("pixels")
    return to_png(figure)


def mean(values: Tensor) -> float:
    """Return the fraction of true values."""
    return values.double().mean().item()


def main() -> None:
    """Generate scenes, train, measure, print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=2500, help="training scenes (default 2500)")
    parser.add_argument("--scenes", type=int, default=200, help="test scenes (default 200)")
    parser.add_argument("--image", type=Path, help="draw the first scenes and their maps into this PNG file")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args()
    samples, held_out = generate_scenes(1, args.scenes), generate_scenes(0, args.scenes, HELD_OUT)
    work = Path(tempfile.mkdtemp())
    write_folder(generate_scenes(0, args.train), work / "scenes")
    started = time.perf_counter()
    recipe = googlenet.read_recipe("fashion-mnist-fast", [f"--data.source=folder:{work / 'scenes'}", *FLAGS])
    result = googlenet.fit(recipe, work / "run")
    seconds = time.perf_counter() - started
    run = googlenet.load(result.run)
    print(f"trained: {result.run}", file=sys.stderr)
    order = [run.classes.index(name) for name in class_names()]
    labels, held_out_labels = (
        torch.tensor([order[int(sample.labels[0])] for sample in items]) for items in (samples, held_out)
    )
    untrained = googlenet.create(**{**run.network.config, "seed": 1}).eval()
    peaks = find_peaks(run.network, run, samples, labels)
    boxes = torch.stack([sample.boxes[0] for sample in samples])
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / SCENE_SIZE**2
    if args.image:
        args.image.write_bytes(draw(run, samples))
    document = {
        "scenes": len(samples),
        "scene_size": SCENE_SIZE,
        "image_size": IMAGE_SIZE,
        "map_size": run.network.forward_features(torch.zeros(1, 1, IMAGE_SIZE, IMAGE_SIZE)).shape[-1],
        "inside_box": mean(peaks.predicted),
        "interval": list(wilson_interval(peaks.predicted)),
        "interval_method": "Wilson",
        "inside_box_train": mean(find_peaks(run.network, run, held_out, held_out_labels).predicted),
        "inside_box_true_class": mean(peaks.true),
        "inside_box_untrained": mean(find_peaks(untrained, run, samples, labels).predicted),
        "inside_box_random": areas.mean().item(),
        "top1": mean(peaks.correct),
        "top1_validation": result.metrics["validation"]["top1"],
        "train": args.train,
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if args.json:
        print(json.dumps(document, indent=2))
        return
    for key, value in document.items():
        print(f"{key:<24}{value}")


if __name__ == "__main__":
    main()
