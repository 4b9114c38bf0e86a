"""Every member of the family in every engine, at its least size, its own, and an odd rectangle, batches of 1 and 7.

Prints the largest difference of a logit from PyTorch by member and engine. Then one network on all 10,000 test
pictures of Fashion-MNIST: raw bytes into the fused network and the files, against ``Preprocess`` and the network
as it was trained. Run: make bench-export_parity
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import googlenet
from googlenet.data.preprocess import Preprocess
from googlenet.data.sources import load_dataset
from googlenet.deployment import parity
from googlenet.deployment.engines import open_engine
from googlenet.deployment.export import Pictures, Trained, export
from googlenet.errors import FailedError
from googlenet.models.catalogue import MODELS

FORMATS = ("onnx", "openvino", "ncnn", "torch")
COLOUR = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def settled(
    name: str, channels: int, pictures: torch.Tensor, preprocess: Preprocess, **variant: str
) -> googlenet.Network:
    """A network whose batch normalisation has seen pictures, so that its maps are of the size of a trained one's."""
    model = googlenet.create(name, 10, channels, **variant)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(preprocess.normalise(pictures.float()))
    return model.eval()


def member(name: str, sample: torch.Tensor, work: Path, threads: int) -> dict[str, float | str]:
    """The largest difference by engine; where a format cannot say the network, why."""
    size = MODELS[name].input_size
    preprocess = Preprocess(size, 3, *COLOUR)
    pictures = F.interpolate(sample.float(), (size, size), mode="bilinear").round().to(torch.uint8)
    model = settled(name, 3, pictures, preprocess)
    found: dict[str, float | str] = {}
    for format in FORMATS:
        trained = Trained(name, model, preprocess, tuple(map(str, range(10))))
        try:
            done = export(trained, Pictures(pictures), work / f"{name}-{format}", [format], threads=threads)
            found |= done.description.max_error
        except (FailedError, ValueError) as error:
            found[format] = str(error)
    return found


def whole_test_set(work: Path, threads: int) -> dict[str, float]:
    """The largest difference over 10,000 pictures, by engine, at the pictures' own 28 px."""
    data = load_dataset("fashion-mnist", validation=0)
    preprocess = Preprocess(28, 1, data.mean, data.std)
    model = settled("googlenet_bn", 1, data.train.images[:256], preprocess, pools="padded")
    trained = Trained("googlenet_bn", model, preprocess, data.classes)
    done = export(trained, Pictures(data.test.images[:7]), work / "all", list(FORMATS), threads=threads)
    engines = {name: open_engine(done.folder, name, threads) for name in done.description.files}
    fused = googlenet.fuse(model, preprocess)
    found = dict.fromkeys(("fused", *engines), 0.0)
    for pixels in torch.split(data.test.images, 200):
        with torch.inference_mode():
            expected = model(preprocess.normalise(pixels.float()))
            answers = {"fused": fused(pixels), **{name: engine(pixels) for name, engine in engines.items()}}
        for name, answer in answers.items():
            found[name] = max(found[name], parity.difference(answer, expected))
    return found


def main() -> None:
    """Go through the catalogue."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = load_dataset("fashion-mnist", validation=0, limit=21)
    sample = data.test.images.view(7, 3, 28, 28)  # three pictures are the three colours of one
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for name in options.models:
            started = time.perf_counter()
            rows.append({"name": name, **member(name, sample, Path(place), options.threads)})
            print(f"{rows[-1]}, {time.perf_counter() - started:.0f} s", file=sys.stderr)
        everything = whole_test_set(Path(place), options.threads)
    document = {
        "bound": parity.BOUND,
        "rows": rows,
        "pictures": 10_000,
        "all": everything,
        "torch": torch.__version__,
    }
    print(json.dumps(document, indent=2) if options.json else everything)


if __name__ == "__main__":
    main()
