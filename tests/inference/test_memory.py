"""Photographs of 24 megapixels need little memory: they are decoded at a reduced scale."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import BuildOnce, Trained

LIMIT = 256 * 2**20  # bytes above the memory of the imported libraries and a loaded network; a full decode needs 400 MB

# Runs the command line twice: on small images, which loads all libraries, then on the photographs. Prints the increase
# of the peak, which Linux resets on a write of 5 to clear_refs.
MEASURE = """
import gc, pathlib, re, sys
from googlenet.cli.main import main

def status(key):
    return 1024 * int(re.search(key + r":\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])

arguments = sys.argv[1:]
small = [argument.replace("LOCATION", "small").replace("OUT", "out-small") for argument in arguments]
large = [argument.replace("LOCATION", "large").replace("OUT", "out-large") for argument in arguments]
assert main(small) == 0
gc.collect()
before = status("VmRSS")
pathlib.Path("/proc/self/clear_refs").write_text("5")
assert main(large) == 0
print("INCREASE", status("VmHWM") - before)
"""


def write_photos(folder: Path, width: int, height: int) -> None:
    """Write two classes of four JPEGs: a smooth random pattern with noise."""
    rng = np.random.default_rng(0)
    for number in range(8):
        path = folder / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pattern = Image.fromarray(rng.integers(0, 256, (8, 12, 3), dtype=np.uint8))
        pattern.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=80)


@pytest.fixture
def photos(build_once: BuildOnce) -> Path:
    def build(folder: Path) -> None:
        write_photos(folder / "large", 6000, 4000)
        write_photos(folder / "small", 60, 40)

    return build_once("photos-24-megapixels", build)


TRAIN = (
    "train fashion-mnist-fast --data.source folder:LOCATION --data.val_split 2 --size.schedule fixed --size.train 64 "
    "--model.width_mult 0.25 --epochs 1 --batch_size 2 --out OUT"
)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's counter of peak memory")
@pytest.mark.parametrize(
    "command",
    ["predict RUN LOCATION", "evaluate RUN --data folder:LOCATION", "explain RUN LOCATION/a/0.jpg --out OUT",
     TRAIN, f"{TRAIN} --data.in_memory false --data.num_workers 0"],
    ids=["predict", "evaluate", "explain", "train in memory", "train lazily"],
)  # fmt: skip
def test_peak_memory(photos: Path, tmp_path: Path, trained: Trained, build_once: BuildOnce, command: str) -> None:
    if "RUN" in command:
        small = TRAIN.replace("LOCATION", str(photos / "small")).removesuffix(" --out OUT").split()
        command = command.replace("RUN", str(trained(*small[1:])))
    script = tmp_path / "measure.py"
    script.write_text(MEASURE)
    for size in ("small", "large"):
        (tmp_path / size).symlink_to(photos / size)
    done = subprocess.run(
        [sys.executable, str(script), *command.split()],
        cwd=tmp_path, env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    increase = int(done.stdout.rpartition("INCREASE")[2])
    print(f"{increase / 2**20:.0f} MiB")
    assert increase < LIMIT
