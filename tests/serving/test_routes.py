"""Responses of the server: equal to those of the command line, for every form of request."""

import asyncio
import base64
import io
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from googlenet.checkpoint.format import Checkpoint
from googlenet.checkpoint.load import load
from servers import RunningServer, png, predict_offline, probabilities


def test_predict_equals_the_command_line(client: httpx.Client, small_run: Path, images: list[Path]) -> None:
    files = [("image", (path.name, path.read_bytes())) for path in images]
    form = client.post("/v1/predict", files=files, data={"top": "5"}).json()
    encoded = [base64.b64encode(path.read_bytes()).decode() for path in images]
    encoded[0] = "data:image/jpeg;base64," + encoded[0]
    json_body = client.post("/v1/predict", json={"images": encoded, "top": 5}).json()
    expected = predict_offline(small_run, images)
    for index, path in enumerate(images):
        raw_body = client.post(
            "/v1/predict?top=5", content=path.read_bytes(), headers={"content-type": "application/octet-stream"}
        ).json()
        for image in (form["images"][index], json_body["images"][index], raw_body["images"][0]):
            assert probabilities(image["top"]) == pytest.approx(expected[index], abs=1e-5)
            assert list(probabilities(image["top"])) == list(expected[index])
        assert form["images"][index]["name"] == path.name
    assert form["model"] == "small" and form["version"] == 1
    assert form["images"][0]["preprocessing"] == "360x270 RGB, center 270x270, resized to 64x64"
    assert set(form["images"][0]["seconds"]) == {"decode", "queue", "compute"}


def test_several_sizes_are_averaged(client: httpx.Client, small_run: Path, images: list[Path]) -> None:
    # A PNG: how far a JPEG is reduced when it is decoded depends on the largest size.
    sizes = (32, 64, 80)
    (image,) = client.post(
        "/v1/predict", files={"image": images[1].read_bytes()}, data={"sizes": "32, 64,80", "top": "5"}
    ).json()["images"]
    (expected,) = predict_offline(small_run, images[1:2], sizes)
    assert probabilities(image["top"]) == pytest.approx(expected, abs=1e-5)
    assert tuple(row["size"] for row in image["by_size"]) == sizes
    for row in image["by_size"]:
        (expected,) = predict_offline(small_run, images[1:2], (row["size"],))
        assert probabilities(row["top"]) == pytest.approx(expected, abs=1e-5)


def test_concurrent_requests_are_batched(server: RunningServer, small_run: Path) -> None:
    checkpoint = load(small_run)
    expected = [reference(checkpoint, png(seed=seed)) for seed in range(24)]

    async def send() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            requests = [client.post("/v1/predict?top=5", files={"image": png(seed=seed)}) for seed in range(24)]
            return list(await asyncio.gather(*requests))

    for response, target in zip(asyncio.run(send()), expected, strict=True):
        assert probabilities(response.json()["images"][0]["top"]) == pytest.approx(target, abs=1e-5)
    metrics = read_metrics(httpx.get(f"{server.url}/metrics").text)
    assert metrics["googlenet_batch_size_sum"] > metrics["googlenet_batch_size_count"]


def reference(checkpoint: Checkpoint, data: bytes) -> dict[str, float]:
    """Classify an image of the network's size without the package's preprocessing."""
    pixels = np.asarray(Image.open(io.BytesIO(data)), dtype=np.float32) / 255
    mean, std = np.float32(checkpoint.preprocess.mean), np.float32(checkpoint.preprocess.std)
    with torch.inference_mode():
        logits = checkpoint.model(torch.from_numpy((pixels - mean) / std).permute(2, 0, 1)[None])
    return dict(zip(checkpoint.classes, logits.softmax(1)[0].tolist(), strict=True))


def read_metrics(text: str) -> dict[str, float]:
    rows = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in rows}


def open_data_url(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


@pytest.mark.parametrize("options", [{}, {"label": "fish"}])
def test_explain(options: dict[str, str], client: httpx.Client, small_run: Path, images: list[Path]) -> None:
    checkpoint, path = load(small_run), images[1]
    image = Image.open(path)
    # The server's engines take bytes.
    batch = checkpoint.preprocess.normalize(checkpoint.preprocess.from_pil_unnormalized(image)[0].round())
    response = client.post("/v1/explain", files={"image": path.read_bytes()}, data=options).json()
    (expected,) = predict_offline(small_run, [path])
    label = options.get("label", next(iter(expected)))
    assert response["label"] == label and response["probability"] == pytest.approx(expected[label], abs=1e-5)
    shape, values = response["map"]["shape"], response["map"]["data"]
    assert shape == list(checkpoint.model.forward_features(batch).shape[-2:]) and len(values) == np.prod(shape)
    # The logit is the mean of the map plus the bias of the class.
    index = checkpoint.classes.index(label)
    bias = checkpoint.model.classifier.bias[index].item()
    assert np.mean(values) + bias == pytest.approx(checkpoint.model(batch)[0, index].item(), abs=1e-4)
    assert {open_data_url(response[key]).size for key in ("image", "heatmap", "overlay")} == {(448, 448)}
    network_input = open_data_url(response["image"]).resize((64, 64), 0)
    assert np.abs(np.asarray(network_input, dtype=float) - np.asarray(image.resize((64, 64), 2))).max() <= 2


def test_explain_as_image(client: httpx.Client) -> None:
    response = client.post("/v1/explain", files={"image": png()}, headers={"accept": "image/png"})
    assert response.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(response.content)).size == (448, 448)


