"""What a server answers: the same as the command line does, in every form in which it can be asked."""

import base64
import io
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from googlenet.training.checkpoint import Checkpoint, load
from servers import Running, offline, png, said


def test_the_same_as_predict(client: httpx.Client, small_run: Path, pictures: list[Path]) -> None:
    files = [("image", (path.name, path.read_bytes())) for path in pictures]
    together = client.post("/v1/predict", files=files, data={"top": "5"}).json()
    coded = [base64.b64encode(path.read_bytes()).decode() for path in pictures]
    coded[0] = "data:image/jpeg;base64," + coded[0]
    in_json = client.post("/v1/predict", json={"images": coded, "top": 5}).json()
    expected = offline(small_run, pictures)
    for number, path in enumerate(pictures):
        alone = client.post(
            "/v1/predict?top=5", content=path.read_bytes(), headers={"content-type": "application/octet-stream"}
        ).json()
        for answer in (together["images"][number], in_json["images"][number], alone["images"][0]):
            assert said(answer["top"]) == pytest.approx(expected[number], abs=1e-6)
            assert list(said(answer["top"])) == list(expected[number])
        assert together["images"][number]["name"] == path.name
    assert together["model"] == "small" and together["version"] == 1
    assert together["images"][0]["did"] == "360x270 RGB, centre 270x270, resized to 64x64"
    assert set(together["images"][0]["seconds"]) == {"decode", "queue", "compute"}


def test_several_sizes_are_averaged(client: httpx.Client, small_run: Path, pictures: list[Path]) -> None:
    sizes = [32, 64, 80]
    answer = client.post(
        "/v1/predict", files={"image": pictures[0].read_bytes()}, data={"sizes": "32, 64,80", "top": "5"}
    ).json()["images"][0]
    assert said(answer["top"]) == pytest.approx(offline(small_run, pictures[:1], sizes=sizes)[0], abs=1e-6)
    assert [row["size"] for row in answer["by_size"]] == sizes
    for row in answer["by_size"]:
        (expected,) = offline(small_run, pictures[:1], sizes=[row["size"]])
        assert said(row["top"]) == pytest.approx(expected, abs=1e-6)


def test_requests_that_come_together_are_computed_together(server: Running, small_run: Path) -> None:
    import asyncio

    checkpoint = load(small_run)
    expected = [plainly(checkpoint, png(seed=seed)) for seed in range(24)]

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as asking:
            posts = [asking.post("/v1/predict?top=5", files={"image": png(seed=seed)}) for seed in range(24)]
            return list(await asyncio.gather(*posts))

    for answer, right in zip(asyncio.run(ask()), expected, strict=True):
        assert said(answer.json()["images"][0]["top"]) == pytest.approx(right, abs=1e-5)
    counted = httpx.get(f"{server.url}/metrics").text
    rows = dict(line.rsplit(" ", 1) for line in counted.splitlines() if not line.startswith("#"))
    assert float(rows["googlenet_batch_pictures_sum"]) > float(rows["googlenet_batch_pictures_count"])


def plainly(checkpoint: Checkpoint, data: bytes) -> dict[str, float]:
    """The network's answer to a picture of its own size, without any of the package's reading."""
    rows = np.asarray(Image.open(io.BytesIO(data)), dtype=np.float32) / 255
    mean, std = np.float32(checkpoint.preprocess.mean), np.float32(checkpoint.preprocess.std)
    with torch.inference_mode():
        logits = checkpoint.model(torch.from_numpy((rows - mean) / std).permute(2, 0, 1)[None])
    return dict(zip(checkpoint.classes, logits.softmax(1)[0].tolist(), strict=True))


def test_explained(client: httpx.Client, small_run: Path, pictures: list[Path]) -> None:
    checkpoint = load(small_run)
    picture = Image.open(pictures[1])
    batch, _ = checkpoint.preprocess.read(picture)
    for asked in ({}, {"label": "fish"}):
        found = client.post("/v1/explain", files={"image": pictures[1].read_bytes()}, data=asked).json()
        (expected,) = offline(small_run, pictures[1:2])
        label = asked.get("label", max(expected, key=expected.__getitem__))
        assert found["label"] == label and found["probability"] == pytest.approx(expected[label], abs=1e-6)
        shape, values = found["map"]
        assert shape == list(checkpoint.model.forward_features(batch).shape[-2:])
        # The map's mean and the class's bias are its logit: nothing else adds to it.
        number = checkpoint.classes.index(label)
        bias = checkpoint.model.classifier.bias[number].item()
        assert np.mean(values) + bias == pytest.approx(checkpoint.model(batch)[0, number].item(), abs=1e-4)
        sides = {Image.open(io.BytesIO(base64.b64decode(found[kind].partition(",")[2]))).size
                 for kind in ("picture", "heat", "overlay")}  # fmt: skip
        assert sides == {(448, 448)}
        seen = Image.open(io.BytesIO(base64.b64decode(found["picture"].partition(",")[2]))).resize((64, 64), 0)
        assert np.abs(np.asarray(seen, dtype=float) - np.asarray(picture.resize((64, 64), 2))).max() <= 2
    only = client.post("/v1/explain", files={"image": png()}, headers={"accept": "image/png"})
    assert only.headers["content-type"] == "image/png" and Image.open(io.BytesIO(only.content)).size == (448, 448)


