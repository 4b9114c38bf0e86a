"""Ensembles in one file."""

import itertools
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import googlenet
from googlenet.checkpoint.format import Checkpoint
from googlenet.config.schema import ModelConfig, Recipe
from googlenet.data.dataset import Split
from googlenet.data.preprocess import Preprocess
from googlenet.errors import FailedError
from googlenet.export.backends.onnxruntime import _strip_metadata
from googlenet.export.engine import open_exported
from googlenet.export.exporter import ExportData, ExportOptions, QuantizationConfig, export
from googlenet.export.quantize import layer_of, node_pattern, quantizable_layers
from googlenet.models.ensemble import Ensemble
from googlenet.models.folding import fold

CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def ensemble() -> Checkpoint:
    networks = [
        googlenet.create("googlenet_bn", 3, 1, pool_mode="same", width_mult=0.125 * (1 + seed), seed=seed)
        for seed in range(2)
    ]
    recipe = Recipe(model=ModelConfig(name="googlenet_bn"))
    return Checkpoint(Ensemble(networks).eval(), Preprocess(24, 1, (0.3,), (0.4,)), CLASSES, recipe, {})


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (30, 1, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_the_folded_ensemble_averages_its_members(ensemble: Checkpoint, pixels: torch.Tensor) -> None:
    with torch.inference_mode():
        members = [network(ensemble.preprocess(pixels, 24)).softmax(1) for network in ensemble.model.networks]
        probabilities = fold(ensemble.model, ensemble.preprocess)(pixels).exp()
    torch.testing.assert_close(probabilities, torch.stack(members).mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_files_and_int8(ensemble: Checkpoint, pixels: torch.Tensor, tmp_path: Path) -> None:
    # The network's own predictions as labels, so that int8 has accuracy to lose.
    with torch.inference_mode():
        labels = ensemble.model(ensemble.preprocess(pixels, 24)).argmax(1)
    split = Split(pixels, labels, [str(i) for i in range(30)])
    data = ExportData(pixels[:4], split, "noise", split)
    options = ExportOptions(int8=QuantizationConfig(max_accuracy_drop=0.9, calibration_images=10), threads=1)
    result = export(ensemble, data, tmp_path / "out", ["onnx"], options)
    assert result.max_error < 1e-4
    assert result.top1 == 1.0
    float32 = open_exported(tmp_path / "out", "onnxruntime:float32", 1).predict(pixels)
    assert torch.equal(float32.argmax(1), labels)
    int8 = open_exported(tmp_path / "out", "onnxruntime:int8", 1).predict(pixels)
    assert (int8.exp() - float32.exp()).abs().max() < 0.2


def test_layer_names_are_those_of_the_files(ensemble: Checkpoint) -> None:
    names = dict(fold(ensemble.model, ensemble.preprocess, merge=False).named_parameters())
    assert {layer_of(name) for name in names} == set(quantizable_layers(ensemble.model))


def test_ncnn_holds_one_network(ensemble: Checkpoint, pixels: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(FailedError, match="export a member"):
        export(ensemble, ExportData(pixels[:1]), tmp_path / "out", ["ncnn"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("num_members", [2, 3])
def test_equal_weights_of_members_have_distinct_nodes(num_members: int) -> None:
    """PyTorch's exporter writes equal weights once; ONNX Runtime opens no file with two nodes of one name."""
    helper, weight = (
        onnx.helper,
        onnx.numpy_helper.from_array(np.ones((3, 3), np.float32), "networks.0.trunk.conv1.weight"),
    )
    values = [f"x{index}" for index in range(num_members + 1)]
    nodes = [helper.make_node("MatMul", [before, weight.name], [after]) for before, after in itertools.pairwise(values)]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3]) for name in (values[0], values[-1])]
    graph = helper.make_graph(nodes, "graph", [ends[0]], [ends[1]], [weight])
    model = _strip_metadata(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))
    assert {layer_of(node.name) for node in model.graph.node} == {"networks.0.conv1"}
    assert all(re.match(node_pattern("networks.0.conv1"), node.name) for node in model.graph.node)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"x0": np.ones((1, 3), np.float32)})
    assert output.tolist() == [[3.0**num_members] * 3]
