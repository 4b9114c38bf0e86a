"""Starting from trained weights: which are loaded, which are new, which are frozen."""

import copy
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

import googlenet
from conftest import SEED
from googlenet.checkpoint.format import Checkpoint, read_run_recipe, write_checkpoint
from googlenet.config.parse import read_recipe
from googlenet.config.schema import DataConfig, LossConfig, ModelConfig, OptimizerConfig, Recipe, SizeConfig
from googlenet.data.loader import Batch, evaluation_batches
from googlenet.data.sources import LoadOptions, load_dataset
from googlenet.errors import InterruptedRunError
from googlenet.evaluation.metrics import classification_metrics, run_inference
from googlenet.training.early_stopping import EarlyStopping
from googlenet.training.finetune import (
    adapt_input_channels,
    freeze_layers,
    init_from_checkpoint,
    load_init_checkpoint,
    resolve_init_options,
    run_preprocess,
    set_train_mode,
)
from googlenet.training.fit import fit
from googlenet.training.metrics_logger import read_metrics
from googlenet.training.optim import build_optimizer
from googlenet.training.setup import resolve_recipe
from googlenet.training.tasks.base import load_options
from googlenet.training.tasks.classification import ClassificationTask, balanced_class_weights
from interruption import signal_at

CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a checkpoint of untrained weights."""

    def make(name: str = "googlenet_bn", channels: int = 1, aux: bool = False) -> Path:
        path = tmp_path_factory.mktemp("weights") / "model.safetensors"
        model = googlenet.create_model(name, 3, channels, aux, pool_mode="same", seed=7).eval()
        preprocess = googlenet.Preprocess(12, channels, (0.3,) * channels, (0.4,) * channels)
        recipe = Recipe(model=ModelConfig(name, aux, "kaiming", 0.1, "same"), size=SizeConfig(train=12))
        write_checkpoint(path, Checkpoint(model, preprocess, CLASSES, recipe, {}))
        return path

    return make


def build(path: Path, classes: tuple[str, ...] = ("x", "y"), channels: int = 1, **model: object) -> googlenet.Recipe:
    recipe = resolve_init_options(Recipe(model=ModelConfig(init_from=str(path), **model), size=SizeConfig(train=None)))
    return init_from_checkpoint(recipe, load_init_checkpoint(recipe), classes, channels)


def test_all_weights_but_the_classifier_are_loaded(weights: Callable[..., Path]) -> None:
    path = weights()
    source, model = googlenet.load(path).model.state_dict(), build(path)
    for key, value in model.state_dict().items():
        if key.startswith("classifier"):
            assert value.shape[0] == 2
        else:
            assert torch.equal(value, source[key]), key
    same = build(path, CLASSES)
    assert torch.equal(same.classifier.weight, source["classifier.weight"]), "equal classes keep the classifier"


def test_unset_options_come_from_the_checkpoint(weights: Callable[..., Path]) -> None:
    recipe = resolve_init_options(Recipe(model=ModelConfig(init_from=str(weights())), size=SizeConfig(train=None)))
    assert (recipe.model.name, recipe.model.pool_mode, recipe.model.dropout) == ("googlenet_bn", "same", 0.1)
    assert recipe.size.train == 12
    assert resolve_init_options(recipe) == recipe
    assert resolve_init_options(Recipe(size=SizeConfig(train=None))).size.train == 224
    assert resolve_init_options(Recipe()).model.name == "googlenet"


@pytest.mark.parametrize(("crop_pct", "interpolation"), [(0.75, "bicubic"), (0.875, "bilinear"), (1.0, "bicubic")])
def test_crop_and_interpolation_come_from_the_checkpoint(tmp_path: Path, crop_pct: float, interpolation: str) -> None:
    """The pixels of a fine-tuned network are those of its initial weights, without an enlargement of stored images."""
    preprocess = googlenet.Preprocess(12, 1, (0.3,), (0.4,), crop_pct=crop_pct, interpolation=interpolation)
    model = googlenet.create_model("googlenet_bn", 3, 1, False, pool_mode="same", seed=7).eval()
    recipe = Recipe(model=ModelConfig("googlenet_bn", False, "kaiming", 0.1, "same"), size=SizeConfig(train=12))
    write_checkpoint(tmp_path / "init.safetensors", Checkpoint(model, preprocess, CLASSES, recipe, {}))
    for label in "xy":
        (tmp_path / "images" / label).mkdir(parents=True)
        noise = torch.randint(0, 256, (64, 48), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(tmp_path / "images" / label / "0.png")
    data_config = DataConfig(source=f"folder:{tmp_path}/images", val_split=0, normalize="pretrained")
    start = ModelConfig(init_from=str(tmp_path / "init.safetensors"))
    recipe = resolve_init_options(Recipe(model=start, data=data_config, size=SizeConfig(train=None)))
    assert (recipe.data.crop_pct, recipe.data.interpolation) == (crop_pct, interpolation)
    data = load_dataset(recipe.data.source, load_options(recipe))
    assert run_preprocess(recipe, data, load_init_checkpoint(recipe), None) == preprocess
    side = round(12 / crop_pct)
    originals = torch.stack([torch.from_numpy(np.array(Image.open(name)))[None] for name in data.train.names])
    squares = originals[:, :, 8:56].float()
    stored = F.interpolate(squares, (side, side), mode=interpolation, antialias=True).clamp(0, 255)
    torch.testing.assert_close(data.train.images.float(), stored, rtol=0, atol=1.01)
    (batch,) = evaluation_batches(data.train, preprocess)
    start_row = (side - 12) // 2
    crop = data.train.images[..., start_row : start_row + 12, start_row : start_row + 12]
    torch.testing.assert_close(batch.images, (crop / 255 - 0.3) / 0.4)
    own = replace(data_config, crop_pct=0.5, interpolation="bilinear")
    recipe = resolve_init_options(Recipe(model=start, data=own, size=SizeConfig(train=None)))
    assert (recipe.data.crop_pct, recipe.data.interpolation) == (0.5, "bilinear")


def test_auxiliary_heads_of_only_one_network(weights: Callable[..., Path]) -> None:
    assert not build(weights(aux=True)).aux_heads
    gained = build(weights(), aux=True)
    assert gained.forward_aux(torch.randn(2, 1, 16, 16)).aux_logits[0].shape == (2, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("had", "channels"), [(1, 3), (3, 1), (3, 3)])
def test_a_gray_image_gives_the_same_map_with_other_channels(
    had: int, channels: int, weights: Callable[..., Path]
) -> None:
    path, gray = weights(channels=had), torch.randn(2, 1, 12, 12)
    old, new = googlenet.load(path).model, build(path, CLASSES, channels).eval()
    with torch.no_grad():
        torch.testing.assert_close(new(gray.repeat(1, channels, 1, 1)), old(gray.repeat(1, had, 1, 1)))
    with pytest.raises(ValueError, match="takes 4 channels and the images have 3"):
        adapt_input_channels(torch.zeros(8, 4, 7, 7), 3)


def test_resolved_recipe_does_not_need_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a network without pool_mode and width_mult."""
    path, choices = tmp_path / "start.safetensors", {"stem_stride": 2, "dropout": 0.3}
    model = googlenet.create_model("bn_inception", 3, 1, **choices).eval()
    recipe = Recipe(model=ModelConfig("bn_inception", **choices), size=SizeConfig(train=12))
    write_checkpoint(path, Checkpoint(model, googlenet.Preprocess(12, 1, (0.3,), (0.4,)), CLASSES, recipe, {}))
    filled = resolve_recipe(Recipe(model=ModelConfig(init_from=str(path)), size=SizeConfig(train=None)))
    assert (filled.model.name, filled.model.stem_stride, filled.model.dropout) == ("bn_inception", 2, 0.3)
    monkeypatch.setattr("googlenet.training.finetune.load", lambda path: pytest.fail("read again"))
    assert resolve_recipe(filled) == filled


