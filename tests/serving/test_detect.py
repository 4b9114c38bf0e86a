"""Detection over HTTP: the boxes of the command line for every form of request, limits, errors and reload."""

import base64
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from googlenet.data.decode import decode_image, to_tensor
from googlenet.data.preprocess import Preprocess
from googlenet.detection.data.dataset import Detections
from googlenet.inference.loading import load_predictor
from googlenet.serving import service
from googlenet.serving.images import decode_pixels, read_header
from googlenet.serving.schemas import UploadedImage
from servers import png, serve_in_thread, write_detector_run


@pytest.fixture(scope="module")
def detect_client(detector_run: Path, small_run: Path) -> Iterator[httpx.Client]:
    """A server of a detector, the default model, and a classifier."""
    with serve_models({"detector": detector_run, "small": small_run}) as client:
        yield client


@contextmanager
def serve_models(models: dict[str, Path], **options: Any) -> Iterator[httpx.Client]:
    with serve_in_thread(models, **options) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


def offline(run: Path, data: bytes) -> Detections:
    """Detect the objects on an image file that is decoded completely."""
    predictor = load_predictor(str(run), task="detection").predictor
    return predictor.predict([to_tensor(decode_image(data), predictor.preprocess.channels)])[0]


def check_boxes(image: dict[str, Any], expected: Detections, classes: tuple[str, ...] = ("cat", "dog", "bird")) -> None:
    assert [box["label"] for box in image["boxes"]] == [classes[label] for label in expected.labels.tolist()]
    assert [box["score"] for box in image["boxes"]] == pytest.approx(expected.scores.tolist(), abs=1e-4)
    boxes = torch.tensor([box["xyxy"] for box in image["boxes"]]).view(-1, 4)
    torch.testing.assert_close(boxes, expected.boxes, atol=1e-2, rtol=0)


def test_every_form_of_request(detect_client: httpx.Client, detector_run: Path, images: list[Path]) -> None:
    options = {"score_threshold": "0.2", "model": "detector"}
    files = [("image", (path.name, path.read_bytes())) for path in images[1:]]
    form = detect_client.post("/v1/detect", files=files, data=options).json()
    assert (form["model"], form["version"]) == ("detector", 1)
    encoded = [base64.b64encode(path.read_bytes()).decode() for path in images[1:]]
    body = detect_client.post("/v1/detect", json={"images": encoded, "score_threshold": 0.2}).json()
    total = 0
    for path, from_form, from_json in zip(images[1:], form["images"], body["images"], strict=True):
        raw = detect_client.post("/v1/detect?score_threshold=0.2", content=path.read_bytes(),
                                 headers={"content-type": "application/octet-stream"}).json()["images"][0]  # fmt: skip
        expected = offline(detector_run, path.read_bytes()).above(0.2)
        total += len(expected.boxes)
        with Image.open(path) as opened:
            size = opened.size
        for image in (from_form, from_json, raw):
            check_boxes(image, expected)
            assert (image["width"], image["height"]) == size
            assert set(image["seconds"]) == {"decode", "queue", "compute"}
        assert from_form["name"] == path.name
    assert total > 5


