"""Compare `googlenet fid` with pytorch-fid, clean-fid and torch-fidelity: speed, memory and values on the same images.

All use the same random weights of the FID network, in the file that each expects, and two folders of generated PNG
images of one size. Each side runs in its own process, from files to the value, and no cache is used. A tool that is not
installed is left out, with the reason; --peer-python names the Python of another environment that has them (with an
older SciPy than 1.18). Prints a table, and with ``--json`` one JSON document. Run: make bench-fid
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

SIDE = 128
WEIGHTS, SCRIPT = "pt_inception-2015-12-05-6726825d.pth", "inception-2015-12-05.pt"


def write_image(root: Path, spread: int, index: int) -> None:
    """Write a smooth color image with noise; `spread` sets the range of its colors."""
    rng = np.random.default_rng([spread, index])
    coarse = Image.fromarray(rng.integers(0, spread, (5, 5, 3)).astype(np.uint8))
    smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32)
    pixels = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(root / f"{index:06}.png")


def write_weights(path: Path, folders: Sequence[Path], count: int = 32) -> None:
    """Write random weights whose normalizations have the statistics of `count` images of each folder.

    The logits differ between images with a standard deviation of 2, so that the Inception Score is clearly above 1.
    """
    from googlenet import create_model
    from googlenet.checkpoint.interop.convert import to_external_state_dict
    from googlenet.checkpoint.interop.key_maps import SOURCE_MODELS

    torch.manual_seed(0)
    model: Any = create_model("inception_v3_fid", 1008, aux=False)
    # Every batch has images of all folders: images unlike those of the statistics have features that grow by layer.
    files = [file for group in zip(*(_spread(folder, count) for folder in folders), strict=True) for file in group]
    arrays = [np.array(Image.open(file).convert("RGB").resize((299, 299))) for file in files]
    pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over batches instead of a moving average
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.3, 0.3)
    with torch.no_grad():
        for batch in pixels.split(32):
            model.train()(batch)
        model.classifier.weight.mul_(2 / model.eval()(pixels[:32]).std(0).mean())
    external = to_external_state_dict(SOURCE_MODELS["fid:inception_v3"], model.state_dict(), "inception_v3_fid")
    torch.save({key: value.contiguous() for key, value in external.items()}, path)


def _spread(folder: Path, count: int) -> list[Path]:
    """Return `count` files of a folder, evenly spaced."""
    files = sorted(folder.iterdir())
    return [files[index * len(files) // count] for index in range(count)]


def measure_googlenet(real: Path, fake: Path, work: Path, like: str = "clean-fid") -> dict[str, Any]:
    """Return the value, and the seconds of the matrix part alone, which are included in the total."""
    from googlenet.fidelity.compare import Comparer, make_settings
    from googlenet.fidelity.statistics import frechet_distance

    settings = make_settings(like=like, weights=str(work / WEIGHTS), use_cache=False, interval=False)
    comparer = Comparer(settings)
    sets = comparer.read(str(real)), comparer.read(str(fake))
    started = time.perf_counter()
    value = frechet_distance(sets[0].gaussian, sets[1].gaussian)
    return {
        "fid": value,
        "matrix_seconds": time.perf_counter() - started,
        "engine": comparer.network_in_engine().engine,
    }


def store_for_pytorch_fid(work: Path) -> None:
    """Link the weights to where PyTorch stores downloads, from which pytorch-fid reads them."""
    os.environ["TORCH_HOME"] = str(work / "torch")
    stored = work / "torch" / "hub" / "checkpoints" / WEIGHTS
    stored.parent.mkdir(parents=True, exist_ok=True)
    if not stored.exists():
        stored.symlink_to(work / WEIGHTS)


def measure_pytorch_fid(real: Path, fake: Path, work: Path) -> dict[str, Any]:
    """Return the value of pytorch-fid with its defaults."""
    store_for_pytorch_fid(work)
    from pytorch_fid.fid_score import calculate_fid_given_paths

    workers = min(os.cpu_count() or 1, 8)
    return {"fid": float(calculate_fid_given_paths([str(real), str(fake)], 50, "cpu", 2048, workers))}


def measure_clean_fid(real: Path, fake: Path, work: Path) -> dict[str, Any]:
    """Return the value of clean-fid; its defaults are for GPUs, so workers and batches are those of `os.cpu_count`."""
    from cleanfid import fid
    from cleanfid.inception_torchscript import InceptionV3W

    network = InceptionV3W(str(work), download=False, resize_inside=False).eval()
    device, workers = torch.device("cpu"), os.cpu_count() or 1
    value = fid.compare_folders(
        str(real), str(fake), network, "clean", num_workers=workers, batch_size=32, device=device, verbose=False
    )
    return {"fid": float(value)}


def measure_torch_fidelity(real: Path, fake: Path, work: Path) -> dict[str, Any]:
    """Return the value of torch-fidelity with its defaults on a CPU."""
    from torch_fidelity import calculate_metrics

    values = calculate_metrics(
        input1=str(fake), input2=str(real), cuda=False, fid=True, feature_extractor_weights_path=str(work / WEIGHTS),
        verbose=False, cache=False,
    )  # fmt: skip
    return {"fid": float(values["frechet_inception_distance"])}


SIDES: dict[str, Callable[[Path, Path, Path], dict[str, Any]]] = {
    "googlenet": measure_googlenet,
    "googlenet --like pytorch-fid": partial(measure_googlenet, like="pytorch-fid"),
    "googlenet --like torch-fidelity": partial(measure_googlenet, like="torch-fidelity"),
    "pytorch-fid": measure_pytorch_fid,
    "clean-fid": measure_clean_fid,
    "torch-fidelity": measure_torch_fidelity,
}
# The mode of this package that each tool's value must equal.
SAME = {
    "clean-fid": "googlenet",
    "pytorch-fid": "googlenet --like pytorch-fid",
    "torch-fidelity": "googlenet --like torch-fidelity",
}


def write_script(work: Path) -> None:
    """Write the weights as the TorchScript archive that clean-fid opens, from torch-fidelity's network."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(work / WEIGHTS))
    layers = [child for name, child in network.named_children() if name != "fc"]
    archive = torch.nn.Module()
    archive.layers = torch.nn.Sequential(*layers)
    archive.output = network.fc

    class Archive(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.output = archive.layers, archive.output

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.layers(pixels)

    torch.jit.script(Archive().eval()).save(str(work / SCRIPT))


def run_side(name: str, real: Path, fake: Path, work: Path) -> None:
    """Measure one side in this process and print JSON."""
    started = time.perf_counter()
    result = SIDES[name](real, fake, work)
    result["seconds"] = time.perf_counter() - started
    result["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(result))


def compare(images: int, sides: list[str], peer_python: str) -> dict[str, Any]:
    """Write the images and weights, and measure every side."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        folders = []
        with ProcessPoolExecutor() as pool:
            for name, spread in (("real", 256), ("fake", 220)):
                folder = work / name
                folder.mkdir()
                list(pool.map(partial(write_image, folder, spread), range(images), chunksize=32))
                folders.append(str(folder))
        write_weights(work / WEIGHTS, [work / "real", work / "fake"])
        for name in sides:
            python = sys.executable if name.startswith("googlenet") else peer_python
            command = [python, __file__, "--run-side", name, *folders, str(work)]
            environment = {**os.environ, "XDG_CACHE_HOME": str(work / "cache")}
            if name == "googlenet":  # the engine is chosen once per machine, and not part of a comparison
                subprocess.run([*command[:3], name, *_first_images(folders, work), str(work)], check=True,
                               stdout=subprocess.PIPE, env=environment)  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                rows.append({"side": name, "error": done.stderr.strip().splitlines()[-1]})
                continue
            row = {"side": name, **json.loads(done.stdout.splitlines()[-1])}
            row["images_per_second"] = 2 * images / row["seconds"]
            rows.append(row)
    return {
        "rows": _with_differences(rows), "images": images, "size": SIDE, "cores": os.cpu_count(),
        "torch": torch.__version__,
    }  # fmt: skip


def _first_images(folders: list[str], work: Path) -> list[str]:
    """Copy a few images, for a run that only chooses the engine."""
    result = []
    for folder in map(Path, folders):
        few = work / f"few-{folder.name}"
        few.mkdir()
        for file in sorted(folder.iterdir())[:4]:
            (few / file.name).write_bytes(file.read_bytes())
        result.append(str(few))
    return result


def _with_differences(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to every tool the relative difference of this package's value in its mode."""
    values = {row["side"]: row["fid"] for row in rows if "fid" in row}
    for row in rows:
        same = values.get(SAME.get(row["side"], ""))
        if same is not None and "fid" in row:
            row["relative_difference"] = abs(same - row["fid"]) / row["fid"]
    return rows


def main() -> None:
    """Compare, or measure one side."""
    if sys.argv[1:2] == ["--run-side"]:
        name, *paths = sys.argv[2:]
        real, fake, work = map(Path, paths)
        if name == "clean-fid" and not (work / SCRIPT).exists():
            write_script(work)
        run_side(name, real, fake, work)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--images", type=int, default=5000, help="images of each set (default 5000)")
    parser.add_argument("--sides", default=",".join(SIDES), help="those to measure, separated by commas")
    parser.add_argument("--peer-python", default=sys.executable, help="the Python of an environment with the tools")
    args = parser.parse_args()
    result = compare(args.images, args.sides.split(","), args.peer_python)
    if args.json:
        print(json.dumps(result, indent=2))
        return
    for row in result["rows"]:
        if "error" in row:
            print(f"{row['side']:<34}{row['error']}")
            continue
        difference = f", relative difference {row['relative_difference']:.1e}" if "relative_difference" in row else ""
        memory = row["peak_bytes"] / 1e6
        print(
            f"{row['side']:<34}{row['images_per_second']:.1f} images/s, {memory:.0f} MB, "
            f"FID {row['fid']:.8g}{difference}"
        )


if __name__ == "__main__":
    main()