def test_models(client: httpx.Client) -> None:
    listed = client.get("/v1/models").json()["models"]
    assert [one["name"] for one in listed] == ["small", "again"]
    assert listed[0]["classes"] == ["cat", "dog", "bird", "fish", "fox"]
    assert (listed[0]["size"], listed[0]["min_size"], listed[0]["channels"]) == (64, 31, 3)
    assert client.get("/v1/models/again").json() == listed[1]
    answer = client.post("/v1/predict?model=again", content=png(), headers={"content-type": "image/png"}).json()
    assert answer["model"] == "again"
    for path in ("/v1/models/agian", "/v2/models/agian"):
        lost = client.get(path)
        assert lost.status_code == 404 and "did you mean again" in lost.json()["error"]["message"]


def test_open_inference_protocol(client: httpx.Client, small_run: Path) -> None:
    assert client.get("/v2").json()["name"] == "googlenet"
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    about = client.get("/v2/models/small/versions/1").json()
    assert about["inputs"] == [{"name": "pixels", "datatype": "UINT8", "shape": [-1, 3, -1, -1]}]
    assert client.get("/v2/models/small/ready").json() == {"name": "small", "ready": True}
    assert client.get("/v2/models/small/versions/7/ready").status_code == 404
    pixels = np.random.default_rng(1).integers(0, 256, (3, 3, 40, 56), dtype=np.uint8)
    tensor = {"name": "pixels", "shape": list(pixels.shape), "datatype": "UINT8"}
    checkpoint = load(small_run)
    with torch.inference_mode():
        right = checkpoint.model(checkpoint.preprocess.normalise(torch.from_numpy(pixels).float()))
    for data in (pixels.tolist(), pixels.flatten().tolist()):
        body = {"id": "seven", "inputs": [{**tensor, "data": data}]}
        answer = client.post("/v2/models/small/versions/1/infer", json=body).json()
        assert (answer["model_name"], answer["model_version"], answer["id"]) == ("small", "1", "seven")
        logits, probabilities = answer["outputs"]
        assert logits["name"] == "logits" and logits["datatype"] == "FP32" and logits["shape"] == [3, 5]
        np.testing.assert_allclose(np.reshape(logits["data"], (3, 5)), right, atol=1e-4)
        np.testing.assert_allclose(np.reshape(probabilities["data"], (3, 5)), right.softmax(1), atol=1e-5)
    body = {"inputs": [{**tensor, "data": pixels.tolist()}], "outputs": [{"name": "probabilities"}]}
    assert [one["name"] for one in client.post("/v2/models/small/infer", json=body).json()["outputs"]] == [
        "probabilities"
    ]


def test_counted(client: httpx.Client) -> None:
    def pictures() -> float:
        rows = client.get("/metrics").text.splitlines()
        return sum(float(row.rsplit(" ", 1)[1]) for row in rows if row.startswith("googlenet_pictures_total"))

    before = pictures()
    client.post("/v1/predict", files=[("image", png(seed=seed)) for seed in range(3)])
    assert pictures() == before + 3
    text = client.get("/metrics").text
    for part in ('stage="decode"', 'stage="queue"', 'stage="compute"', 'googlenet_model_version{model="small"} 1.0',
                 "googlenet_pictures_accepted 0.0", "googlenet_memory_accepted_bytes 0.0"):  # fmt: skip
        assert part in text


def test_described(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert {"/v1/predict", "/v1/explain", "/v1/models", "/v2/models/{name}/infer", "/healthz", "/metrics"} <= set(
        document["paths"]
    )
    kinds = document["paths"]["/v1/predict"]["post"]["requestBody"]["content"]
    assert {"multipart/form-data", "application/json"} <= set(kinds)
    page = client.get("/docs").text
    assert all(path in page for path in document["paths"])
    assert "http" not in page.replace("OVER HTTP", "").replace("over HTTP", "")