def test_options(detect_client: httpx.Client, detector_run: Path) -> None:
    data = png(96, 4)
    expected = offline(detector_run, data)
    for threshold, count in ((0.0, None), (0.3, 2), (0.1, 5)):
        fields = {"score_threshold": threshold} | ({"max_detections": count} if count else {})
        (image,) = detect_client.post("/v1/detect", files={"image": data}, data=fields).json()["images"]
        check_boxes(image, expected.above(threshold).select(slice(count)))
    (image,) = detect_client.post("/v1/detect", files={"image": data}).json()["images"]
    check_boxes(image, expected.above(0.3))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_boxes_are_in_pixels_of_the_upright_image(
    detect_client: httpx.Client, detector_run: Path, orientation: int
) -> None:
    """A large JPEG is reduced while it is decoded, but its boxes are not."""
    blocks = np.random.default_rng(orientation).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    photo = Image.fromarray(blocks).resize((800, 600), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo.save(buffer := io.BytesIO(), "JPEG", quality=95, exif=exif)
    (image,) = detect_client.post("/v1/detect", content=buffer.getvalue(), params={"score_threshold": 0.0},
                                  headers={"content-type": "image/jpeg"}).json()["images"]  # fmt: skip
    assert (image["width"], image["height"]) == ((600, 800) if orientation in (6, 8) else (800, 600))
    expected = offline(detector_run, buffer.getvalue())
    found = torch.tensor([box["xyxy"] for box in image["boxes"]])
    assert len(found) == len(expected.boxes) > 3
    torch.testing.assert_close(found[:1], expected.boxes[:1], atol=16.0, rtol=0)
    # Another scale than that of the upright image would be wrong by hundreds of pixels.
    assert found[:, 2::2].max() <= image["width"] and found[:, 3::2].max() <= image["height"]
    assert found.max() > 400


@pytest.mark.parametrize(("width", "height", "size"), [(1600, 1200, 64), (3000, 400, 64), (700, 500, 224)])
def test_a_jpeg_is_not_reduced_below_the_input_size(width: int, height: int, size: int) -> None:
    Image.new("RGB", (width, height), "teal").save(buffer := io.BytesIO(), "JPEG")
    preprocess = Preprocess(size, 3, (0.5,) * 3, (0.5,) * 3)
    upload = UploadedImage("photo.jpg", buffer.getvalue())
    min_size = preprocess.min_decode_size(size)
    decoded = decode_pixels(upload, preprocess, min_size, 10_000_000)
    assert min(decoded.pixels.shape[1:]) >= size and decoded.full_size == (height, width)
    header = read_header(upload, min_size, 10_000_000)
    assert (header.height, header.width) == tuple(decoded.pixels.shape[1:])
    assert decode_pixels(upload, preprocess, None, 10_000_000).pixels.shape == (3, height, width)


def error(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    message: str = response.json()["error"]["message"]
    assert "\n" not in message
    return message


def test_the_wrong_task_is_one_clear_error(detect_client: httpx.Client) -> None:
    files = {"image": png()}
    for path in ("/v1/predict", "/v1/explain"):
        assert "use /v1/detect" in error(detect_client.post(path, files=files, data={"model": "detector"}), 422)
    assert "use /v1/predict" in error(detect_client.post("/v1/detect", files=files, data={"model": "small"}), 422)
    for method, path in (("GET", "/v2/models/detector"), ("POST", "/v2/models/detector/infer")):
        response = detect_client.request(method, path, json={} if method == "POST" else None)
        assert response.status_code == 422 and "/v1/detect" in response.json()["error"]
    assert detect_client.get("/v2/models/detector/ready").json()["ready"] is True
    tasks = {model["name"]: model["task"] for model in detect_client.get("/v1/models").json()["models"]}
    assert tasks == {"detector": "detection", "small": "classification"}
    model = detect_client.get("/v1/models/detector").json()
    assert (model["engine"], model["precision"], model["size"], model["classes"][0]) == ("torch", "float32", 64, "cat")
    assert "/v1/detect" in detect_client.get("/openapi.json").json()["paths"]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"score_threshold": "1"}, "score_threshold"),
        ({"score_threshold": "-0.1"}, "score_threshold"),
        ({"score_threshold": "nan"}, "score_threshold"),
        ({"max_detections": "0"}, "max_detections"),
        ({"max_detections": "many"}, "max_detections"),
        ({"model": "none"}, "unknown model"),
    ],
)
def test_invalid_options(detect_client: httpx.Client, options: dict[str, str], field: str) -> None:
    response = detect_client.post("/v1/detect", files={"image": png()}, data=options)
    assert field in error(response, 404 if "model" in options else 422)


