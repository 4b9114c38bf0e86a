"""Recipes: every shipped one, round trips, and error messages."""

from pathlib import Path

import pytest
import yaml

from googlenet.config.parse import list_recipes, read_recipe, recipe_folder, recipe_from_dict
from googlenet.config.schema import Recipe


@pytest.mark.parametrize("name", list_recipes())
def test_shipped_recipes_are_valid(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe_from_dict(yaml.safe_load(recipe.to_yaml())) == recipe
    header = (recipe_folder() / f"{name}.yaml").read_text().split("\nmodel:")[0]
    assert f"googlenet train {name}" in header


def test_d2l_recipe_has_the_chapters_options() -> None:
    recipe = read_recipe("fashion-mnist-d2l")
    assert recipe.model.name == "googlenet_d2l"
    assert (recipe.size.schedule, recipe.size.sizes, recipe.epochs, recipe.batch_size) == ("fixed", (96,), 10, 128)
    assert (recipe.optimizer.name, recipe.optimizer.lr, recipe.optimizer.momentum) == ("sgd", 0.1, 0)
    assert (recipe.optimizer.weight_decay, recipe.schedule.name, recipe.loss.label_smoothing) == (0, "constant", 0)
    assert (recipe.data.normalize, recipe.data.val_split, recipe.augment.flip) == ("none", 0, "none")


def test_flags_replace_values(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("epochs: 3\noptimizer: {lr: 0.5, momentum: 0.9}\n")
    recipe = read_recipe(str(path), ["--optimizer.lr", "0.25", "--size.train=[28,32]", "--size.schedule", "random"])
    assert recipe.epochs == 3
    assert (recipe.optimizer.lr, recipe.optimizer.momentum) == (0.25, 0.9)
    assert recipe.size.train == (28, 32)
    assert read_recipe(str(path), ["--ema_decay", "null"]) == read_recipe(str(path))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optimiser.lr", "1"], "did you mean optimizer.lr"),
        (["--epoch", "1"], "did you mean epochs"),
        (["--epochs", "many"], "epochs"),
        (["--epochs", "0"], r"epochs must be in \(0, inf\), not 0"),
        (["--epochs"], "epochs"),
        (["--model.pool_mode", "square"], "ceil"),
        (["--schedule.name", "one_cycle"], "linear"),
        (["--optimizer.lr", "-1"], r"optimizer.lr must be in \(0, inf\), not -1"),
        (["--size.train", "[24,28]"], "progressive, random or progressive_random"),
        (["--size.train", "[]"], "size.train"),
        (["--size.train", "28,32"], r"an integer or a list such as \[28,32\] or null, not 28,32"),
        (["--ema_decay", "much"], "ema_decay must be a number or null, not much"),
        (["--loss.label_smoothing", "1"], "label_smoothing"),
        (["--optimizer.nesterov", "true"], "momentum"),
        (["stray"], "stray"),
    ],
)
def test_invalid_flags_give_one_line(flags: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        read_recipe("fashion-mnist-d2l", flags)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epochs: [", "not YAML"),
        ("just text", "mapping"),
        ("", "mapping"),
        ("lr: 0.1", "unknown recipe key 'lr'"),
        ("optimizer: {learning_rate: 1}", "optimizer.learning_rate"),
        ("epochs: many", "epochs"),
        ("optimizer: 3", "optimizer"),
        ("optimizer: {lr: fast}", "lr"),
        ("1: 2", "1"),
    ],
)
def test_invalid_files_give_one_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as raised:
        read_recipe(str(path))
    assert "\n" not in str(raised.value)


def test_region_padding_is_checked_for_rcnn_only() -> None:
    assert read_recipe("fashion-mnist-fast", ["--size.train=2"]).size.sizes == (2,)
    with pytest.raises(ValueError, match="regions.context_padding"):
        read_recipe("scenes-rcnn", ["--size.train=2"])


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="did you mean fashion-mnist-fast"):
        read_recipe("fashion-mnist-fats")
    with pytest.raises(ValueError, match="no such recipe file"):
        read_recipe("nowhere/r.yaml")
    assert Recipe().eval_size == 224
