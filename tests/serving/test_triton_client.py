"""NVIDIA's Triton client works with the server, as a client of the Open Inference Protocol."""

import gzip
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from googlenet.checkpoint.load import load
from servers import RunningServer

triton = pytest.importorskip("tritonclient.http", reason="pip install 'tritonclient[http]'")
NAMES = ("logits", "probabilities")


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[object]:
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
        yield client


def make_input(pixels: np.ndarray, binary: bool) -> object:
    tensor = triton.InferInput("pixels", pixels.shape, "UINT8")
    tensor.set_data_from_numpy(pixels, binary_data=binary)
    return tensor


def test_metadata(client: "triton.InferenceServerClient") -> None:
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("small")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("small")
    assert metadata["inputs"] == [{"name": "pixels", "datatype": "UINT8", "shape": [-1, 3, -1, -1]}]
    assert [output["name"] for output in metadata["outputs"]] == list(NAMES)


@pytest.mark.parametrize("binary_input", [True, False])
@pytest.mark.parametrize("binary_output", [True, False, None])
def test_infer(
    binary_input: bool, binary_output: bool | None, client: "triton.InferenceServerClient", small_run: Path
) -> None:
    network = load(str(small_run))
    outputs = None
    if binary_output is not None:
        outputs = [triton.InferRequestedOutput(name, binary_data=binary_output) for name in NAMES]
    for seed, shape in enumerate([(1, 3, 64, 64), (3, 3, 40, 56)]):
        pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        result = client.infer("small", [make_input(pixels, binary_input)], outputs=outputs, request_id="7")
        with torch.inference_mode():
            expected = network.network.eval()(network.preprocess.normalize(torch.from_numpy(pixels)))
        np.testing.assert_allclose(result.as_numpy("logits"), expected.numpy(), atol=1e-4)
        np.testing.assert_allclose(result.as_numpy("probabilities"), expected.softmax(1).numpy(), atol=1e-5)
        assert result.get_response()["id"] == "7"


def test_extensions_that_are_not_supported_are_errors(client: "triton.InferenceServerClient") -> None:
    """Ignoring them would return another output than requested, or an error about the JSON."""
    tensor = make_input(np.zeros((1, 3, 64, 64), np.uint8), True)
    classification = triton.InferRequestedOutput("probabilities", class_count=3)
    shared = triton.InferRequestedOutput("logits")
    shared.set_shared_memory("region", 20)
    for output, name in ((classification, "classification"), (shared, "shared_memory_region")):
        with pytest.raises(triton.InferenceServerException, match=f"outputs.0.parameters.{name}"):
            client.infer("small", [tensor], outputs=[output])
    for algorithm in ("gzip", "deflate"):
        with pytest.raises(triton.InferenceServerException, match=f"Content-Encoding {algorithm} is not supported"):
            client.infer("small", [tensor], request_compression_algorithm=algorithm)
    with pytest.raises(triton.InferenceServerException, match="unknown model"):
        client.infer("other", [tensor])


def test_compressed_bodies_are_rejected_on_every_route(server: RunningServer) -> None:
    for path in ("/v1/predict", "/v1/explain", "/v2/models/small/infer"):
        body, headers = gzip.compress(b"{}"), {"content-encoding": "gzip", "content-type": "application/json"}
        assert httpx.post(server.url + path, content=body, headers=headers).status_code == 415
    headers = {"content-encoding": "identity", "content-type": "application/json"}
    assert httpx.post(f"{server.url}/v1/predict", content=b"{}", headers=headers).status_code == 422
