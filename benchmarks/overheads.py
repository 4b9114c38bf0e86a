"""What our own code adds to the time of the networks: building each member, and cutting the 144 crops.

Building is the median over the rounds. The crops of two images go through a network once as `evaluate --crops 144`
makes them and once as tensors that lie ready, in batches of the same number of pixels; the ratio is of the seconds of
the second to those of the first, round by round. Run: make bench-overheads
"""

import argparse
import json
import statistics
import time

import torch

import googlenet
from googlenet.data.preprocess import Preprocess
from googlenet.evaluation.crops import PIXELS_AT_ONCE, answer, views


def seconds_to_build(rounds: int) -> dict[str, float]:
    """The median seconds that each member takes to build, without auxiliary heads."""
    seconds: dict[str, list[float]] = {name: [] for name in googlenet.list_models()}
    for number in range(rounds + 1):
        for name, measured in seconds.items():
            start = time.perf_counter()
            googlenet.create(name)
            if number:
                measured.append(time.perf_counter() - start)
    return {name: round(statistics.median(measured), 3) for name, measured in seconds.items()}


def crop_ratios(rounds: int) -> list[float]:
    """Speed of the 144 crops as a share of that of ready tensors, round by round."""
    network = googlenet.create("googlenet_bn", 10, 1).eval()
    preprocess = Preprocess(96, 1, (0.3,), (0.35,))
    images = torch.randint(0, 256, (2, 1, 110, 150), dtype=torch.uint8)
    ratios = []
    with torch.inference_mode():
        ready = torch.cat([view.pixels for view in views(images, preprocess, 96, 144)])
        for number in range(rounds + 1):
            start = time.perf_counter()
            answer(network, images, preprocess, 96, 144)
            middle = time.perf_counter()
            for part in ready.split(PIXELS_AT_ONCE // 96**2):
                network(part)
            if number:
                ratios.append(round((time.perf_counter() - middle) / (middle - start), 3))
    return ratios


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="(default 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    ratios = crop_ratios(options.rounds)
    found = {
        "rounds": options.rounds,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "seconds_to_build": seconds_to_build(options.rounds),
        "crops_ratio": statistics.median(ratios),
        "crops_ratios": ratios,
    }
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for name, seconds in found["seconds_to_build"].items():
        print(f"{name:<28}{seconds:8.3f} s")
    print(f"144 crops at {found['crops_ratio']:.2f} of the speed of ready tensors; rounds {ratios}")


if __name__ == "__main__":
    main()
