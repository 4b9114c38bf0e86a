"""The memory of decoded images is bounded in bytes."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from googlenet.detection.batches import MAX_CHUNK, MAX_DECODED_BYTES, chunks_by_bytes, map_bounded
from googlenet.detection.rcnn.selective_search import SelectiveSearchConfig, cached_proposals

# Peak memory of a detector without weights on photographs, in addition to that on a small image.
PROGRAM = """
import json, resource, sys
import torch
import googlenet
from googlenet.config.schema import DetectionConfig
from googlenet.data.preprocess import Preprocess
from googlenet.detection.detector import Detector
from googlenet.detection.data.dataset import Sample
from googlenet.detection.metrics import evaluate_split
from googlenet.detection.predict import DetectorPredictor, detect_files
from pathlib import Path

torch.manual_seed(0)
backbone = googlenet.create("googlenet_bn", 2, 3, pool_mode="same", width_mult=0.25)
model = Detector(backbone, 2, DetectionConfig(neck_channels=16, head_convs=1)).eval()
preprocess = Preprocess(64, 3, (0.5,) * 3, (0.5,) * 3)
predictor = DetectorPredictor(model, preprocess, ("a", "b"))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
small, *paths = sys.argv[1:]
list(detect_files(predictor, [small]))
before = peak()
count = sum(1 for image in detect_files(predictor, paths) if image.error is None)
box = (torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([0]), torch.tensor([False]), torch.tensor([81.0]))
samples = [Sample(path, n, Path(path), 4000, 6000, *box) for n, path in enumerate(paths)]
evaluated = len(evaluate_split(predictor, samples).detections)
print(json.dumps([count, evaluated, peak() - before]))
"""


@pytest.mark.release
def test_photographs_stay_within_the_budget(tmp_path: Path) -> None:
    Image.new("RGB", (64, 48), "red").save(tmp_path / "small.jpg")
    rows = np.random.default_rng(0).integers(0, 255, (250, 375, 3), np.uint8)
    photo = Image.fromarray(rows).resize((6000, 4000))
    for number in range(8):
        photo.save(tmp_path / f"{number}.jpg", quality=50)
    command = [sys.executable, "-c", PROGRAM, tmp_path / "small.jpg", *sorted(tmp_path.glob("[0-9].jpg"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    count, evaluated, peak = json.loads(done.stdout)
    assert count == evaluated == 8
    assert peak < 1500, f"{peak:.0f} MB"


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([3, 3, 3], [[3, 3], [3]]),
        ([9, 1, 8, 2], [[9], [1], [8], [2]]),
        ([0] * 4, [[0] * 4]),
        ([4, 2, 6], [[4, 2], [6]]),
    ],
)
def test_chunks(sizes: list[int], expected: list[list[int]]) -> None:
    assert list(chunks_by_bytes(sizes, lambda size: size, 8 if 9 in sizes else 6)) == expected
    assert [len(chunk) for chunk in chunks_by_bytes(range(MAX_CHUNK + 1), lambda _: 1)] == [MAX_CHUNK, 1]


@pytest.mark.parametrize(("image_bytes", "limit"), [(100, 250), (100, 1000), (100, 10), (1, 10**6)])
def test_images_are_consumed_as_they_are_processed(image_bytes: int, limit: int) -> None:
    """At no time are more images taken from the source than fit, plus the next one."""
    produced, finished, lock = 0, 0, threading.Lock()
    largest = 0

    def images() -> Iterator[torch.Tensor]:
        nonlocal produced, largest
        for value in range(30):
            produced += 1
            largest = max(largest, produced - finished)
            yield torch.full((image_bytes,), value, dtype=torch.uint8)

    def work(image: torch.Tensor) -> int:
        nonlocal finished
        with lock:
            finished += 1
        return int(image[0])

    results = []
    for result in map_bounded(work, images(), 3, limit):
        results.append(result)
    assert results == list(range(30))
    assert largest <= max(1, min(limit // image_bytes, 6)) + 1


def test_proposals_do_not_decode_all_images_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    alive, produced = [], 0
    size = MAX_DECODED_BYTES // 3 // 4 + 1

    def images() -> Iterator[torch.Tensor]:
        nonlocal produced
        for _ in range(8):
            produced += 1
            yield torch.zeros(1, 4, size, dtype=torch.uint8)

    def search(image: torch.Tensor, _: SelectiveSearchConfig) -> torch.Tensor:
        alive.append(produced)
        return torch.zeros(1, 4)

    monkeypatch.setattr("googlenet.detection.rcnn.selective_search._cached_search", search)
    started = iter(cached_proposals(images(), SelectiveSearchConfig(), num_workers=1))
    assert len(list(started)) == 8
    # When the n-th image is searched, at most the budget of two images and the next one are decoded.
    assert all(count <= index + 4 for index, count in enumerate(alive))
