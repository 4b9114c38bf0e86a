"""Compare the values of `googlenet fid` with those of pytorch-fid, clean-fid and torch-fidelity, on real images.

Two folders of PNG images: Fashion-MNIST in several sizes, and drawings of Openclipart, which are transparent and of any
size and shape. One folder has twice as many of the first kind, the other of the second. All tools use the same random
weights, in the file that each expects. Each value is computed from the files by the tool's own functions, and by this
package again from the features of the tool, which shows the difference of the formulas alone.

Every tool runs in a process of its own. Its values are stored in --work, as this package's features are: a later call
continues. To begin again, delete the folder. --peer-python names the Python of an environment with the tools (and SciPy
before 1.18). Prints a table, and with ``--json`` one JSON document. Run: make bench-fid_values
"""

import argparse
import hashlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fid import SCRIPT, WEIGHTS, store_for_pytorch_fid, write_script, write_weights

SIZES = [(28, 28), (64, 64), (96, 64), (150, 150), (299, 299), (350, 350), (200, 320)]
CLIPART = Path("/usr/share/openclipart/png")
MAX_PIXELS = 10**6  # Openclipart has images of 100 megapixels
SETS = ("real", "fake")
SEED = 2020
# The bound on the relative difference: features are float32 in all tools, and some parts of the formulas are, too.
BOUND, FLOAT32_BOUND = 1e-6, 1e-4
# In float32: means (FID of the last two), the kernel (KID), distances (precision and recall).
FLOAT32_PARTS = {
    ("clean-fid", "fid"), ("clean-fid", "kid"),
    *(("torch-fidelity", name) for name in ("fid", "kid", "kid sd", "precision", "recall")),
}  # fmt: skip


def write_fashion_mnist(folder: Path, images: torch.Tensor, count: int) -> None:
    """Write the first images as PNG in the sizes of `SIZES` in turn."""
    for index in range(count):
        image = Image.fromarray(images[index, 0].numpy())
        image.resize(SIZES[index % len(SIZES)], Image.Resampling.BICUBIC).save(folder / f"fashion-{index:05}.png")


def select_clipart(root: Path, count: int) -> list[bytes]:
    """Return the content of `count` different PNG files of at most `MAX_PIXELS`, in a random order."""
    files = [file for file in sorted(root.rglob("*.png")) if not file.is_symlink()]
    order, selected = np.random.default_rng(0).permutation(len(files)), dict[bytes, bytes]()
    for index in order:
        content = files[index].read_bytes()
        # The header of PNG: Pillow refuses to open the largest.
        width, height = struct.unpack(">II", content[16:24])
        if width * height <= MAX_PIXELS:
            selected.setdefault(hashlib.sha256(content).digest(), content)
        if len(selected) == count:
            return list(selected.values())
    raise SystemExit(f"{root}: fewer than {count} images; install openclipart-png (Debian), or name --clipart FOLDER")


def prepare(work: Path, num_images: int, clipart: Path) -> None:
    """Write both folders and the weights, unless they are there."""
    from googlenet.data.dataset import LoadOptions
    from googlenet.data.sources import load_dataset

    if (work / WEIGHTS).exists():
        if (count := len(list((work / "real").iterdir()))) != num_images:
            raise SystemExit(f"{work} has {count} images per set, not {num_images}: delete it, or name another --work")
        return
    data = load_dataset("fashion-mnist", LoadOptions(validation=0))
    third = num_images // 3
    counts = {"real": num_images - third, "fake": third}
    drawings = select_clipart(clipart, num_images)
    for name, split in (("real", data.train), ("fake", data.test)):
        folder = work / name
        folder.mkdir(parents=True, exist_ok=True)
        write_fashion_mnist(folder, split.images, counts[name])
        for index in range(num_images - counts[name]):
            (folder / f"drawing-{index:05}.png").write_bytes(drawings.pop())
    write_weights(work / f".{WEIGHTS}", [work / name for name in SETS], count=128)
    (work / f".{WEIGHTS}").rename(work / WEIGHTS)


