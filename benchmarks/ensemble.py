"""Evaluate one network and seven with 1, 10 and 144 crops on Fashion-MNIST, and measure the speed of crops.

Trains the seven networks of `fashion-mnist-fast`, predicts the 10,000 test images, and measures the accuracy of a
single network's crops by scale. Members and predictions are kept in `--folder`, so that an interrupted call continues;
delete it to start from the beginning. The speed is that of 144 crops of images at 96 px, compared with the same tensors
prepared in advance. Run: make bench-ensemble
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import googlenet
from googlenet.checkpoint.ensemble import is_ensemble
from googlenet.data.dataset import Split
from googlenet.data.loader import EVAL_BATCH_PIXELS
from googlenet.data.preprocess import Preprocess
from googlenet.data.sources import LoadOptions, load_dataset
from googlenet.devices import pick_precision
from googlenet.evaluation.calibration import expected_calibration_error
from googlenet.evaluation.confidence import mcnemar
from googlenet.evaluation.metrics import Predictions, classification_metrics, is_correct
from googlenet.evaluation.predictor import predict_split
from googlenet.inference.ilsvrc import CROPS_PER_BATCH, TableEntry, format_table, predict_crops, results_table
from googlenet.inference.multi_crop import NUM_CROPS, crop_scales, iter_crops, predict_multi_crop
from googlenet.models.ensemble import average_logits, get_networks
from googlenet.models.folding import fold
from googlenet.models.network import Network
from googlenet.training.ensemble import EnsembleResult, create_ensemble, train_ensemble

CPU = torch.device("cpu")
# The crops of one scale of a square image: indices of the corners, the center and the whole square. The flips follow.
NUM_UNFLIPPED = 6
KINDS = {"center": [4], "corners": [0, 1, 2, 3], "whole": [5], "all": [0, 1, 2, 3, 4, 5]}
SPEED_SIZE = 96


class FastPredictor:
    """A `Predictor` of the folded network, in bfloat16 if the processor supports it."""

    name = "torch"

    def __init__(self, model: Network, preprocess: Preprocess, classes: tuple[str, ...]):
        self.preprocess, self.classes, self.min_size = preprocess, classes, model.min_size
        self.dtype = getattr(torch, pick_precision("auto", CPU))
        self.model = fold(model, preprocess).to(memory_format=torch.channels_last)

    def predict(self, images: Tensor) -> Tensor:
        """Return logits float32 (n, classes)."""
        images = images.float().to(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            logits: Tensor = self.model(images)
        return logits.float()


def cached(path: Path, compute: Callable[[], Any]) -> Any:
    """Return the content of `path`; compute and write it if the file does not exist."""
    if path.exists():
        return torch.load(path, weights_only=True)
    result = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(result, path.with_suffix(".partial"))
    path.with_suffix(".partial").rename(path)
    return result


def logits_by_crop(predictor: FastPredictor, split: Split) -> Tensor:
    """Return the logits (4 scales, 12 crops, images, classes) of square images, whose three squares are equal."""
    base, results = predictor.preprocess.size, []
    for images in torch.split(split.images, max(1, EVAL_BATCH_PIXELS // (CROPS_PER_BATCH * base**2))):
        scales = []
        for batch in iter_crops(images, predictor.preprocess, base, 144):
            parts = torch.split(batch.pixels, EVAL_BATCH_PIXELS // base**2)
            scales.append(torch.cat([predictor.predict(part) for part in parts]))
        results.append(torch.stack(scales).unflatten(1, (CROPS_PER_BATCH, len(images))))
    return torch.cat(results, dim=2)


def accuracy_by_scale(predictor: FastPredictor, split: Split, cache: Path) -> list[dict[str, Any]]:
    """Return the top-1 accuracy of each kind of crop at each scale, and of all crops up to each scale."""
    logits = cached(cache, lambda: logits_by_crop(predictor, split))

    def top1(crops: Sequence[Tensor]) -> float:
        return classification_metrics(Predictions(average_logits(crops), split.labels))["top1"]

    rows = []
    for index, scale in enumerate(crop_scales(predictor.preprocess.size, 144)):
        row: dict[str, Any] = {"scale": scale}
        for kind, crops in KINDS.items():
            row[kind] = top1(list(logits[index][[crop + flip for flip in (0, NUM_UNFLIPPED) for crop in crops]]))
        row["cumulative"] = top1(list(logits[: index + 1].flatten(0, 1)))
        row["area_fraction"] = round((predictor.preprocess.size / scale) ** 2, 3)  # of the image, in a crop
        rows.append(row)
    return rows


def predict_all(
    predictors: Sequence[FastPredictor], split: Split, cache: Path
) -> tuple[dict[int, list[Predictions]], dict[int, list[float]]]:
    """Return the predictions of each network by number of crops, and their seconds."""
    predictions: dict[int, list[Predictions]] = {num_crops: [] for num_crops in NUM_CROPS}
    seconds: dict[int, list[float]] = {num_crops: [] for num_crops in NUM_CROPS}
    for index, predictor in enumerate(predictors, start=1):
        for num_crops in NUM_CROPS:

            def predict(predictor: FastPredictor = predictor, num_crops: Any = num_crops) -> dict[str, Any]:
                started = time.perf_counter()
                if num_crops == 1:
                    result = predict_split(predictor, split)
                else:
                    result = predict_crops(predictor, split, predictor.preprocess.size, num_crops)
                return {"logits": result.logits, "seconds": time.perf_counter() - started}

            result = cached(cache / f"{index}-{num_crops}.pt", predict)
            predictions[num_crops].append(Predictions(result["logits"], split.labels))
            seconds[num_crops].append(result["seconds"])
            top1 = classification_metrics(predictions[num_crops][-1])["top1"]
            print(f"network {index}, {num_crops} crops: {top1:.4f}, {result['seconds']:.0f} s", file=sys.stderr)
    return predictions, seconds


def compare_cells(entries: Sequence[TableEntry]) -> list[dict[str, Any]]:
    """Compare each cell of the table with one network and one crop."""
    single = next(entry for entry in entries if (entry.cell.models, entry.cell.crops) == (1, 1))
    before = is_correct(single.predictions)
    rows = []
    for entry in entries:
        if entry is not single:
            now = is_correct(entry.predictions)
            gain = (now.double().mean() - before.double().mean()).item()
            cell = {"models": entry.cell.models, "crops": entry.cell.crops}
            rows.append({**cell, "gain": gain, **mcnemar(before, now)._asdict()})
    return rows


def evaluate(folder: Path, max_images: int | None, num_models: int, flags: list[str]) -> dict[str, Any]:
    """Train the ensemble, predict, and compute the table."""
    path = folder / "seven"
    if not is_ensemble(path):
        create_ensemble(googlenet.read_recipe("fashion-mnist-fast", flags), path, num_models)
    trained: EnsembleResult = train_ensemble(path)
    checkpoint = googlenet.load(path)
    split = load_dataset("fashion-mnist", LoadOptions(validation=0, max_samples=max_images)).test
    predictors = [
        FastPredictor(network, checkpoint.preprocess, checkpoint.classes) for network in get_networks(checkpoint.model)
    ]
    cache = folder / f"predictions-{len(split.labels)}"
    predictions, seconds = predict_all(predictors, split, cache)
    entries = results_table(predictions)
    print("\n".join(format_table([entry.cell for entry in entries])), file=sys.stderr)
    return {
        "images": len(split.labels),
        "precision": str(predictors[0].dtype).removeprefix("torch."),
        "interval_method": "Wilson",
        "members": [
            {
                "seed": member.seed,
                "width_mult": member.width_mult,
                "seconds": round(member.seconds, 1),
                "top1": {n: classification_metrics(results[index])["top1"] for n, results in predictions.items()},
            }
            for index, member in enumerate(trained.members)
        ],
        "table": [
            {
                **entry.cell._asdict(),
                "interval": list(entry.cell.interval),
                "ece": expected_calibration_error(entry.predictions),
            }
            for entry in entries
        ],
        "comparisons": compare_cells(entries),
        "seconds_per_network": {n: round(statistics.median(values), 1) for n, values in seconds.items()},
        "by_scale": accuracy_by_scale(predictors[0], split, cache / "1-by-crop.pt"),
    }


def measure_speed(num_images: int) -> dict[str, Any]:
    """Return the crops per second of `predict_multi_crop`, and of the network alone on the same tensors."""
    split = load_dataset("fashion-mnist", LoadOptions(validation=0, max_samples=num_images)).test
    preprocess = Preprocess(SPEED_SIZE, 1, (0.286,), (0.353,))
    images = torch.stack([preprocess.to_uint8(image) for image in split.images])
    model = googlenet.create("googlenet_bn", 10, 1, pool_mode="same").eval()
    predictor = FastPredictor(model, preprocess, tuple("abcdefghij"))
    seconds: dict[str, list[float]] = {"crops": [], "tensors": []}
    num_crops = 0
    predict_multi_crop(predictor, images[:1], SPEED_SIZE, 144)
    batch_size = max(1, EVAL_BATCH_PIXELS // (CROPS_PER_BATCH * SPEED_SIZE**2))
    for index, batch in enumerate(torch.split(images, batch_size)):
        tensors = [
            part
            for crops in iter_crops(batch, preprocess, SPEED_SIZE, 144)
            for part in torch.split(crops.pixels, max(1, EVAL_BATCH_PIXELS // SPEED_SIZE**2))
        ]
        num_crops += sum(map(len, tensors))

        def run_crops(batch: Tensor = batch) -> None:
            predict_multi_crop(predictor, batch, SPEED_SIZE, 144)

        def run_tensors(tensors: list[Tensor] = tensors) -> None:
            for part in tensors:
                predictor.predict(part)

        # Alternate the order, because the second of the two finds warm caches.
        for name, run in [("crops", run_crops), ("tensors", run_tensors)][:: 1 if index % 2 else -1]:
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    total = {name: sum(values) for name, values in seconds.items()}
    ratios = [b / a for a, b in zip(seconds["crops"], seconds["tensors"], strict=True)]
    return {
        "size": SPEED_SIZE,
        "images": len(images),
        "crops_computed": num_crops,
        "crops_per_second": round(num_crops / total["crops"], 1),
        "tensors_per_second": round(num_crops / total["tensors"], 1),
        "ratio": round(total["tensors"] / total["crops"], 3),
        "ratio_median": round(statistics.median(ratios), 3),
    }


def main() -> None:
    """Evaluate the ensemble, measure the speed, print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-models", type=int, default=7)
    parser.add_argument("--max-images", type=int, help="use at most N test images")
    parser.add_argument("--flags", nargs="*", default=[], help="flags of the recipe: --flags=--data.max_samples=200")
    parser.add_argument("--speed-images", type=int, default=1000, help="0: do not measure the speed (default 1000)")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-ensemble"), help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args()
    document = evaluate(args.folder, args.max_images, args.num_models, args.flags)
    if args.speed_images:
        document["speed"] = measure_speed(args.speed_images)
    document |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    if args.json:
        print(json.dumps(document, indent=2))
        return
    for row in document["table"]:
        low, high = row["interval"]
        print(f"{row['models']} models, {row['crops']:>3} crops: top-1 {row['top1']:.4f} [{low:.4f}, {high:.4f}]")
    for row in document["by_scale"]:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if args.speed_images:
        print(f"speed of crops relative to prepared tensors: {document['speed']['ratio']}")


if __name__ == "__main__":
    main()
