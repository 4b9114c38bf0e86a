"""``googlenet demo``: train on Fashion-MNIST and classify sample images."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import make_parser, print_result

if TYPE_CHECKING:
    from ..inference.predict import Prediction

TOP_K = 3


def run(argv: list[str]) -> None:
    """Train, classify, and print the results with the commands to try next."""
    parser = make_parser(
        "demo",
        "Train GoogLeNet on Fashion-MNIST and classify sample images: 1 to 3 minutes on 2 cores. The data is\n"
        "downloaded if necessary; an interrupted demo resumes.",
        "googlenet demo",
    )
    parser.add_argument("--out", metavar="RUN", default="runs/demo", help="run folder (default: runs/demo)")
    parser.add_argument(
        "--recipe", metavar="NAME", default="fashion-mnist-fast",
        help="default: fashion-mnist-fast; fashion-mnist-smoke takes seconds and predicts badly",
    )  # fmt: skip
    args = parser.parse_args(argv)

    from ..config.parse import read_recipe
    from ..devices import pick_device
    from ..kernels import keep_freed_memory
    from ..training.fit import fit
    from .train import HEADLINES, summarize

    recipe, out = read_recipe(args.recipe), Path(args.out)
    keep_freed_memory(pick_device(recipe.device).type)
    result = fit(recipe, out, resume="auto", command=f"googlenet train {args.recipe} --out {out}")
    document, lines = summarize(result, HEADLINES[recipe.task])
    for prediction in classify_samples(out):
        top = [item._asdict() for item in prediction.top]
        document.setdefault("predictions", []).append({"path": prediction.path, "top": top})
        classes = "  ".join(f"{item.label} {item.probability:.3f}" for item in prediction.top)
        lines.append(f"{Path(prediction.path).name}: {classes}")
    print_result(args.json, document, [*lines, "", *next_commands(out)])


def sample_folder() -> Path:
    """Return the folder of the sample images: in the installed package, or in a checkout."""
    installed = Path(__file__).parents[1] / "samples"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "docs" / "samples"


def classify_samples(run_folder: Path) -> list["Prediction"]:
    """Classify the sample images, at the size of the run."""
    from ..inference.loading import load_predictor
    from ..inference.predict import PredictOptions, expand_paths, predict_images

    predictor = load_predictor(str(run_folder), None, None, task="classification").predictor
    options: Any = PredictOptions(TOP_K, (predictor.preprocess.size,))
    return list(predict_images(predictor, expand_paths([str(sample_folder())]), options))


def next_commands(run_folder: Path) -> list[str]:
    """Return lines with commands to try with a run."""
    image = sample_folder() / "bag.png"
    commands = {
        f"googlenet predict {run_folder} {image}": "classify an image, or a folder of images",
        f"googlenet explain {run_folder} {image} --out explained": "show what the network sees",
        f"googlenet serve {run_folder}": "an HTTP server with a web page",
    }
    return ["Next:", *(f"  {command}\n      {purpose}" for command, purpose in commands.items())]