def test_models(client: httpx.Client) -> None:
    models = client.get("/v1/models").json()["models"]
    assert [model["name"] for model in models] == ["small", "again"]
    assert models[0]["classes"] == ["cat", "dog", "bird", "fish", "fox"]
    assert (models[0]["size"], models[0]["min_size"], models[0]["channels"]) == (64, 31, 3)
    assert models[0]["supports_explain"] is True and models[0]["loaded_at"] > 1e9
    assert client.get("/v1/models/again").json() == models[1]
    response = client.post("/v1/predict?model=again", content=png(), headers={"content-type": "image/png"}).json()
    assert response["model"] == "again"
    for path in ("/v1/models/agian", "/v2/models/agian"):
        response = client.get(path)
        error = response.json()["error"]
        # The Open Inference Protocol defines an error as a text.
        message = error if path.startswith("/v2") else error["message"]
        assert response.status_code == 404 and "did you mean again" in message


def test_v2_metadata(client: httpx.Client) -> None:
    assert client.get("/v2").json()["name"] == "googlenet"
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    metadata = client.get("/v2/models/small/versions/1").json()
    assert metadata["inputs"] == [{"name": "pixels", "datatype": "UINT8", "shape": [-1, 3, -1, -1]}]
    assert client.get("/v2/models/small/ready").json() == {"name": "small", "ready": True}
    assert client.get("/v2/models/small/versions/7/ready").status_code == 404


def test_v2_infer(client: httpx.Client, small_run: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (3, 3, 40, 56), dtype=np.uint8)
    tensor = {"name": "pixels", "shape": list(pixels.shape), "datatype": "UINT8"}
    checkpoint = load(small_run)
    with torch.inference_mode():
        expected = checkpoint.model(checkpoint.preprocess.normalize(torch.from_numpy(pixels).float()))
    for data in (pixels.tolist(), pixels.flatten().tolist()):
        body: dict[str, Any] = {"id": "seven", "inputs": [{**tensor, "data": data}]}
        response = client.post("/v2/models/small/versions/1/infer", json=body).json()
        assert (response["model_name"], response["model_version"], response["id"]) == ("small", "1", "seven")
        logits, probs = response["outputs"]
        assert logits["name"] == "logits" and logits["datatype"] == "FP32" and logits["shape"] == [3, 5]
        np.testing.assert_allclose(np.reshape(logits["data"], (3, 5)), expected, atol=1e-4)
        np.testing.assert_allclose(np.reshape(probs["data"], (3, 5)), expected.softmax(1), atol=1e-5)
    body = {"inputs": [{**tensor, "data": pixels.tolist()}], "outputs": [{"name": "probabilities"}]}
    outputs = client.post("/v2/models/small/infer", json=body).json()["outputs"]
    assert [output["name"] for output in outputs] == ["probabilities"]


TENSOR = {"name": "pixels", "shape": [1, 3, 40, 40], "datatype": "UINT8", "data": [7] * 4800}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ([], 422, "Input should be an object"),
        ({"inputs": [TENSOR, TENSOR]}, 422, "inputs: List should have at most 1 item"),
        ({"inputs": [{**TENSOR, "name": "x"}]}, 422, "inputs.0.name: Input should be 'pixels'"),
        ({"inputs": [{**TENSOR, "datatype": "FP32"}]}, 422, "inputs.0.datatype"),
        ({"inputs": [{**TENSOR, "shape": [1, 3, 40]}]}, 422, "inputs.0.shape"),
        ({"inputs": [{**TENSOR, "shape": [True, 3, 40, 40]}]}, 422, "inputs.0.shape.0"),
        ({"inputs": [{**TENSOR, "shape": [1, 1, 40, 40]}]}, 422, "shape: expected [n, 3, height, width]"),
        ({"inputs": [{**TENSOR, "shape": [99, 3, 40, 40]}]}, 413, "99 images"),
        ({"inputs": [{**TENSOR, "shape": [1, 3, 8, 40]}]}, 422, "31 to 1024 pixels"),
        ({"inputs": [{**TENSOR, "data": [7]}]}, 422, "data: expected integers"),
        ({"inputs": [{**TENSOR, "data": [1.5] * 4800}]}, 422, "data: expected integers"),
        ({"inputs": [{**TENSOR, "data": [[7], [7, 7]]}]}, 422, "data: expected integers"),
        ({"inputs": [{**TENSOR, "data": [256] * 4800}]}, 422, "0 to 255"),
        ({"inputs": [TENSOR], "id": 1}, 422, "id: Input should be a valid string"),
        ({"inputs": [TENSOR], "outputs": [{"name": "x"}]}, 422, "outputs.0.name"),
        ({"inputs": [TENSOR], "outputs": [{"name": "logits"}] * 2}, 422, "outputs: duplicate name"),
    ],
)
def test_v2_invalid_body(client: httpx.Client, body: Any, status: int, message: str) -> None:
    response = client.post("/v2/models/small/infer", json=body)
    assert response.status_code == status
    assert message in response.json()["error"]


