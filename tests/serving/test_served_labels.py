"""A network for any number of labels per image on the server: probabilities, labels, thresholds, page."""

import io
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import expect, sync_playwright
from test_page import CHROMIUM, FLAGS

from conftest import BuildOnce, googlenet
from googlenet.checkpoint.format import Checkpoint, build_network, read_run, write_checkpoint
from googlenet.config.parse import recipe_from_dict
from googlenet.data.preprocess import Preprocess
from servers import png, probabilities, serve_in_thread

CLASSES, THRESHOLDS = ("cat", "dog", "bird"), (0.5, 0.2, 0.9)


def write_run(folder: Path) -> None:
    """Save a network with random weights whose probabilities of an image differ."""
    recipe = recipe_from_dict({"task": "multilabel", "model": {"name": "googlenet_bn", "width_mult": 0.25}})
    network = build_network(recipe, len(CLASSES), 3)
    with torch.no_grad():
        network.classifier.weight.normal_(std=0.01, generator=torch.Generator().manual_seed(0))
        network.classifier.bias.copy_(torch.tensor([2.0, -0.5, 0.5]))
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = Checkpoint(network, Preprocess(64, 3, (0.5,) * 3, (0.25,) * 3), CLASSES, recipe, {}, THRESHOLDS)
    write_checkpoint(folder / "model.safetensors", checkpoint)


@pytest.fixture(scope="module")
def label_network(build_once: BuildOnce) -> Path:
    return build_once("served-labels", write_run)


def expected_probabilities(run: Path, image: bytes) -> dict[str, float]:
    checkpoint = read_run(run)
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(image)))).permute(2, 0, 1)[None]
    with torch.inference_mode():
        values = checkpoint.network(checkpoint.preprocess(pixels, 64)).sigmoid()[0].tolist()
    return dict(zip(CLASSES, values, strict=True))


def test_routes(label_network: Path) -> None:
    image = png()
    expected = expected_probabilities(label_network, image)
    assert sum(expected.values()) > 1.2, "not the probabilities of one class"
    with serve_in_thread(label_network) as url:
        described = httpx.get(f"{url}/v1/models/small").json()
        assert described["task"] == "multilabel" and described["thresholds"] == list(THRESHOLDS)
        (result,) = httpx.post(f"{url}/v1/predict", files={"image": image}).json()["images"]
        assert probabilities(result["top"]) == pytest.approx(expected, abs=1e-5)
        above = [name for name, limit in zip(CLASSES, THRESHOLDS, strict=True) if expected[name] >= limit]
        assert above and len(above) < 3
        assert result["labels"] == sorted(above, key=lambda name: -expected[name])
        several = httpx.post(f"{url}/v1/predict", files={"image": image}, data={"sizes": "32,64"}).json()["images"][0]
        means = {name: np.mean([probabilities(row["top"])[name] for row in several["by_size"]]) for name in CLASSES}
        assert probabilities(several["top"]) == pytest.approx(means, abs=1e-6)
        explained = httpx.post(f"{url}/v1/explain", files={"image": image}, data={"label": "dog"}).json()
        assert explained["probability"] == pytest.approx(expected["dog"], abs=1e-5)
        metadata = httpx.get(f"{url}/v2/models/small").json()
        assert metadata["parameters"]["thresholds"] == list(THRESHOLDS)
        pixels = np.array(Image.open(io.BytesIO(image))).transpose(2, 0, 1)[None]
        body = {"inputs": [{"name": "pixels", "shape": list(pixels.shape), "datatype": "UINT8",
                            "data": pixels.flatten().tolist()}]}  # fmt: skip
        logits, shares = httpx.post(f"{url}/v2/models/small/infer", json=body).json()["outputs"]
        assert shares["data"] == pytest.approx(list(expected.values()), abs=1e-5)
        assert torch.tensor(logits["data"]).sigmoid().tolist() == pytest.approx(shares["data"], abs=1e-6)


def test_another_process_predicts_the_same(label_network: Path, tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(png())
    (row,) = googlenet("predict", label_network, tmp_path / "image.png", "--json").json
    expected = expected_probabilities(label_network, png())
    assert {item["label"]: item["probability"] for item in row["top"]} == pytest.approx(expected, abs=1e-5)


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; make test installs it where apt-get may be used")
def test_the_page_marks_the_labels(label_network: Path, tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(png())
    with serve_in_thread(label_network) as url, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page, errors = browser.new_page(), list[str]()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        expect(page.locator("#task")).to_have_text("Image labels")
        page.set_input_files("#file", tmp_path / "image.png")
        (result,) = httpx.post(f"{url}/v1/predict", files={"image": png()}).json()["images"]
        expect(page.locator("#h-classes")).to_have_text(f"Labels: {', '.join(result['labels'])}")
        expect(page.locator("#classes b")).to_have_text([f"{name} \u2713" for name in result["labels"]])
        expect(page.locator("#status")).to_contain_text(", ".join(result["labels"]))
        assert page.locator("#classes button").first.get_attribute("title").startswith("threshold ")
        assert errors == []
        browser.close()
