"""The paper's table for Fashion-MNIST: one network and seven, asked with 1, 10 and 144 crops; and what crops cost.

Trains the seven of `fashion-mnist-fast`, answers the 10,000 test pictures, and says of a single network's crops which
scale helps and which harms. Members and answers are kept in `--folder`, so that an interrupted call goes on; remove
it to begin anew. Then the speed: 144 crops of pictures at 96 px, beside plain batches of the same tensors.
Run: make bench-ensemble
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import googlenet
from googlenet.data.dataset import Split
from googlenet.data.loader import PIXELS_AT_ONCE, evaluation_batches
from googlenet.data.preprocess import Preprocess
from googlenet.data.sources import load_dataset
from googlenet.evaluation.calibration import expected_calibration_error
from googlenet.evaluation.crops import CROPS, answer, scales, views
from googlenet.evaluation.metrics import Outputs, collect, scores
from googlenet.evaluation.protocol import CROPS_AT_ONCE, Member, crop_outputs, layout, table
from googlenet.evaluation.significance import mcnemar, right
from googlenet.models.ensemble import average_logits, networks_of
from googlenet.models.fusion import fuse
from googlenet.models.network import Network
from googlenet.training.devices import pick_precision
from googlenet.training.ensemble import is_ensemble, start_ensemble, train_ensemble

CPU = torch.device("cpu")
# The crops of one scale of a square picture: corners, centre and whole, and the same mirrored.
KINDS = {"centre": [4], "corners": [0, 1, 2, 3], "whole": [5], "all": [0, 1, 2, 3, 4, 5]}
SPEED_SIZE = 96


class AsIs(NamedTuple):
    """Normalisation that leaves pixels as they are: crops are normalised already."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Quick(nn.Module):
    """The network fused, its products in fewer bits where the processor has them; answers in float32."""

    def __init__(self, model: Network, dtype: torch.dtype):
        super().__init__()
        as_is = AsIs((0.0,) * model.in_channels, (1 / 255,) * model.in_channels)
        self.model, self.dtype = fuse(model, as_is).to(memory_format=torch.channels_last), dtype

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, h, w) float32 -> logits float32."""
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            return self.model(x.to(memory_format=torch.channels_last)).float()


def kept(place: Path, make: Any) -> Any:
    """What lies at `place`, else what `make` gives, put there."""
    if place.exists():
        return torch.load(place, weights_only=True)
    found = make()
    place.parent.mkdir(parents=True, exist_ok=True)
    torch.save(found, place.with_suffix(".partial"))
    place.with_suffix(".partial").rename(place)
    return found


def every_crop(model: nn.Module, split: Split, preprocess: Preprocess) -> Tensor:
    """Logits (4 scales, 12 crops, pictures, classes) of square pictures; the three squares of each are one."""
    base, found = preprocess.size, []
    with torch.inference_mode():
        for pictures in torch.split(split.images, max(1, PIXELS_AT_ONCE // (CROPS_AT_ONCE * base**2))):
            rows = [
                torch.cat([model(part) for part in torch.split(view.pixels, PIXELS_AT_ONCE // base**2)])
                for view in views(pictures, preprocess, base, 144)
            ]
            found.append(torch.stack(rows).unflatten(1, (12, len(pictures))))
    return torch.cat(found, dim=2)


def by_scale(model: nn.Module, split: Split, preprocess: Preprocess, cache: Path) -> list[dict[str, Any]]:
    """Of one network, the accuracy of each kind of crop at each scale, alone; and of the scales up to each."""
    crops = kept(cache, lambda: every_crop(model, split, preprocess))
    rows = []
    for number, scale in enumerate(scales(preprocess.size, 144)):
        row: dict[str, Any] = {"scale": scale}
        for kind, places in KINDS.items():
            chosen = [place + mirrored for mirrored in (0, 6) for place in places]
            mean = average_logits(list(crops[number][chosen]))
            row[kind] = scores(Outputs(mean, split.labels))["top1"]
        upto = average_logits(list(crops[: number + 1].flatten(0, 1)))
        row["scales_so_far"] = scores(Outputs(upto, split.labels))["top1"]
        # What a crop of this scale sees of the picture, by area.
        row["area"] = round((preprocess.size / scale) ** 2, 3)
        rows.append(row)
    return rows


def the_table(folder: Path, limit: int | None, members: int, flags: list[str]) -> dict[str, Any]:
    """Train, answer, and fill the table."""
    seven = folder / "seven"
    if not is_ensemble(seven):
        start_ensemble(googlenet.read_recipe("fashion-mnist-fast", flags), seven, members)
    fitted = train_ensemble(seven)
    checkpoint = googlenet.load(seven)
    preprocess = checkpoint.preprocess
    split = load_dataset("fashion-mnist", validation=0, limit=limit).test
    dtype = getattr(torch, pick_precision("auto", CPU))
    networks = [Quick(network, dtype).eval() for network in networks_of(checkpoint.model)]
    kept_in = folder / f"answers-{len(split.labels)}"
    answers: dict[int, list[Outputs]] = {}
    seconds: dict[int, list[float]] = {}
    for number, network in enumerate(networks, start=1):
        for crops in CROPS:

            def ask(network: nn.Module = network, crops: Any = crops) -> dict[str, Any]:
                started = time.perf_counter()
                if crops == 1:
                    found = collect(network, evaluation_batches(split, preprocess), CPU)
                else:
                    found = crop_outputs(Member(network, preprocess), split, preprocess.size, crops)
                return {"logits": found.logits, "seconds": time.perf_counter() - started}

            found = kept(kept_in / f"{number}-{crops}.pt", ask)
            answers.setdefault(crops, []).append(Outputs(found["logits"], split.labels))
            seconds.setdefault(crops, []).append(found["seconds"])
            top1 = scores(answers[crops][-1])["top1"]
            print(f"network {number}, {crops} crops: {top1:.4f}, {found['seconds']:.0f} s", file=sys.stderr)
    asked = table(answers)
    print("\n".join(layout([each.cell for each in asked])), file=sys.stderr)
    cells = {(each.cell.models, each.cell.crops): each.outputs for each in asked}
    single = cells[1, 1]
    compared = []
    for (models, crops), outputs in cells.items():
        if outputs is not single:
            test = mcnemar(right(single), right(outputs))
            gain = right(outputs).double().mean() - right(single).double().mean()
            compared.append({"models": models, "crops": crops, "gain": gain.item(), **test._asdict()})
    return {
        "images": len(split.labels),
        "precision": str(dtype).removeprefix("torch."),
        "members": [
            {
                "seed": member.seed,
                "width": member.width,
                "seconds": round(member.seconds, 1),
                "top1": {crops: scores(each[number])["top1"] for crops, each in answers.items()},
            }
            for number, member in enumerate(fitted.members)
        ],
        "table": [
            {
                **each.cell._asdict(),
                "interval": list(each.cell.interval),
                "ece": expected_calibration_error(each.outputs),
            }
            for each in asked
        ],
        "against_one_network_one_crop": compared,
        "seconds_a_network": {crops: round(statistics.median(each), 1) for crops, each in seconds.items()},
        "by_scale": by_scale(networks[0], split, preprocess, kept_in / "1-each.pt"),
    }


def speed(count: int) -> dict[str, Any]:
    """Crops a second through `answer`, beside the network alone on the same tensors, a few pictures each in turn."""
    split = load_dataset("fashion-mnist", validation=0, limit=count).test
    large = Preprocess(SPEED_SIZE, 1, (0.0,), (1.0,))
    pictures = torch.stack([large.keep(picture) for picture in split.images])
    preprocess = replace(large, mean=(0.286,), std=(0.353,))
    dtype = getattr(torch, pick_precision("auto", CPU))
    model = Quick(googlenet.create("googlenet_bn", 10, 1, pools="padded").eval(), dtype).eval()
    at_once = max(1, PIXELS_AT_ONCE // (CROPS_AT_ONCE * SPEED_SIZE**2))
    seconds: dict[str, list[float]] = {"crops": [], "plain": []}
    computed = 0
    with torch.inference_mode():
        answer(model, pictures[:1], preprocess, SPEED_SIZE, 144)
        for number, some in enumerate(torch.split(pictures, at_once)):
            tensors = [
                part
                for view in views(some, preprocess, SPEED_SIZE, 144)
                for part in torch.split(view.pixels, max(1, PIXELS_AT_ONCE // SPEED_SIZE**2))
            ]
            computed += sum(map(len, tensors))

            def crops(some: Tensor = some) -> None:
                answer(model, some, preprocess, SPEED_SIZE, 144)

            def plain(tensors: list[Tensor] = tensors) -> None:
                for part in tensors:
                    model(part)

            # Who comes second finds the machine warmer: by turns.
            for name, run in [("crops", crops), ("plain", plain)][:: 1 if number % 2 else -1]:
                started = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - started)
    whole = {name: sum(each) for name, each in seconds.items()}
    return {
        "size": SPEED_SIZE,
        "pictures": len(pictures),
        "crops_computed": computed,
        "crops_per_second": round(computed / whole["crops"], 1),
        "plain_per_second": round(computed / whole["plain"], 1),
        "ratio": round(whole["plain"] / whole["crops"], 3),
        "ratio_median": round(
            statistics.median(b / a for a, b in zip(seconds["crops"], seconds["plain"], strict=True)), 3
        ),
    }


def main() -> None:
    """Both parts, or one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=7)
    parser.add_argument("--limit", type=int, help="at most so many test pictures")
    parser.add_argument("--flags", nargs="*", default=[], help="of the recipe, such as --flags=--data.limit=200")
    parser.add_argument("--speed-pictures", type=int, default=1000, help="0 leaves the speed out (default 1000)")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-ensemble"), help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    found = the_table(options.folder, options.limit, options.members, options.flags)
    if options.speed_pictures:
        found["speed"] = speed(options.speed_pictures)
    found |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for row in found["table"]:
        low, high = row["interval"]
        print(f"{row['models']} models, {row['crops']:>3} crops: top-1 {row['top1']:.4f} [{low:.4f}, {high:.4f}]")
    for row in found["by_scale"]:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if options.speed_pictures:
        print(f"crops beside plain batches: {found['speed']['ratio']}")


if __name__ == "__main__":
    main()
