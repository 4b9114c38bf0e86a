"""Ensembles in a folder: served in PyTorch and in the fastest engine, exported, and reloaded when a member changes."""

import io
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from conftest import BuildOnce, googlenet
from googlenet.checkpoint.ensemble import EnsembleInfo
from googlenet.checkpoint.format import Checkpoint, build_network, read_run, write_checkpoint
from googlenet.config.parse import recipe_from_dict
from googlenet.data.preprocess import Preprocess
from servers import png, probabilities, serve_in_thread

CLASSES = ("cat", "dog", "bird", "fish", "fox")


def write_member(folder: Path, seed: int) -> None:
    """Save a network with random weights, whose last convolutions are large enough for distinct predictions."""
    recipe = recipe_from_dict(
        {"data": {"source": "folder:none"}, "model": {"name": "googlenet_bn", "width_mult": 0.25}}
    )
    network = build_network(recipe, len(CLASSES), 3)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        network.classifier.weight.normal_(std=0.1, generator=generator)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = Checkpoint(network, Preprocess(64, 3, (0.5,) * 3, (0.25,) * 3), CLASSES, recipe, {})
    write_checkpoint(folder / "model.safetensors", checkpoint)


def write_ensemble(folder: Path, seeds: tuple[int, ...] = (1, 2)) -> None:
    for number, seed in enumerate(seeds, 1):
        write_member(folder / f"member-{number}", seed)
    EnsembleInfo(len(seeds), None, {"top1": 0.5}).write(folder)


def average_of_members(folder: Path, image: bytes) -> dict[str, float]:
    """Average the softmax of the members, each evaluated by itself from an image of the network's own size."""
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(image)))).permute(2, 0, 1)[None]
    members = [read_run(path) for path in sorted(folder.glob("member-*"))]
    with torch.inference_mode():
        outputs = [member.network.eval()(member.preprocess(pixels, 64)).softmax(1)[0] for member in members]
    assert (outputs[0] - outputs[1]).abs().max() > 0.05, "the members differ"
    return dict(zip(CLASSES, torch.stack(outputs).mean(0).tolist(), strict=True))


@pytest.fixture(scope="module")
def ensemble(build_once: BuildOnce) -> Path:
    return build_once("served-ensemble", write_ensemble)


@pytest.mark.parametrize("engine", [None, "torch", pytest.param("auto", marks=pytest.mark.slow)])
def test_served(engine: str | None, ensemble: Path) -> None:
    with serve_in_thread(ensemble, engine=engine) as url:
        for seed in (0, 1):
            image = png(64, seed)
            top = httpx.post(f"{url}/v1/predict", files={"image": image}, timeout=30).json()["images"][0]["top"]
            assert probabilities(top) == pytest.approx(average_of_members(ensemble, image), abs=1e-3)
        response = httpx.post(f"{url}/v1/explain", files={"image": png()})
        assert response.status_code == 422 and "single network" in response.json()["error"]["message"]
        model = httpx.get(f"{url}/v1/models/small").json()
        assert model["supports_explain"] is False and model["classes"] == list(CLASSES)


@pytest.mark.slow
@pytest.mark.parametrize("member", ["member-1", "member-2"])
def test_reloaded(member: str, tmp_path: Path) -> None:
    """A new file of any member is a new version."""
    write_ensemble(tmp_path)
    with serve_in_thread(tmp_path, engine="torch", reload_interval=0.02) as url:

        def served() -> dict[str, float]:
            response = httpx.post(f"{url}/v1/predict", files={"image": png()}, timeout=30).json()
            return probabilities(response["images"][0]["top"])

        before = average_of_members(tmp_path, png())
        assert served() == pytest.approx(before, abs=1e-4)
        write_member(tmp_path / member, seed=9)
        expected = average_of_members(tmp_path, png())
        assert max(abs(expected[name] - before[name]) for name in CLASSES) > 0.01
        deadline = time.monotonic() + 30
        while httpx.get(f"{url}/v1/models/small").json()["version"] < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert served() == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_exported(ensemble: Path, tmp_path: Path) -> None:
    """The exported files of the folder, served."""
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(png(64, 3))
    done = googlenet("export", ensemble, "--format", "onnx", "--images", photos, "--threads", "1",
                     "--out", tmp_path / "exported", "--json")  # fmt: skip
    assert done.code == 0, done.err
    with serve_in_thread(tmp_path / "exported", engine="onnxruntime") as url:
        top = httpx.post(f"{url}/v1/predict", files={"image": png(64, 3)}, timeout=30).json()["images"][0]["top"]
    assert probabilities(top) == pytest.approx(average_of_members(ensemble, png(64, 3)), abs=1e-4)