def test_mismatches_are_reported(weights: Callable[..., Path], tmp_path: Path) -> None:
    path = weights()
    with pytest.raises(ValueError, match="is a googlenet_bn, the recipe's model.name is googlenet_d2l"):
        build(path, name="googlenet_d2l")
    with pytest.raises(ValueError, match=r"model.init_from: .*no such file"):
        build(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="did you mean stem"):
        build(path, freeze="stam")
    for message, *flags in (
        ("needs model.init_from", "--data.normalize=pretrained"),
        ("validation split", "--early_stopping_patience=2", "--data.val_split=0"),
        ("unknown timm policy", "--augment.auto_augment=randy"),
    ):
        recipe = read_recipe("fashion-mnist-smoke", flags)
        with pytest.raises(ValueError, match=message):
            fit(recipe, tmp_path / "run", progress=False)
        assert not (tmp_path / "run").exists()


def test_frozen_layers_do_not_change_even_after_a_validation() -> None:
    model = googlenet.create_model("googlenet_bn", 3, 1, pool_mode="same")
    freeze_layers(model, "inception_3b")
    set_train_mode(model)
    optimizer = build_optimizer(OptimizerConfig("adamw", lr=0.01, weight_decay=0.1), model)
    before = copy.deepcopy(model.state_dict())
    for _ in range(2):
        loss = F.cross_entropy(model(torch.randn(4, 1, 16, 16)), torch.tensor([0, 1, 2, 0]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run_inference(model, [(torch.randn(2, 1, 16, 16), torch.tensor([0, 1]))], torch.device("cpu"))
    frozen = ("conv1", "conv2", "conv3", "inception_3a", "inception_3b")
    for key, value in model.state_dict().items():
        is_frozen = key.startswith("trunk.") and key.split(".")[1] in frozen
        assert torch.equal(value, before[key]) == is_frozen, key
    freeze_layers(model, "trunk")
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        "classifier.weight",
        "classifier.bias",
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", googlenet.list_models())
def test_the_stem_ends_before_the_first_block(name: str) -> None:
    model = googlenet.create_model(name, 3)
    freeze_layers(model, "stem")
    still = [
        layer for layer, module in model.trunk.named_children() if not any(p.requires_grad for p in module.parameters())
    ]
    learning = [layer for layer, _ in model.trunk.named_children() if layer not in still]
    assert learning[0] in ("inception_3a", "mixed_5b", "inception_a_1")
    assert still[0] == "conv1" and all(layer.startswith(("conv", "pool", "norm", "stem")) for layer in still)


def test_learning_rates_by_depth() -> None:
    model = googlenet.create_model("googlenet_bn", 3, 1, aux=True)
    options = OptimizerConfig(lr=1.0, weight_decay=0.1, trunk_lr_scale=0.5, layer_decay=0.9)
    groups = build_optimizer(options, model).param_groups
    factor = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    for name, expected in (
        ("classifier.weight", 1.0),
        ("aux_heads.inception_4a.fc1.weight", 1.0),
        ("trunk.inception_5b.conv3x3.conv.weight", 0.5),
        ("trunk.inception_5a.conv3x3.norm.bias", 0.5 * 0.9),
        ("trunk.conv1.conv.weight", 0.5 * 0.9**11),
    ):
        assert factor[id(model.get_parameter(name))] == pytest.approx(expected), name
    assert len(factor) == len(list(model.parameters()))
    assert all(group["weight_decay"] == (0.1 if group["params"][0].ndim > 1 else 0) for group in groups)
    assert len(build_optimizer(OptimizerConfig(), model).param_groups) == 2


def test_class_weights_by_hand() -> None:
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    weight = balanced_class_weights(labels, 3)
    torch.testing.assert_close(weight, torch.tensor([10 / 18, 10 / 9, 10 / 3]))
    assert weight[labels].mean().item() == pytest.approx(1)
    model = googlenet.create_model("googlenet_d2l", 3, 1).eval()
    images, some = torch.randn(4, 1, 16, 16), torch.tensor([0, 1, 2, 2])
    logs = model(images).log_softmax(1)
    task = ClassificationTask(LossConfig(), weight)
    by_hand = -(weight[some] * logs[range(4), some]).mean()
    torch.testing.assert_close(task.loss(model, Batch(images, some)).loss, by_hand)
    # Labels as probabilities give the same loss, and mixed ones the mixture.
    torch.testing.assert_close(task.loss(model, Batch(images, F.one_hot(some, 3).float())).loss, by_hand)
    shares = torch.tensor([[0.7, 0.3, 0.0]]).repeat(4, 1)
    result = task.loss(model, Batch(images, shares))
    torch.testing.assert_close(result.loss, -(shares * weight * logs).sum(1).mean())
    assert result.correct == (logs.argmax(1) == 0).sum()
    # Smoothed by 0.3: a tenth of the weighted loss of each of the three classes, and seven tenths of the right one's.
    smoothed = ClassificationTask(LossConfig(label_smoothing=0.3), weight).loss(model, Batch(images, some)).loss
    torch.testing.assert_close(smoothed, 0.7 * by_hand - 0.1 * (weight * logs).sum(1).mean())
    plain = ClassificationTask(LossConfig()).loss(model, Batch(images, some)).loss
    torch.testing.assert_close(plain, F.cross_entropy(model(images), some))


def test_early_stopping_keeps_the_first_of_the_best() -> None:
    model, best = torch.nn.Linear(1, 1), EarlyStopping(2)
    scores = [(0.5, 1.0), (0.7, 0.9), (0.7, 0.8), (0.7, 0.8), (0.6, 0.1)]
    for step, (top1, loss) in enumerate(scores, start=1):
        assert not best.should_stop
        with torch.no_grad():
            model.weight.fill_(float(step))
        best.update({"top1": top1, "loss": loss}, step, model)
    assert best.should_stop
    assert (best.step, best.weights["weight"].item()) == (3, 3.0)
    again = EarlyStopping(2)
    again.load_state_dict(best.state_dict())
    assert again.should_stop and again.step == 3


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, fashion_mnist_folder: Path) -> Path:
    """60 real images of two classes."""
    root = tmp_path_factory.mktemp("photos")
    train = load_dataset("fashion-mnist", LoadOptions(root=str(fashion_mnist_folder), validation=0)).train
    for label, name in ((5, "sandal"), (8, "bag")):
        (root / name).mkdir()
        for row in (train.labels == label).nonzero().flatten()[:30].tolist():
            Image.fromarray(train.images[row, 0].numpy()).save(root / name / f"{row}.png")
    return root


@pytest.mark.slow
def test_interrupted_fine_tuning_ends_with_the_same_best_weights(
    photos: Path, smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [f"--data.source=folder:{photos}", f"--model.init_from={smoke_run}", "--min_steps=30", "--epochs=10",
             "--augment.mixup=0.2", "--augment.cutmix=1.0", "--early_stopping_patience=3",
             "--ema_decay=0.5", "--model.freeze=stem"]  # fmt: skip
    recipe = read_recipe("folder-finetune", flags)
    fitted = fit(recipe, tmp_path / "whole", progress=False)
    signal_at(8, signal.SIGTERM, monkeypatch)
    with pytest.raises(InterruptedRunError):
        fit(recipe, tmp_path / "cut", progress=False)
    # The initial checkpoint is not needed any more.
    monkeypatch.setattr("googlenet.training.finetune.load", lambda path: pytest.fail("read again"))
    again = fit(read_run_recipe(tmp_path / "cut"), tmp_path / "cut", resume=True, progress=False)
    assert again.metrics == fitted.metrics
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    # Resuming a finished run changes nothing and logs no line twice.
    entries = [(e["split"], e["step"], e.get("top1")) for e in read_metrics(tmp_path / "cut")]
    assert (
        fit(read_run_recipe(tmp_path / "cut"), tmp_path / "cut", resume=True, progress=False).metrics == fitted.metrics
    )
    assert [(e["split"], e["step"], e.get("top1")) for e in read_metrics(tmp_path / "cut")] == entries
    run = googlenet.load(tmp_path / "whole")
    assert run.classes == ("bag", "sandal")
    stem = googlenet.load(smoke_run).model.trunk.conv3.state_dict()
    assert all(torch.equal(value, stem[key]) for key, value in run.model.trunk.conv3.state_dict().items())
    # The final metrics are the best validation metrics, and the weights reproduce them.
    seen = [(e["top1"], -e["loss"]) for e in read_metrics(tmp_path / "whole") if e["split"] == "validation"]
    figures = run.metrics["validation"]
    assert (figures["top1"], -figures["loss"]) == max(seen)
    data = load_dataset(f"folder:{photos}", LoadOptions(validation=0.2, size=16, seed=0))
    measured = classification_metrics(
        ClassificationTask(LossConfig()).predict(run.model, data.validation, run.preprocess)
    )
    assert measured["top1"] == figures["top1"]
    assert measured["loss"] == pytest.approx(figures["loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.accuracy
@pytest.mark.cpu
def test_sixty_images_are_enough(photos: Path, smoke_run: Path, tmp_path: Path) -> None:
    """Accuracy on 400 other images of the two classes: the 12 validation images would give steps of 8 points."""
    flags = [f"--data.source=folder:{photos}", f"--model.init_from={smoke_run}", f"--seed={SEED}"]
    recipe = read_recipe("folder-finetune", flags)
    fitted = fit(replace(recipe, min_steps=60), tmp_path / "run", progress=False)
    assert fitted.metrics["validation"]["images"] == 12
    run = googlenet.load(tmp_path / "run")
    test = load_dataset("fashion-mnist", LoadOptions(validation=0)).test
    rows = torch.cat([(test.labels == label).nonzero().flatten()[:200] for label in (8, 5)])
    with torch.no_grad():
        found = run.model(run.preprocess(test.images[rows])).argmax(1)
    right = (found == torch.tensor([0] * 200 + [1] * 200)).double().mean().item()
    print(f"accuracy {right:.4f}")
    # Over five seeds on four kinds of CPU (make test-margins) 0.74 to 0.91; chance is 0.5, sd 0.025.
    assert right >= 0.6


def test_validation_fraction_is_stratified(tmp_path: Path) -> None:
    for name, count in (("many", 20), ("three", 3), ("two", 2), ("one", 1)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.new("L", (8, 8), 9 * number).save(tmp_path / name / f"{number}.png")
    for fraction in (0.05, 0.2, 0.5):
        data = load_dataset(f"folder:{tmp_path}", LoadOptions(validation=fraction, size=8))
        held = torch.bincount(data.validation.labels, minlength=4).tolist()
        kept = torch.bincount(data.train.labels, minlength=4).tolist()
        assert dict(zip(data.classes, held, strict=True))["one"] == 0
        assert min(kept) >= 1
        assert sorted(held)[1] >= 1, f"every class with two images has one in the validation split: {held}"