def infer_binary(
    client: httpx.Client, header: dict[str, Any], data: bytes, length: int | None = None
) -> httpx.Response:
    """Send a request with binary tensor data; `length` is a wrong length of the JSON."""
    text = json.dumps(header).encode()
    headers = {"Inference-Header-Content-Length": str(len(text) if length is None else length)}
    return client.post("/v2/models/small/infer", content=text + data, headers=headers)


def test_v2_binary_data(client: httpx.Client) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (2, 3, 40, 56), dtype=np.uint8)
    tensor: dict[str, Any] = {"name": "pixels", "shape": list(pixels.shape), "datatype": "UINT8"}
    expected = client.post("/v2/models/small/infer", json={"inputs": [{**tensor, "data": pixels.tolist()}]}).json()
    tensor["parameters"] = {"binary_data_size": pixels.size}
    assert infer_binary(client, {"inputs": [tensor]}, pixels.tobytes()).json()["outputs"] == expected["outputs"]
    # All outputs are binary, or each as requested.
    response = infer_binary(client, {"inputs": [tensor], "parameters": {"binary_data_output": True}}, pixels.tobytes())
    length = int(response.headers["Inference-Header-Content-Length"])
    outputs = json.loads(response.content[:length])["outputs"]
    assert [output["parameters"]["binary_data_size"] for output in outputs] == [40, 40]
    values = np.frombuffer(response.content[length:], "<f4").reshape(2, 2, 5)
    for output, binary in zip(expected["outputs"], values, strict=True):
        np.testing.assert_array_equal(np.float32(output["data"]).reshape(2, 5), binary)
    requested = [{"name": "probabilities", "parameters": {"binary_data": True}}]
    response = infer_binary(client, {"inputs": [tensor], "outputs": requested}, pixels.tobytes())
    assert len(response.content) == int(response.headers["Inference-Header-Content-Length"]) + 40


@pytest.mark.parametrize(
    ("change", "length", "message"),
    [
        ({"parameters": {"binary_data_size": 4799}}, None, "data: the sizes differ"),
        ({"parameters": {}}, None, "data: send either data or binary_data_size"),
        ({"data": [7] * 4800}, None, "data: send either data or binary_data_size"),
        ({"shape": [1, 3, 41, 40]}, None, "data: the sizes differ"),
        ({"parameters": {"binary_data_size": -1}}, None, "binary_data_size"),
        ({}, 10**9, "must be the number of bytes of JSON"),
        ({}, 3, "not valid JSON"),
    ],
)
def test_v2_invalid_binary_data(client: httpx.Client, change: dict[str, Any], length: int | None, message: str) -> None:
    tensor = {"name": "pixels", "shape": [1, 3, 40, 40], "datatype": "UINT8", "parameters": {"binary_data_size": 4800}}
    response = infer_binary(client, {"inputs": [{**tensor, **change}]}, b"\x07" * 4800, length)
    assert response.status_code == 422 and message in response.json()["error"]


def test_metrics(client: httpx.Client) -> None:
    def num_images() -> float:
        return read_metrics(client.get("/metrics").text)['googlenet_images_total{model="small"}']

    client.post("/v1/predict", files={"image": png()})
    before = num_images()
    client.post("/v1/predict", files=[("image", png(seed=seed)) for seed in range(3)])
    assert num_images() == before + 3
    metrics = read_metrics(client.get("/metrics").text)
    for stage in ("decode", "queue", "compute"):
        assert metrics[f'googlenet_stage_duration_seconds_count{{stage="{stage}"}}'] > 0
    assert metrics['googlenet_request_duration_seconds_count{route="/v1/predict"}'] > 0
    assert metrics['googlenet_model_version{model="small"}'] == 1
    assert metrics["googlenet_inflight_images"] == metrics["googlenet_inflight_bytes"] == 0
    assert metrics["googlenet_queued_images"] == 0


def test_openapi_document(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert {"/v1/predict", "/v1/explain", "/v1/models", "/v2/models/{name}/infer", "/healthz", "/metrics"} <= set(
        document["paths"]
    )
    types = document["paths"]["/v1/predict"]["post"]["requestBody"]["content"]
    assert {"multipart/form-data", "application/json"} <= set(types)
    page = client.get("/docs").text
    assert all(path in page for path in document["paths"])
    assert "http:" not in page and "https:" not in page, "nothing is loaded from another server"
