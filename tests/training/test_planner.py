"""The plan of a training: a function of counts, speeds and a time; the numbers it is made of; the command."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from conftest import googlenet
from googlenet.checkpoint.format import read_run_recipe
from googlenet.config.parse import read_recipe
from googlenet.config.schema import Recipe
from googlenet.training import own_images
from googlenet.training.own_images import (
    inspect_data,
    measure_networks,
    measure_step,
    plan_training,
    weights_recipe,
    with_values,
)
from googlenet.training.planner import (
    LADDER,
    DataFacts,
    Network,
    candidates,
    choose_network,
    epochs_within,
    min_epochs,
    plan,
)

FACTS = DataFacts(1000, 150, 300, 10, 3, 80, 120, 256)


def speeds_of(seconds_per_image: float) -> dict[Network, float]:
    """Return speeds in proportion to the pixels and the channels; `seconds_per_image` is that of the largest."""
    largest = LADDER[-1]
    cost = {network: network.size**2 * network.width_mult**2 for network in LADDER}
    return {network: seconds_per_image * cost[network] / cost[largest] for network in LADDER}


facts = st.builds(
    DataFacts,
    num_train=st.integers(2, 10**7),
    num_validation=st.integers(0, 10**5),
    num_test=st.integers(0, 10**5),
    num_classes=st.integers(2, 1000),
    channels=st.sampled_from([1, 3, 4]),
    smallest_class=st.integers(0, 100),
    largest_class=st.integers(100, 10**6),
    median_side=st.integers(1, 5000),
)


@given(facts=facts, cost=st.floats(1e-4, 1.0), seconds=st.floats(5, 10**5))
def test_plan_fits_the_images_and_the_time(facts: DataFacts, cost: float, seconds: float) -> None:
    speeds = {n: s for n, s in speeds_of(cost).items() if n in candidates(facts)}
    values, lines = plan(facts, speeds, seconds)
    assert len(lines) == 5 and all("\n" not in line for line in lines)
    network = Network(values["size.train"], values["model.width_mult"])  # type: ignore[arg-type]
    assert network.size <= max(32, 1.25 * facts.median_side)
    # Training and the evaluations take the time, unless not even one image can be trained.
    evaluation = 0.4 * (facts.num_test + 10 * facts.num_validation)
    images = float(values["epochs"]) * facts.num_train  # type: ignore[arg-type]
    assert images <= max(seconds / speeds[network] - evaluation, 1) + 0.01 * facts.num_train, "rounded to two digits"


@pytest.mark.parametrize("seconds", [1.0, 600.0])
@pytest.mark.parametrize("num_train", [2, 10**7])
def test_every_plan_is_a_recipe(num_train: int, seconds: float) -> None:
    chosen = plan(FACTS._replace(num_train=num_train), speeds_of(0.02), seconds)
    recipe = with_values(read_recipe("folder"), chosen.values)
    assert recipe.size.sizes[0] == chosen.values["size.train"]
    assert recipe.epochs > 0 and recipe.batch_size == (32 if num_train == 2 else 128)


@given(facts=facts, cost=st.floats(1e-4, 1.0), seconds=st.floats(5, 10**5), more=st.floats(1, 20))
def test_more_time_never_means_a_cheaper_network(facts: DataFacts, cost: float, seconds: float, more: float) -> None:
    speeds = {n: s for n, s in speeds_of(cost).items() if n in candidates(facts)}
    first, second = (speeds[choose_network(facts, speeds, time)] for time in (seconds, seconds * more))
    assert second >= first


def test_the_largest_network_that_trains_enough_epochs() -> None:
    speeds = speeds_of(0.02)
    for seconds in (10, 100, 1000, 10_000):
        chosen = choose_network(FACTS, speeds, seconds)
        larger = [network for network in speeds if speeds[network] > speeds[chosen]]
        assert all(epochs_within(FACTS, speeds[network], seconds) < min_epochs(FACTS, network) for network in larger)
        affordable = epochs_within(FACTS, speeds[chosen], seconds) >= min_epochs(FACTS, chosen)
        assert affordable or chosen == LADDER[0]


def test_small_images_are_not_enlarged() -> None:
    assert {network.size for network in candidates(FACTS._replace(median_side=40))} == {32, 48}
    assert candidates(FACTS._replace(median_side=8)) == [LADDER[0]]
    assert {network.size for network in candidates(FACTS, size=72)} == {72}
    assert {network.width_mult for network in candidates(FACTS, width_mult=0.3)} == {0.3}


def test_imbalanced_classes_are_weighted() -> None:
    speeds = {LADDER[0]: 0.001}
    assert plan(FACTS, speeds, 60).values["loss.class_weights"] == "none"
    weighted = plan(FACTS._replace(smallest_class=5), speeds, 60)
    assert weighted.values["loss.class_weights"] == "balanced"
    assert "classes weighted (largest/smallest class 24.0)" in weighted.lines[4]


def test_measuring_stops_at_a_network_that_is_too_slow() -> None:
    speeds, measured = speeds_of(0.02), list[Network]()

    def measure(recipe: Recipe, _: DataFacts) -> float:
        measured.append(Network(recipe.size.sizes[0], recipe.model.width_mult or 0))
        return speeds[measured[-1]]

    found = measure_networks(read_recipe("folder"), FACTS, 200.0, set(), measure)
    assert list(found) == measured == list(LADDER[: len(measured)])
    assert epochs_within(FACTS, found[measured[-1]], 200.0) < min_epochs(FACTS, measured[-1])
    assert all(epochs_within(FACTS, found[network], 200.0) >= min_epochs(FACTS, network) for network in measured[:-1])
    assert len(measured) < len(LADDER)


def write_photos(root: Path, sizes: tuple[int, int] = (40, 24), color: bool = True) -> Path:
    """Write two classes that differ in color, 12 and 6 training images, and 4 test images of each."""
    generator = torch.Generator().manual_seed(0)
    for split, counts in (("train", (12, 6)), ("test", (4, 4))):
        for label, count in zip(("dark", "light"), counts, strict=True):
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(100, (sizes[1], sizes[0], 3), generator=generator) + 150 * (label == "light")
                image = Image.fromarray(pixels.to(torch.uint8).numpy())
                (image if color else image.convert("L")).save(root / split / label / f"{number}.png")
    return root


def test_facts_of_a_folder(tmp_path: Path) -> None:
    recipe = read_recipe("folder", [f"--data.source=folder:{write_photos(tmp_path / 'photos')}"])
    # 15 % of 18 images and at least one of each class are held out: 3.
    assert inspect_data(recipe) == DataFacts(15, 3, 8, 2, 3, 5, 10, 24)
    gray = read_recipe("folder", [f"--data.source=folder:{write_photos(tmp_path / 'gray', color=False)}"])
    assert inspect_data(gray).channels == 1


def test_measured_step_is_positive() -> None:
    recipe = with_values(read_recipe("folder"), {"size.train": 16, "model.width_mult": 0.25, "batch_size": 4})
    assert 0 < measure_step(recipe, FACTS) < 60


def test_flags_of_the_user_are_kept(tmp_path: Path) -> None:
    source = f"--data.source=folder:{write_photos(tmp_path / 'photos')}"
    recipe = read_recipe("folder", [source, "--size.train=40", "--batch_size=4"])
    planned, chosen, _ = plan_training(recipe, {"size.train", "batch_size"}, lambda: 30.0, lambda *_: 0.001)
    assert (planned.size.train, planned.batch_size, planned.auto_plan) == (40, 4, False)
    assert planned.budget_minutes == pytest.approx(9.5)
    assert planned.model.width_mult == chosen.values["model.width_mult"]
    assert "40 px" in chosen.lines[2]


def test_weights_bring_their_network() -> None:
    planned = with_values(read_recipe("folder"), {"size.train": 64, "model.width_mult": 0.5, "auto_plan": False})
    recipe = weights_recipe(planned, "runs/first", {"size.train"})
    assert (recipe.model.init_from, recipe.model.freeze, recipe.data.normalize) == ("runs/first", "auto", "pretrained")
    assert (recipe.model.name, recipe.model.width_mult, recipe.size.train) == (None, None, 64)


def command(photos: Path, out: Path, *flags: Any) -> Any:
    return googlenet("train", "folder", "--data", photos, "--minutes", "0.2", "--out", out, *flags)


@pytest.mark.slow
def test_command_with_weights(tmp_path: Path, trained: Any) -> None:
    """Folder to weights in 0.3 minutes: the plan is printed and stored, and both starts are compared."""
    photos = write_photos(tmp_path / "photos")
    weights = trained("fashion-mnist-smoke")
    done = command(photos, tmp_path / "run", "--minutes", "0.3", "--weights", weights, "--json")
    assert done.code == 0, done.err
    plan_lines = (tmp_path / "run" / "plan.txt").read_text().splitlines()
    assert plan_lines == done.json["plan"] and all(line in done.err for line in plan_lines)
    assert [line.partition(":")[0] for line in plan_lines[:5]] == [
        "data", "speed", "network", "training", "regularization"
    ]  # fmt: skip
    assert plan_lines[5].startswith("start from weights: validation") and plan_lines[7].startswith("better start: ")
    assert done.json["metrics"]["test"]["images"] == 8
    recipe = read_run_recipe(tmp_path / "run")
    assert not recipe.auto_plan and recipe.budget_minutes and recipe.budget_minutes < 0.3
    assert json.loads((tmp_path / "run" / "budget.json").read_text())["num_eval_images"] == 11


@pytest.mark.slow
def test_invalid_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = write_photos(tmp_path / "photos")
    (tmp_path / "train" / "only").mkdir(parents=True)
    cases: list[tuple[list[Any], str]] = [
        (["folder", "--data", tmp_path / "none", "--minutes", 1], "unknown data source"),
        (["folder", "--data", tmp_path / "train", "--minutes", 1], "class"),
        (["folder", "--data", photos, "--minutes", "null"], "auto_plan needs budget_minutes"),
        (["folder", "--data", photos, "--task", "detection"], "auto_plan is for classification"),
        (["folder", "--data", photos, "--minutes", "1e-9"], "reading the images took"),
        (["fashion-mnist-smoke", "--weights", "runs/first"], "--weights needs a recipe that plans"),
        (["folder", "--data", photos, "--weights", tmp_path / "missing"], "model.init_from:"),
        (["folder", "--data", photos, "--weights", "x", "--data.val_split=0"], "compares on validation images"),
    ]
    monkeypatch.setattr(own_images.plan_training, "__defaults__", (lambda *_: 0.001,))
    for arguments, message in cases:
        done = googlenet("train", *arguments, "--out", tmp_path / "run")
        last = done.err.strip().splitlines()[-1]
        assert done.code in (1, 2), message
        assert message in last, done.err
        assert not (tmp_path / "run").exists()


def test_costly_networks_train_longer() -> None:
    """Twelve epochs up to the reference; above it by the ratio of the multiply-adds, 4 for (128, 0.75), to 0.75."""
    large = FACTS._replace(num_train=3000)
    epochs = [min_epochs(large, network) for network in LADDER]
    assert epochs == sorted(epochs)
    assert epochs[:5] == [12.0] * 5
    assert min_epochs(large, Network(128, 0.75)) == pytest.approx(12 * 4**0.75)
