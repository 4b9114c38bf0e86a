"""Recipes: every shipped one, round trips, and what a slip of the hand is answered with."""

from pathlib import Path

import pytest
import yaml

from googlenet.training.recipe import Recipe
from googlenet.training.recipe_file import list_recipes, read_recipe, recipe_folder, recipe_from_dict


@pytest.mark.parametrize("name", list_recipes())
def test_shipped_recipes_are_valid_and_say_what_they_cost(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe_from_dict(yaml.safe_load(recipe.to_yaml())) == recipe
    header = (recipe_folder() / f"{name}.yaml").read_text().split("\nmodel:")[0]
    assert f"googlenet train {name}" in header


def test_the_chapters_recipe_is_the_chapters() -> None:
    recipe = read_recipe("fashion-mnist-d2l")
    assert recipe.model.name == "googlenet_d2l"
    assert (recipe.size.kind, recipe.size.sizes, recipe.epochs, recipe.batch_size) == ("fixed", (96,), 10, 128)
    assert (recipe.optimiser.name, recipe.optimiser.lr, recipe.optimiser.momentum) == ("sgd", 0.1, 0)
    assert (recipe.optimiser.weight_decay, recipe.schedule.name, recipe.loss.label_smoothing) == (0, "constant", 0)
    assert (recipe.data.normalise, recipe.data.validation, recipe.augment.flip) == ("none", 0, "none")


def test_flags_replace_values(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("epochs: 3\noptimiser: {lr: 0.5, momentum: 0.9}\n")
    recipe = read_recipe(str(path), ["--optimiser.lr", "0.25", "--size.train=[28,32]", "--size.kind", "random"])
    assert recipe.epochs == 3
    assert (recipe.optimiser.lr, recipe.optimiser.momentum) == (0.25, 0.9)
    assert recipe.size.train == (28, 32)
    assert read_recipe(str(path), ["--ema", "null"]) == read_recipe(str(path))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--optimizer.lr", "1"], "did you mean optimiser.lr"),
        (["--epoch", "1"], "did you mean epochs"),
        (["--epochs", "many"], "epochs"),
        (["--epochs", "0"], "epochs must be above 0"),
        (["--epochs"], "epochs"),
        (["--model.pools", "square"], "ceil"),
        (["--schedule.name", "linear"], "one_cycle"),
        (["--optimiser.lr", "-1"], "above 0"),
        (["--size.train", "[24,28]"], "progressive, random or progressive_random"),
        (["--size.train", "[]"], "size.train"),
        (["--size.train", "28,32"], r"a whole number or a list such as \[28,32\] or null, not 28,32"),
        (["--ema", "much"], "ema takes a number or null, not much"),
        (["--loss.label_smoothing", "1"], "label_smoothing"),
        (["--optimiser.nesterov", "true"], "momentum"),
        (["stray"], "stray"),
    ],
)
def test_wrong_flags_get_one_clear_line(flags: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said) as raised:
        read_recipe("fashion-mnist-d2l", flags)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("epochs: [", "not YAML"),
        ("just text", "mapping"),
        ("", "mapping"),
        ("lr: 0.1", "no recipe has the key 'lr'"),
        ("optimiser: {learning_rate: 1}", "optimiser.learning_rate"),
        ("epochs: many", "epochs"),
        ("optimiser: 3", "optimiser"),
        ("optimiser: {lr: fast}", "lr"),
        ("1: 2", "1"),
    ],
)
def test_wrong_files_get_one_clear_line(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=said) as raised:
        read_recipe(str(path))
    assert "\n" not in str(raised.value)


def test_a_region_is_asked_for_of_recipes_with_regions_alone() -> None:
    assert read_recipe("fashion-mnist-fast", ["--size.train=2"]).size.sizes == (2,)
    with pytest.raises(ValueError, match="regions.context"):
        read_recipe("scenes-rcnn", ["--size.train=2"])


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="did you mean fashion-mnist-fast"):
        read_recipe("fashion-mnist-fats")
    with pytest.raises(ValueError, match="no such recipe file"):
        read_recipe("nowhere/r.yaml")
    assert Recipe().test_size == 224