def store_features(work: Path, tool: str, features: Sequence[np.ndarray]) -> None:
    """Store the features (n, d) of the real and the generated images as a tool computed them."""
    for name, array in zip(SETS, features, strict=True):
        np.save(work / f"{tool}-{name}.npy", array)


def pytorch_fid_values(work: Path) -> dict[str, float]:
    """Return FID of pytorch-fid, which batches images of several sizes one by one only."""
    store_for_pytorch_fid(work)
    from pytorch_fid import fid_score

    features, original = [], fid_score.get_activations

    def recorded(*arguments: Any) -> np.ndarray:
        features.append(original(*arguments))
        return features[-1]

    fid_score.get_activations = recorded
    fid_score.tqdm = iter
    paths = [str(work / name) for name in SETS]
    value = fid_score.calculate_fid_given_paths(paths, 1, "cpu", 2048, os.cpu_count())
    store_features(work, "pytorch-fid", features)
    return {"fid": float(value)}


def clean_fid_values(work: Path) -> dict[str, float]:
    """Return FID and KID of clean-fid."""
    from cleanfid import fid
    from cleanfid.inception_torchscript import InceptionV3W

    if not (work / SCRIPT).exists():
        write_script(work)
    network = InceptionV3W(str(work), download=False, resize_inside=False).eval()
    real, fake = (
        fid.get_folder_features(
            str(work / name), network, num_workers=os.cpu_count(), batch_size=50, device=torch.device("cpu"),
            mode="clean", verbose=False,
        )
        for name in SETS
    )  # fmt: skip
    store_features(work, "clean-fid", (real, fake))
    np.random.seed(SEED)  # it has no seed of its own
    return {"fid": float(fid.fid_from_feats(real, fake)), "kid": float(fid.kernel_distance(real, fake))}


def torch_fidelity_values(work: Path) -> dict[str, float]:
    """Return all metrics of torch-fidelity, which batches images of several sizes one by one only."""
    from torch_fidelity import calculate_metrics

    cache = work / "torch-fidelity"
    count = min(1000, *(len(list((work / name).iterdir())) for name in SETS))
    # Without `feature_extractor` precision and recall are computed from VGG-16.
    values = calculate_metrics(
        input1=str(work / "fake"), input2=str(work / "real"), cuda=False, fid=True, kid=True, isc=True, prc=True,
        feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(work / WEIGHTS), batch_size=1,
        kid_subset_size=count, cache_root=str(cache), input1_cache_name="fake", input2_cache_name="real",
        verbose=False,
    )  # fmt: skip
    names = [f"{name}-inception-v3-compat-features-2048.pt" for name in SETS]
    store_features(work, "torch-fidelity", [torch.load(cache / name).numpy() for name in names])
    return {
        "fid": values["frechet_inception_distance"],
        "kid": values["kernel_inception_distance_mean"],
        "kid sd": values["kernel_inception_distance_std"],
        "inception score": values["inception_score_mean"],
        "inception score sd": values["inception_score_std"],
        "precision": values["precision"],
        "recall": values["recall"],
    }


TOOLS: dict[str, Callable[[Path], dict[str, float]]] = {
    "pytorch-fid": pytorch_fid_values,
    "clean-fid": clean_fid_values,
    "torch-fidelity": torch_fidelity_values,
}


def values_of_command(work: Path, like: str, engine: str) -> dict[str, Any]:
    """Return the document of `googlenet fid --json` in the mode of a tool."""
    command = [
        sys.executable, "-m", "googlenet", "fid", *(str(work / name) for name in SETS), "--like", like,
        "--metrics", "fid,kid,is,prdc", "--weights", str(work / WEIGHTS), "--seed", str(SEED), "--engine", engine,
        "--json",
    ]  # fmt: skip
    environment = {**os.environ, "XDG_CACHE_HOME": str(work / "cache")}
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=environment)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def by_name(document: dict[str, Any]) -> dict[str, float]:
    """Return the values of this package by the names that are used for the tools."""
    values = {name: document[name] for name in ("fid", "precision", "recall")}
    for name, key in (("kid", "kid"), ("inception score", "inception_score")):
        values[name], values[f"{name} sd"] = document[key]["mean"], document[key]["sd"]
    return values


