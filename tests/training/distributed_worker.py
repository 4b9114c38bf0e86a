"""One of several processes: shared work, its errors, and evaluation, against the same in one process.

The argument is a folder for the files of the processes.
"""

import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from googlenet.config.parse import read_recipe
from googlenet.data.dataset import Split
from googlenet.data.loader import evaluation_batches
from googlenet.data.preprocess import Preprocess
from googlenet.errors import FailedError
from googlenet.evaluation.metrics import run_inference
from googlenet.models.factory import create_model
from googlenet.training import distributed
from googlenet.training.fit import fit
from googlenet.training.tasks.classification import ClassificationTask

folder = Path(sys.argv[1])
dist.init_process_group("gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()

# The main process creates the file before the others look for it, and each is called once.
for name in ("first", "second"):
    file = folder / name

    def find_or_create(file: Path = file) -> bool:
        found = file.exists()
        assert rank == 0 or found
        file.touch()
        return found

    assert distributed.main_process_first(find_or_create) == (rank > 0)
assert distributed.run_on_all(lambda: (rank, torch.full((2,), rank))[0]) == list(range(world_size))

# An error of one process, of any, ends all: with its own error there and an empty one elsewhere.
for failing in range(world_size):

    def fail(failing: int = failing) -> None:
        if rank == failing:
            raise ValueError(f"damaged image {failing}")

    for shared in (distributed.run_on_all, distributed.main_process_first):
        with pytest.raises((ValueError, FailedError)) as raised:
            shared(fail)
        assert str(raised.value) == (f"damaged image {failing}" if rank == failing else "")
        assert isinstance(raised.value, ValueError) == (rank == failing)

# Every process gets the predictions of one process, bit for bit, with fewer batches than processes too.
torch.manual_seed(0)
model = create_model("googlenet_bn", 7, 1, width_mult=0.25, pool_mode="same").train()
for count, size in ((0, 16), (1, 16), (499, 16), (1001, 16), (23, 500)):
    images = torch.randint(0, 256, (count, 1, 16, 16), dtype=torch.uint8)
    split, preprocess = Split(images, torch.arange(count) % 7, [""] * count), Preprocess(size, 1, (0.4,), (0.2,))
    if not count:
        continue
    expected = run_inference(model, evaluation_batches(split, preprocess), torch.device("cpu"))
    with mock.patch("googlenet.training.tasks.classification.run_inference", wraps=run_inference) as calls:
        predictions = ClassificationTask(read_recipe("fashion-mnist-smoke").loss).predict(model, split, preprocess)
    assert torch.equal(predictions.logits, expected.logits) and torch.equal(predictions.labels, expected.labels)
    assert calls.call_count == (1 if rank == 0 else int(count > 499 or size == 500)), "no process evaluates all"
    assert model.training

# A run that fails leaves the process group, so that the program can start another one.
recipe = read_recipe("fashion-mnist-smoke", ["--device=cpu", "--data.max_samples=64", "--epochs=1"])
(folder / "used").mkdir(exist_ok=True)
(folder / "used" / "file").touch()
for wrong in (folder / "used", folder / "used" / "file"):
    with pytest.raises((ValueError, FailedError)):
        fit(recipe, wrong, progress=False)
    assert not dist.is_initialized()
with pytest.raises((ValueError, FailedError)):
    fit(replace(recipe, data=replace(recipe.data, source="folder:nowhere")), folder / "run", progress=False)
assert not dist.is_initialized()