def test_invalid_bodies(detect_client: httpx.Client) -> None:
    post = detect_client.post
    assert "not an image" in error(post("/v1/detect", files={"image": b"milk, eggs"}), 422)
    assert "no image" in error(post("/v1/detect", data={"score_threshold": "0.5"}, files={"other": ("", b"")}), 422)
    encoded = base64.b64encode(png()).decode()
    assert "top" in error(post("/v1/detect", json={"images": [encoded], "top": 3}), 422)
    assert "content type" in error(post("/v1/detect", content=b"x", headers={"content-type": "text/plain"}), 415)


@pytest.mark.parametrize("side", [600, pytest.param(900, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_memory_is_reserved_before_decoding(detector_run: Path, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pixels of an accepted image wait uncompressed: 5 bytes for each value are reserved."""
    decoded: list[str] = []
    decode = service.decode_pixels

    def record(image: UploadedImage, *rest: Any) -> Any:
        decoded.append(image.name)
        return decode(image, *rest)

    monkeypatch.setattr(service, "decode_pixels", record)
    Image.new("RGB", (side, side), "teal").save(buffer := io.BytesIO(), "PNG")
    data = buffer.getvalue()
    needed = side * side * 18  # more than is needed while the image waits
    with serve_models({"small": detector_run}, max_memory=2 * needed - 2, max_body_bytes=50_000_000) as client:
        assert "memory" in error(client.post("/v1/detect", files={"image": data}), 413)
        assert decoded == []
        assert client.post("/v1/detect", files={"image": png(side // 4)}).status_code == 200
    with serve_models({"small": detector_run}, max_memory=2 * needed, max_body_bytes=50_000_000) as client:
        assert client.post("/v1/detect", files={"image": data}).status_code == 200
        files = [("image", data), ("image", data)]
        assert "memory limit" in error(client.post("/v1/detect", files=files), 413)
        gauge = client.get("/metrics").text
        assert "googlenet_inflight_bytes 0.0" in gauge
    with serve_models({"small": detector_run}, max_pixels=side * side - 1) as client:
        assert "pixels" in error(client.post("/v1/detect", files={"image": data}), 413)


def test_queue_limit(detector_run: Path) -> None:
    with serve_models({"small": detector_run}, max_queue=2) as client:
        files = [("image", png(seed=seed)) for seed in range(3)]
        error(client.post("/v1/detect", files=files), 413)
        assert len(client.post("/v1/detect", files=files[:2]).json()["images"]) == 2


@pytest.mark.slow
def test_reload(detector_run: Path, tmp_path: Path) -> None:
    run, data = tmp_path / "run", png(80, 7)
    shutil.copytree(detector_run, run)
    with serve_models({"small": run}) as client:
        before = client.post("/v1/detect", files={"image": data}, data={"score_threshold": "0"}).json()
        check_boxes(before["images"][0], offline(run, data).above(0.0))
        write_detector_run(run, seed=8)
        assert client.post("/v1/models/small/reload").json()["version"] == 2
        after = client.post("/v1/detect", files={"image": data}, data={"score_threshold": "0"}).json()
        assert after["version"] == 2 and after["images"][0]["boxes"] != before["images"][0]["boxes"]
        check_boxes(after["images"][0], offline(run, data).above(0.0))
        (run / "model.safetensors").write_bytes(b"broken")
        error(client.post("/v1/models/small/reload"), 409)
        assert client.post("/v1/detect", files={"image": data}).json()["version"] == 2


@pytest.mark.slow
def test_exported_folder(detector_run: Path, exported_detector: Path) -> None:
    for engine in ("auto", "openvino:float32"):
        with serve_models({"small": exported_detector}, engine=engine) as client:
            model = client.get("/v1/models/small").json()
            assert (model["precision"], model["task"], model["size"]) == ("float32", "detection", 64)
            assert model["engine"] in (("onnxruntime", "openvino") if engine == "auto" else ("openvino",))
            for seed, size in ((1, 50), (2, 130)):
                files, fields = {"image": png(size, seed)}, {"score_threshold": "0.1"}
                (image,) = client.post("/v1/detect", files=files, data=fields).json()["images"]
                check_boxes(image, offline(detector_run, files["image"]).above(0.1))
            assert "use /v1/detect" in error(client.post("/v1/predict", files={"image": png()}), 422)
