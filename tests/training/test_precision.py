"""Reduced precision and gradient accumulation."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import SEED
from googlenet.checkpoint.format import build_network, read_run_recipe
from googlenet.config.parse import read_recipe
from googlenet.devices import pick_precision
from googlenet.training.fit import fit
from googlenet.training.metrics_logger import read_metrics

pytestmark = pytest.mark.cpu

CPU = torch.device("cpu")


@pytest.mark.accuracy
@pytest.mark.cpu
def test_bfloat16_learns_and_leaves_float32_weights(tmp_path: Path) -> None:
    flags = ["--epochs=3", "--device=cpu", "--precision=bfloat16", f"--seed={SEED}"]
    fit(read_recipe("fashion-mnist-smoke", flags), tmp_path / "run", progress=False)
    losses = [e["loss"] for e in read_metrics(tmp_path / "run") if e["split"] == "train"]
    print(f"loss down by {losses[0] - losses[-1]:.3f}")
    # Over five seeds on four kinds of CPU (make test-margins) by 0.88 to 1.22.
    assert losses[-1] < losses[0] - 0.5
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}
    key = "trunk.inception_4a.conv3x3.conv.weight"
    assert not torch.equal(weights[key], weights[key].bfloat16().float()), "weights stay float32 between the steps"
    assert read_run_recipe(tmp_path / "run").precision == "bfloat16"


def test_bfloat16_is_what_the_network_computes_in(tmp_path: Path) -> None:
    """One step of each: close, and not the same."""
    weights = {}
    flags = [
        "--epochs=1",
        "--data.max_samples=64",
        "--device=cpu",
        "--model.name=googlenet_d2l",
        "--schedule.warmup_fraction=0",
    ]
    for precision in ("float32", "bfloat16"):
        recipe = read_recipe("fashion-mnist-smoke", [*flags, f"--precision={precision}"])
        fit(recipe, tmp_path / precision, progress=False)
        weights[precision] = load_file(tmp_path / precision / "model.safetensors")
    before = build_network(recipe, 10, 1).state_dict()
    key = "classifier.weight"
    change = (weights["float32"][key] - before[key]).norm().item()
    difference = (weights["float32"][key] - weights["bfloat16"][key]).norm().item()
    assert 0 < difference < 0.1 * change


def test_precision_is_resolved_or_rejected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="float16 needs a CUDA device, not cpu") as raised:
        fit(
            read_recipe("fashion-mnist-smoke", ["--precision=float16", "--device=cpu"]),
            tmp_path / "run",
            progress=False,
        )
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    for supported in (True, False):
        monkeypatch.setattr(
            torch.cpu, "_is_avx512_bf16_supported", lambda supported=supported: supported, raising=False
        )
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
        assert pick_precision("auto", CPU) == ("bfloat16" if supported else "float32")
        with monkeypatch.context() as limited:
            limited.setenv("ONEDNN_MAX_CPU_ISA", "avx512_core")
            assert pick_precision("auto", CPU) == "float32"
    assert pick_precision("auto", torch.device("mps")) == "float32"
    recipe = read_recipe(
        "fashion-mnist-smoke", ["--precision=auto", "--data.max_samples=64", "--epochs=1", "--device=cpu"]
    )
    fit(recipe, tmp_path / "auto", progress=False)
    assert read_run_recipe(tmp_path / "auto").precision == "float32", (
        "the recipe in the folder has the precision that was used"
    )


@pytest.mark.slow
@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("accumulate", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_accumulated_gradients_equal_one_batch(accumulate: int, tmp_path: Path) -> None:
    """Twenty steps in float64: in float32 they amplify the rounding of a gradient to 1e-5 on some processors and to
    5e-4 on others; here that of float64, 1e-16, stays below 1e-9."""
    flags = (
        "--model.name=googlenet_d2l --epochs=5 --data.max_samples=110 --batch_size=32 --optimizer.clip_grad_norm=1"
        " --optimizer.lr=0.1 --device=cpu --model.width_mult=0.5"
    ).split()
    weights, losses = [], []
    for parts in (1, accumulate):
        run = tmp_path / str(parts)
        fit(read_recipe("fashion-mnist-smoke", [*flags, f"--grad_accum_steps={parts}"]), run, progress=False)
        weights.append(load_file(run / "model.safetensors"))
        losses.append([e["loss"] for e in read_metrics(run) if e["split"] == "train"])
    before = build_network(read_run_recipe(run), 10, 1).state_dict()
    assert max((weights[0][key] - before[key]).abs().max().item() for key in before) > 1e-3
    assert max((weights[0][key] - weights[1][key]).abs().max().item() for key in weights[0]) <= 1e-9
    assert losses[1] == pytest.approx(losses[0], abs=1e-9)


@pytest.mark.parametrize("accumulate", ["0", "33"])
def test_invalid_accumulation_is_rejected(accumulate: str) -> None:
    with pytest.raises(ValueError, match="grad_accum_steps must"):
        read_recipe("fashion-mnist-smoke", [f"--grad_accum_steps={accumulate}"])
