"""Recipe arguments of ``train`` and ``ensemble``: the recipe's name, the common flags, and one flag per option."""

import argparse
from typing import TYPE_CHECKING

from .common import CommandParser

if TYPE_CHECKING:
    from ..config.schema import Recipe

# Short flags of the most common options.
COMMON_FLAGS = {
    "--data": ("data.source", "SOURCE", "training data, such as fashion-mnist or folder:PHOTOS"),
    "--epochs": ("epochs", "N", "passes over the training images"),
    "--image-size": ("size.train", "PIXELS", "height and width of the training images"),
    "--batch-size": ("batch_size", "N", "images per step"),
    "--lr": ("optimizer.lr", "LR", "peak learning rate"),
}


def add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    """Add the recipe argument and the common flags to a parser."""
    parser.add_argument("recipe", nargs="?", help="name of a shipped recipe, or a YAML file")
    for flag, (key, metavar, help_text) in COMMON_FLAGS.items():
        parser.add_argument(flag, metavar=metavar, help=f"{help_text} (recipe key {key})")


def print_recipe_help(parser: argparse.ArgumentParser) -> None:
    """Print the parser's help, the shipped recipes, and every option of a recipe from common to rare."""
    from ..config.parse import list_recipes, recipe_parser

    print(parser.format_help())
    print(f"Shipped recipes: {', '.join(list_recipes())}\n")
    print("Every option of a recipe is also a flag, --KEY VALUE or --GROUP.KEY VALUE:\n")
    print(recipe_parser().format_help().partition("\n\n")[2])


def read_recipe_argument(
    parser: CommandParser, args: argparse.Namespace, flags: list[str], argv: list[str]
) -> "Recipe":
    """Read the recipe of the command line with its flags applied; exits with a usage error if that fails."""
    from ..config.parse import list_recipes, read_recipe

    name = args.recipe
    if not name:
        parser.error("name a recipe: " + ", ".join(list_recipes()))
    if flags and argv.index(flags[0]) < argv.index(name):
        parser.error("name the recipe first, then the flags that change it")
    read_recipe(name)
    try:
        return read_recipe(name, [*_common_flags(args), *flags])
    except ValueError as error:
        parser.error(str(error))


def _common_flags(args: argparse.Namespace) -> list[str]:
    values = {key: getattr(args, flag.removeprefix("--").replace("-", "_")) for flag, (key, *_) in COMMON_FLAGS.items()}
    values["budget_minutes"] = getattr(args, "budget_minutes", None)  # of `train` only
    return [f"--{key}={value}" for key, value in values.items() if value is not None]


def flag_keys(args: argparse.Namespace, flags: list[str]) -> set[str]:
    """Return the recipe keys that the command line sets."""
    names = [flag for flag in [*_common_flags(args), *flags] if flag.startswith("--")]
    return {name.removeprefix("--").partition("=")[0].replace("-", "_") for name in names}