def values_of_features(work: Path, tool: str) -> dict[str, float]:
    """Compute this package's metrics of the features that a tool computed."""
    from googlenet.fidelity.metrics import Head, inception_score, kernel_inception_distance, manifold_metrics
    from googlenet.fidelity.statistics import frechet_distance, moments_of_blocks

    arrays = [np.load(work / f"{tool}-{name}.npy") for name in SETS]
    first, second = (moments_of_blocks(torch.from_numpy(array)).gaussian() for array in arrays)
    real, fake = (torch.from_numpy(array.astype(np.float32)) for array in arrays)
    head = Head(torch.load(work / WEIGHTS)["fc.weight"])
    return by_name({
        "fid": frechet_distance(first, second),
        "kid": kernel_inception_distance(real, fake, SEED)._asdict(),
        "inception_score": inception_score(fake, head, SEED)._asdict(),
        **manifold_metrics(real, fake)._asdict(),
    })  # fmt: skip


def stored(path: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the JSON document of a file, which is computed and written if it is missing."""
    if not path.exists():
        path.with_suffix(".partial").write_text(json.dumps(compute()))
        path.with_suffix(".partial").rename(path)
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def run_tool(tool: str, work: Path, python: str) -> dict[str, Any]:
    """Compute the values of a tool in a process of its own; SystemExit with its error if it fails."""
    done = subprocess.run([python, __file__, "--run-tool", tool, str(work)], capture_output=True, text=True)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        raise SystemExit(f"{tool} failed: {done.stderr.strip().splitlines()[-1]}")
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document


def relative_difference(value: float, expected: float) -> float:
    """Return the difference relative to `expected`; to 1 if that is 0."""
    return abs(value - expected) / (abs(expected) or 1.0)


def compare(work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Compute all values and return one row per tool and metric."""
    prepare(work, args.images, args.clipart)
    rows, engine, python = [], args.engine, args.peer_python
    for tool in args.tools.split(","):
        theirs = stored(work / f"{tool}.json", lambda tool=tool: run_tool(tool, work, python))
        document = values_of_command(work, tool, args.engine)
        ours, engine = by_name(document), document["engine"]
        same = values_of_features(work, tool)
        for metric, value in theirs.items():
            rows.append({
                "tool": tool, "metric": metric, "value": value, "googlenet": ours[metric],
                "relative_difference": relative_difference(ours[metric], value),
                "relative_difference_of_formula": relative_difference(same[metric], value),
                "bound": FLOAT32_BOUND if (tool, metric) in FLOAT32_PARTS else BOUND,
            })  # fmt: skip
    return {"rows": rows, "images": args.images, "engine": engine, "torch": torch.__version__}


def main() -> None:
    """Compare, or run one tool."""
    if sys.argv[1:2] == ["--run-tool"]:
        tool, work = sys.argv[2:]
        print(json.dumps(TOOLS[tool](Path(work))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--images", type=int, default=3000, help="images of each set (default 3000)")
    parser.add_argument("--clipart", type=Path, default=CLIPART, help="a folder with PNG files (default: %(default)s)")
    parser.add_argument(
        "--work", type=Path, default=Path("build/fid-values"), help="images and values (default: %(default)s)"
    )
    parser.add_argument("--tools", default=",".join(TOOLS), help="those to compare with, separated by commas")
    parser.add_argument("--engine", default="auto", help="of this package's network (default: the fastest)")
    parser.add_argument("--peer-python", default=sys.executable, help="the Python of an environment with the tools")
    args = parser.parse_args()
    result = compare(args.work.resolve(), args)
    if args.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{'tool':<16}{'metric':<20}{'tool':>14}{'googlenet':>14}{'difference':>12}{'formula':>10}{'bound':>8}")
    for row in result["rows"]:
        print(
            f"{row['tool']:<16}{row['metric']:<20}{row['value']:>14.8g}{row['googlenet']:>14.8g}"
            f"{row['relative_difference']:>12.1e}{row['relative_difference_of_formula']:>10.1e}{row['bound']:>8.0e}"
        )


if __name__ == "__main__":
    main()
