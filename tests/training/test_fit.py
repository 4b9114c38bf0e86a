"""Complete runs: their files, exact resumption, and interruption."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file

import googlenet
import interruption
from conftest import SEED, Trained
from conftest import googlenet as googlenet_command
from googlenet.checkpoint.format import read_run_recipe
from googlenet.config.parse import read_recipe
from googlenet.config.schema import ModelConfig, OptimizerConfig, Recipe, SizeConfig
from googlenet.data.dataset import Dataset
from googlenet.data.sources import LoadOptions, load_dataset
from googlenet.devices import pick_device
from googlenet.errors import InterruptedRunError, NonFiniteLossError
from googlenet.evaluation.metrics import classification_metrics
from googlenet.kernels import autograd_functions, build, sgd
from googlenet.training import distributed, setup
from googlenet.training.fit import fit
from googlenet.training.metrics_logger import read_metrics
from googlenet.training.optim import build_ema, build_optimizer
from googlenet.training.optim.normalized_sgd import scale_to_weight_norm
from googlenet.training.tasks.classification import ClassificationTask
from interruption import CHECKPOINT_EVERY_STEP, Crash, raise_at, signal_at
from model_selection import mark_slow_models

# Options with a random state or a moving average of their own.
ALL_STATE = (
    "--ema_decay=0.9 --model.dropout=0.3 --model.aux=true --augment.translate=2 --size.schedule=random"
    " --size.train=[16,20] --optimizer.clip_grad_norm=1 --epochs=3 --data.max_samples=384 --model.width_mult=0.25"
).split()


@pytest.fixture(scope="module")
def uninterrupted(trained: Trained) -> Path:
    return trained("fashion-mnist-smoke", *ALL_STATE)


@pytest.mark.parametrize(
    "point",
    [
        *(pytest.param(p, marks=pytest.mark.slow) for p in ("7:during", "1:after")),
        *(pytest.param(p, marks=pytest.mark.release) for p in ("10:step", "14:before")),
    ],
)
def test_crashed_run_resumes_to_the_same_weights(
    point: str, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        raise_at(point, patched)
        with pytest.raises(Crash):
            fit(read_recipe("fashion-mnist-smoke", [*ALL_STATE, CHECKPOINT_EVERY_STEP]), run, progress=False)
    check_resumed_run(run, point, uninterrupted)


@pytest.mark.slow
def test_killed_run_resumes_to_the_same_weights(uninterrupted: Path, tmp_path: Path) -> None:
    """A real SIGKILL while the state is written, so that no cleanup code runs."""
    run, point = tmp_path / "run", "9:during"
    command = [sys.executable, interruption.__file__, point, "0", "train", "fashion-mnist-smoke"]
    process = subprocess.run([*command, *ALL_STATE, CHECKPOINT_EVERY_STEP, "--out", str(run)], capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert list(run.glob(".state.pt.*")), "the crash was between writing and renaming"
    check_resumed_run(run, point, uninterrupted)


# Each has a state of its own, or batches that are computed in slices.
RESUMED = {
    "timm, accumulation": "--augment.auto_augment=rand-m5 --augment.random_erasing=0.4 --grad_accum_steps=2",
    "mixup, early stopping": "--augment.mixup=0.3 --augment.cutmix=1 --grad_accum_steps=2 --early_stopping_patience=4",
    "normalized sgd, ema": "--optimizer.name=normalized_sgd --optimizer.lr=0.01 --ema_decay=0.9",
    "muon, early stopping": "--optimizer.name=muon --optimizer.lr=0.01 --early_stopping_patience=3 --ema_decay=0.8",
}


@pytest.mark.parametrize("options", mark_slow_models(RESUMED, ("timm, accumulation",)))
@pytest.mark.parametrize("point", ["5:during", pytest.param("3:step", marks=pytest.mark.release)])
def test_every_option_resumes_to_the_same_weights(
    point: str, options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [
        *RESUMED[options].split(),
        *"--epochs=4 --data.max_samples=64 --batch_size=32 --eval_every_epochs=1 --model.dropout=0.2".split(),
        "--model.width_mult=0.25",
    ]
    recipe = read_recipe("fashion-mnist-smoke", [*flags, CHECKPOINT_EVERY_STEP])
    fit(recipe, tmp_path / "uninterrupted", progress=False)
    with monkeypatch.context() as patched:
        raise_at(point, patched)
        with pytest.raises(Crash):
            fit(recipe, tmp_path / "run", progress=False)
    fit(read_run_recipe(tmp_path / "run"), tmp_path / "run", resume=True, progress=False)
    expected, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("uninterrupted", "run"))
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[key]) for key, value in expected.items())
    states = [torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("uninterrupted", "run")]
    assert states[0]["step"] == states[1]["step"] > 5
    assert str(states[0]["early_stopping"]) == str(states[1]["early_stopping"])


def check_resumed_run(run: Path, point: str, uninterrupted: Path) -> None:
    """Resume a crashed run and compare weights, metrics and log with the uninterrupted run."""
    step, phase = point.split(":")
    assert _steps_done(run) == int(step) - (phase != "after"), "the last complete state"
    done = googlenet_command("train", "--resume", run, "--json")
    assert done.code == 0, done.err
    expected, resumed = (load_file(r / "model.safetensors") for r in (uninterrupted, run))
    assert expected.keys() == resumed.keys()
    for key, value in expected.items():
        assert torch.equal(value, resumed[key]), f"{key} differs after a crash at {point}"
    assert done.json["top1"] == _final(uninterrupted)
    steps_written = [e["step"] for e in read_metrics(run) if e["split"] == "train"]
    assert steps_written == sorted(set(steps_written)), "no step is logged twice"


def _steps_done(run: Path) -> int:
    """Return the steps of the last saved state, from the file."""
    return int(torch.load(run / "state.pt", weights_only=True)["step"])


def _final(run: Path) -> float:
    return next(e["top1"] for e in read_metrics(run) if e["split"] == "test")


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_the_state_and_stop(kind: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    signal_at(3, kind, monkeypatch)
    done = googlenet_command("train", "fashion-mnist-smoke", "--epochs=200", "--out", run)
    lines = done.err.strip().splitlines()
    assert done.code == 130
    assert "stopped at step 3 " in lines[-1] and "everything is saved" in lines[-1]
    assert f"--resume {run}" in lines[-1]
    assert "Traceback" not in done.err
    assert _steps_done(run) == 3
    assert googlenet.load(run).classes[0] == "T-shirt/top"
    assert not list(run.glob(".*")), "no partial file is left"


def test_files_of_a_run_folder(smoke_run: Path) -> None:
    names = {"recipe.yaml", "model.safetensors", "state.pt", "metrics.jsonl", "report.html", "environment.json"}
    assert names <= {p.name for p in smoke_run.iterdir()}
    assert list((smoke_run / "tensorboard").glob("events*"))
    splits = [entry["split"] for entry in read_metrics(smoke_run)]
    assert splits.count("test") == 1
    assert splits.count("validation") == 2
    train = next(e for e in read_metrics(smoke_run) if e["split"] == "train")
    assert {"loss", "accuracy", "learning_rate", "size", "images_per_second", "seconds", "epoch"} <= train.keys()
    environment = json.loads((smoke_run / "environment.json").read_text())
    assert environment["command"].startswith("googlenet train fashion-mnist-smoke")


def test_loaded_weights_reproduce_the_recorded_metrics(smoke_run: Path, fashion_mnist_folder: Path) -> None:
    checkpoint = googlenet.load(smoke_run)
    data = load_dataset("fashion-mnist", LoadOptions(root=str(fashion_mnist_folder), validation=5000, max_samples=1000))
    outputs = ClassificationTask(checkpoint.recipe.loss).predict(checkpoint.model, data.test, checkpoint.preprocess)
    assert classification_metrics(outputs) == pytest.approx(checkpoint.metrics["test"], rel=1e-6)
    assert not checkpoint.model.training
    resolved, given = checkpoint.recipe, read_recipe("fashion-mnist-smoke")
    assert (resolved.model.init, resolved.model.dropout, resolved.size.eval) == ("kaiming", 0.4, 16), (
        "all options are resolved"
    )
    assert replace(resolved, model=given.model, size=given.size) == given


@pytest.mark.slow
def test_resuming_with_other_images_fails(smoke_run: Path, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        for number in range(6):
            Image.new("L", (20, 20), 40 * number).save(root / label / f"{number}.png")
    # Images of one color and batches of 4 have no variance: at the recipe's rate rounding decides whether it diverges.
    flags = [
        f"--data.source=folder:{root}",
        "--data.val_split=2",
        "--epochs=1",
        "--batch_size=4",
        "--optimizer.lr=1e-4",
    ]
    recipe = read_recipe("fashion-mnist-smoke", flags)
    fit(recipe, tmp_path / "run", progress=False)
    recipe = read_run_recipe(tmp_path / "run")
    fit(recipe, tmp_path / "run", resume=True, progress=False)
    (root / "a" / "5.png").unlink()
    with pytest.raises(ValueError, match="not those"):
        fit(recipe, tmp_path / "run", resume=True, progress=False)


def test_non_finite_weights_after_the_last_step(tmp_path: Path) -> None:
    """A single step: its loss is finite, but the weights after it are not."""
    flags = [
        "--optimizer.lr=1e30",
        "--model.name=googlenet_d2l",
        "--epochs=1",
        "--data.max_samples=64",
        "--schedule.warmup_fraction=0",
    ]
    with pytest.raises(NonFiniteLossError, match="validation loss is nan after step 1"):
        fit(read_recipe("fashion-mnist-smoke", flags), tmp_path / "run", progress=False)
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_ema_by_hand() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    average = build_ema(model, 0.5)
    expected = None
    for count in range(6):
        with torch.no_grad():
            model[0].weight.fill_(float(count))
        average.update_parameters(model)
        decay = min(0.5, (1 + count) / (10 + count))
        expected = float(count) if expected is None else decay * expected + (1 - decay) * count
    torch.testing.assert_close(average.module[0].weight, torch.full((2, 3), expected))
    assert average.module[1].num_batches_tracked.dtype == torch.int64


def test_gradients_are_scaled_to_weight_norms() -> None:
    model = googlenet.create_model("googlenet_bn", 10, 1)
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.randn_like(parameter) * 10.0 ** -(number % 5)
    scale_to_weight_norm(model.parameters())
    for parameter in model.parameters():
        norm = max(1.0, parameter.norm().item()) if parameter.ndim > 1 else 1.0
        assert parameter.grad.norm().item() == pytest.approx(norm, rel=1e-3)


def test_seed_determines_the_weights(tmp_path: Path) -> None:
    recipe = read_recipe("fashion-mnist-smoke", ["--data.max_samples=256", "--epochs=1"])
    weights = []
    for number, seed in enumerate((1, 1, 2)):
        torch.manual_seed(number)
        fit(replace(recipe, seed=seed), tmp_path / str(number), progress=False)
        weights.append(load_file(tmp_path / str(number) / "model.safetensors"))
    key = "trunk.inception_4a.conv3x3.conv.weight"
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert not torch.equal(weights[0][key], weights[2][key])


def test_divergence_names_its_first_step(tmp_path: Path) -> None:
    recipe = read_recipe("fashion-mnist-smoke", ["--optimizer.lr=1e30", "--model.name=googlenet_d2l"])
    with pytest.raises(NonFiniteLossError, match=r"at step (\d+);") as raised:
        fit(recipe, tmp_path / "run", progress=False)
    reported = int(str(raised.value).split("at step ")[1].split(";")[0])
    # By hand: the same steps, one by one.
    from googlenet.checkpoint.format import build_network
    from googlenet.data.augment import Augment
    from googlenet.data.loader import full_batch_spec, training_batch
    from googlenet.data.preprocess import Preprocess
    from googlenet.training.schedules import learning_rate_factor

    data = load_dataset("fashion-mnist", LoadOptions(validation=5000, max_samples=1000))
    model = build_network(recipe, 10, 1)
    optimizer = build_optimizer(recipe.optimizer, model)
    for step in range(32):
        for group in optimizer.param_groups:
            group["lr"] = recipe.optimizer.lr * learning_rate_factor(recipe.schedule, step, 32, 16)
        spec = full_batch_spec(len(data.train.labels), 64, step=step, size=16, seed=0)
        batch = training_batch(data.train, Preprocess(16, 1, data.mean, data.std), Augment("random", 1), spec)
        loss = ClassificationTask(recipe.loss).loss(model, batch).loss
        if not torch.isfinite(loss):
            assert step + 1 == reported
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    else:
        pytest.fail("never diverged by hand")


@pytest.mark.accuracy
@pytest.mark.cpu
def test_learns_and_measures_the_validation_split(tmp_path: Path) -> None:
    recipe = read_recipe("fashion-mnist-smoke", ["--epochs=6", f"--seed={SEED}"])
    result = fit(recipe, tmp_path / "run", progress=False)
    assert result.metrics["validation"]["images"] == 1000
    losses = [e["loss"] for e in read_metrics(tmp_path / "run") if e["split"] == "train"]
    print(f"accuracy {result.metrics['test']['top1']:.4f}, loss down by {losses[0] - losses[-1]:.3f}")
    # Six epochs of 1,000 tiny images. Over five seeds on four kinds of CPU (make test-margins): 0.56 to 0.68, and
    # by 1.36 to 1.65; chance is 0.1, and 0.
    assert result.metrics["test"]["top1"] > 0.45
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("name", ["sgd", "adamw", "rmsprop"])
def test_optimizers_decay_weights_only(name: str) -> None:
    model = googlenet.create_model("googlenet_bn", 3, 1)
    optimizer = build_optimizer(OptimizerConfig(name, lr=0.5, weight_decay=0.1), model)
    weight, norm_weight = model.trunk.conv1.conv.weight, model.trunk.conv1.norm.weight
    before = weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.equal(norm_weight, torch.ones_like(norm_weight))
    assert not torch.equal(weight, before)
    if name != "rmsprop":  # rmsprop rescales the decay like any gradient
        torch.testing.assert_close(weight, before * (1 - 0.5 * 0.1))


def test_auxiliary_losses_are_weighted() -> None:
    from googlenet.data.loader import Batch

    recipe = Recipe(model=ModelConfig("googlenet", aux=True), size=SizeConfig(train=64))
    model = googlenet.create_model("googlenet", 5, 1, aux=True).eval()
    batch = Batch(torch.randn(4, 1, 64, 64), torch.tensor([0, 1, 2, 3]))
    main, aux = model.forward_aux(batch.images)
    cross_entropy = torch.nn.functional.cross_entropy
    by_hand = cross_entropy(main, batch.labels) + 0.3 * sum(cross_entropy(a, batch.labels) for a in aux)
    torch.testing.assert_close(ClassificationTask(recipe.loss).loss(model, batch).loss, by_hand)


def test_used_folders_and_other_recipes_are_rejected(smoke_run: Path, tmp_path: Path) -> None:
    recipe = read_recipe("fashion-mnist-smoke")
    with pytest.raises(ValueError, match="--resume"):
        fit(recipe, smoke_run, progress=False)
    with pytest.raises(ValueError, match="another recipe"):
        fit(replace(read_run_recipe(smoke_run), epochs=9), smoke_run, resume=True, progress=False)
    with pytest.raises(ValueError, match="not a run"):
        fit(recipe, tmp_path, resume=True, progress=False)
    with pytest.raises(ValueError, match="is not available"):
        pick_device("cuda" if not torch.cuda.is_available() else "tpu")
    assert issubclass(InterruptedRunError, RuntimeError)
    assert os.path.isdir(smoke_run)


@pytest.mark.parametrize("optimizer", ["sgd", "normalized_sgd"])
def test_a_run_on_another_device_compiles_no_kernels(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The meta device stands for a GPU; the steps are not computed."""
    for module in (build, sgd, autograd_functions):
        monkeypatch.setattr(module, "load_kernels", lambda: pytest.fail("compiled"))
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(type(accelerator), "device", torch.device("meta"))
    monkeypatch.setattr(type(accelerator), "prepare", lambda self, *modules, **_: modules)
    monkeypatch.setattr(distributed, "init_distributed", lambda *_: accelerator)
    monkeypatch.setattr(setup, "pick_device", lambda name: torch.device("meta"))
    monkeypatch.setattr(Dataset, "to", lambda self, device: self)
    flags = ["--data.max_samples=64", f"--optimizer.name={optimizer}"]
    run, state = setup.build_training_run(read_recipe("fashion-mnist-smoke", flags), tmp_path / "run", False, None)
    assert not run.native_kernels
    assert next(state.model.parameters()).device.type == "meta"
    assert not any(getattr(module, "use_cpu_kernels", False) for module in state.model.modules())
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["native_kernels"] is False
    saved = state.state_dict() | {"random": [{"cpu": None, "device": None}], "native_kernels": False}
    assert setup.restore(state, saved, False, torch.device("cpu")) == [], "no warning on another machine with a GPU"
