"""A run, or an exported folder, to be asked in the engine that the command line names."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from ..models.network import Network
    from ..training.checkpoint import Checkpoint


def add_engine(parser: argparse.ArgumentParser) -> None:
    """The arguments ``--engine`` and ``--threads``."""
    parser.add_argument(
        "--engine", metavar="NAME",
        help="torch, onnxruntime, openvino, ncnn, or auto, the quickest here (default: the network as it was "
        "trained, or of an exported folder auto)",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the engine (default: all cores)")


def asked_run(run: str, engine: str | None, threads: int | None, task: str | None = None) -> "Checkpoint":
    """The run as `load` gives it; with an engine its network answers there, from pixels that are left as they are.

    An exported folder is opened in `engine`, or in the quickest. ValueError in one line for what cannot be,
    and for a run of another `task` where one is named.
    """
    from ..deployment.asked import Asked, raw
    from ..deployment.description import NAME, read_description
    from ..models.native import lay_out
    from ..training.checkpoint import Checkpoint, load
    from ..training.devices import pick_device
    from ..training.recipe import Data, Model, Recipe, Size

    if threads is not None and threads < 1:
        raise ValueError(f"--threads must be 1 or more, not {threads}")
    place = Path(run)
    if (place / NAME).is_file():
        from ..deployment.engines import open_engine

        about = read_description(place)
        least = about.min_size if about.any_size else about.preprocess.size
        asked = Asked(open_engine(place, engine or "auto", threads), least)
        recipe = Recipe(
            model=Model(name=about.model), data=Data(validation=0), size=Size(train=about.preprocess.size)
        )
        return Checkpoint(cast("Network", asked), raw(about.preprocess), about.classes, recipe, {})
    checkpoint = load(run, task=task)
    if engine is None:
        if threads is not None:
            raise ValueError("--threads goes with --engine, or with an exported folder")
        if pick_device("auto").type == "cpu":
            lay_out(checkpoint.model)
        return checkpoint
    from ..deployment.export import Trained
    from ..deployment.kept import engine_for

    network = checkpoint.model
    name = checkpoint.recipe.model.name or "googlenet"
    trained = Trained(name, network, checkpoint.preprocess, checkpoint.classes)
    asked = Asked(engine_for(trained, engine, threads), network.min_size)
    return replace(checkpoint, model=cast("Network", asked), preprocess=raw(checkpoint.preprocess))
