"""What is frozen: the rule on probe accuracies, the measurement on similar and other images, resumed runs."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import googlenet
from conftest import Trained
from conftest import googlenet as googlenet_command
from googlenet.checkpoint.format import read_run_recipe
from googlenet.config.parse import read_recipe
from googlenet.data.sources import LoadOptions, load_dataset
from googlenet.training.fit import fit
from googlenet.training.similarity import LayerProbe, choose_freeze, resolve_freeze


def probes(trained: list[float], untrained: list[float]) -> list[LayerProbe]:
    names = [f"layer{number}" for number in range(len(trained))]
    return [LayerProbe(*row) for row in zip(names, trained, untrained, strict=True)]


@pytest.mark.parametrize(
    ("trained", "untrained", "count", "expected"),
    [
        # Accuracy rises up to the third layer. A standard error of 0.9 of 100 images is 0.03.
        ([0.6, 0.8, 0.9, 0.91, 0.85], [0.5, 0.5, 0.5, 0.5, 0.5], 100, "layer2"),
        # No better than untrained layers: the images are not similar.
        ([0.5, 0.6, 0.55], [0.5, 0.58, 0.6], 100, "none"),
        # The first layer is as good as all others.
        ([0.9, 0.9, 0.9], [0.5, 0.5, 0.5], 100, "layer0"),
        # Twelve images do not distinguish 0.83 from 0.75.
        ([0.83, 0.83], [0.75, 0.75], 12, "none"),
        ([1.0, 1.0], [0.5, 0.5], 12, "layer0"),
    ],
)
def test_rule(trained: list[float], untrained: list[float], count: int, expected: str) -> None:
    assert choose_freeze(probes(trained, untrained), count) == expected


rates = st.lists(st.floats(0, 1), min_size=1, max_size=8)


@given(trained=rates, count=st.integers(1, 500))
def test_nothing_is_frozen_that_an_untrained_network_has_too(trained: list[float], count: int) -> None:
    assert choose_freeze(probes(trained, trained), count) == "none"
    assert choose_freeze(probes(trained, [1.0] * len(trained)), count) == "none"


def write_dark_and_light(root: Path) -> Path:
    """Write two classes that the mean of the pixels separates, and so does every layer, trained or not."""
    generator = torch.Generator().manual_seed(0)
    for label in range(2):
        (root / str(label)).mkdir(parents=True)
        for number in range(20):
            pixels = torch.randint(100, (16, 16), generator=generator) + 150 * label
            Image.fromarray(pixels.to(torch.uint8).numpy()).save(root / str(label) / f"{number}.png")
    return root


@pytest.mark.slow
def test_nothing_is_frozen_for_simple_images_and_a_run_keeps_the_decision(smoke_run: Path, tmp_path: Path) -> None:
    """No layer exceeds an untrained one, which is perfect, too. The recipe of the run has the result."""
    photos = write_dark_and_light(tmp_path / "photos")
    flags = [f"--data.source=folder:{photos}", f"--model.init_from={smoke_run}", "--min_steps=1", "--epochs=1",
             "--data.val_split=0.5", "--tracker=none"]  # fmt: skip
    recipe = read_recipe("folder-finetune", flags)
    assert recipe.model.freeze == "auto"
    fit(recipe, tmp_path / "run", progress=False)
    assert read_run_recipe(tmp_path / "run").model.freeze == "none"
    fit(recipe, tmp_path / "run", resume="auto", progress=False)
    with pytest.raises(ValueError, match="another recipe"):
        fit(replace(recipe, seed=1), tmp_path / "run", resume="auto", progress=False)


def test_decisions_without_a_measurement(smoke_run: Path) -> None:
    recipe = read_recipe("fashion-mnist-smoke", ["--model.freeze=auto"])
    data = load_dataset("fashion-mnist", LoadOptions(validation=4, max_samples=4))
    resolved, notes = resolve_freeze(recipe, data, None)
    assert (resolved.model.freeze, notes) == ("none", ["frozen up to: none (there are no weights to start from)"])
    resolved, notes = resolve_freeze(recipe, data, googlenet.load(smoke_run))
    assert resolved.model.freeze == "none" and "needs 10 images" in notes[0]
    named = replace(recipe, model=replace(recipe.model, freeze="stem"))
    assert resolve_freeze(named, data, None) == (named, [])


def test_detection_cannot_measure(tmp_path: Path) -> None:
    done = googlenet_command("train", "scenes-smoke", "--model.freeze", "auto", "--out", tmp_path / "run")
    assert done.code == 1
    assert (
        done.err.strip()
        .splitlines()[-1]
        .endswith("model.freeze: auto needs task: classification; name none, stem, trunk or a layer")
    )


@pytest.mark.slow
@pytest.mark.accuracy
def test_similar_images_freeze_layers(trained: Trained, tmp_path: Path) -> None:
    """Weights of Fashion-MNIST for other images of Fashion-MNIST: probes on its layers are far above untrained ones."""
    run = trained("fashion-mnist-fast", "--epochs=0.25", "--model.width_mult=0.25", "--data.val_split=1000")
    recipe = read_recipe("fashion-mnist-fast", [f"--model.init_from={run}", "--model.freeze=auto", "--size.train=28"])
    data = load_dataset("fashion-mnist", LoadOptions(validation=400, max_samples=400, size=28))
    from googlenet.training.finetune import load_init_checkpoint, resolve_init_options

    recipe = resolve_init_options(replace(recipe, model=replace(recipe.model, name=None, pool_mode=None, dropout=None)))
    resolved, notes = resolve_freeze(recipe, data, load_init_checkpoint(recipe))
    assert resolved.model.freeze not in ("none", "stem"), notes
