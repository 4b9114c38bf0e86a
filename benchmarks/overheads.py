"""Measure the overhead of this package: building each network, and cutting the 144 crops of an image.

The time to build is the median over the rounds. For the crops, two images are predicted with `predict_multi_crop`, and
the same tensors prepared in advance are predicted in batches of the same number of pixels. The ratio is the time of the
second divided by that of the first, per round. Run: make bench-overheads
"""

import argparse
import json
import statistics
import time

import torch

import googlenet
from googlenet.data.loader import EVAL_BATCH_PIXELS
from googlenet.data.preprocess import Preprocess
from googlenet.evaluation.predictor import NetworkPredictor
from googlenet.inference.multi_crop import iter_crops, predict_multi_crop

SIZE = 96


def seconds_to_build(rounds: int) -> dict[str, float]:
    """Return the median seconds to build each network without auxiliary heads."""
    seconds: dict[str, list[float]] = {name: [] for name in googlenet.list_models()}
    for index in range(rounds + 1):
        for name, values in seconds.items():
            start = time.perf_counter()
            googlenet.create(name)
            if index:
                values.append(time.perf_counter() - start)
    return {name: round(statistics.median(values), 3) for name, values in seconds.items()}


def crop_ratios(rounds: int) -> list[float]:
    """Return the speed of the 144 crops relative to that of prepared tensors, per round."""
    network = googlenet.create("googlenet_bn", 10, 1).eval()
    predictor = NetworkPredictor(network, Preprocess(SIZE, 1, (0.3,), (0.35,)), tuple("abcdefghij"))
    images = torch.randint(0, 256, (2, 1, 110, 150), dtype=torch.uint8)
    crops = torch.cat([batch.pixels for batch in iter_crops(images, predictor.preprocess, SIZE, 144)])
    ratios = []
    for index in range(rounds + 1):
        start = time.perf_counter()
        predict_multi_crop(predictor, images, SIZE, 144)
        middle = time.perf_counter()
        for pixels in crops.split(EVAL_BATCH_PIXELS // SIZE**2):
            predictor.predict(pixels)
        if index:
            ratios.append(round((time.perf_counter() - middle) / (middle - start), 3))
    return ratios


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="(default 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args()
    ratios = crop_ratios(args.rounds)
    document = {
        "rounds": args.rounds,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "seconds_to_build": seconds_to_build(args.rounds),
        "crops_ratio": statistics.median(ratios),
        "crops_ratios": ratios,
    }
    if args.json:
        print(json.dumps(document, indent=2))
        return
    for name, seconds in document["seconds_to_build"].items():
        print(f"{name:<28}{seconds:8.3f} s")
    print(f"144 crops at {document['crops_ratio']:.2f} of the speed of prepared tensors; rounds {ratios}")


if __name__ == "__main__":
    main()
