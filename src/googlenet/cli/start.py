"""What ``googlenet`` prints without arguments: the commands that are useful next."""

from pathlib import Path

from .. import __version__

RUNS = Path("runs")
FIRST_COMMANDS = {
    "googlenet demo": "train on Fashion-MNIST and classify sample images: 1 to 3 minutes",
    "googlenet train folder --data PHOTOS --minutes 10": "train on your own images, with one folder per class",
    "googlenet doctor": "show what this installation can use",
    "googlenet --help": "list all commands",
}


def start_text(runs: Path = RUNS) -> str:
    """Return the text: commands for the newest finished run in `runs`, if there is one, and the first commands."""
    weights = sorted(runs.glob("*/model.safetensors"), key=lambda path: (path.stat().st_mtime, path))
    commands: dict[str, str] = {}
    if weights:
        run = weights[-1].parent
        commands = {
            f"googlenet predict {run} IMAGE": "classify an image, or a folder of images",
            f"googlenet explain {run} IMAGE --out explained": "show what the network sees",
            f"googlenet export {run} --format onnx,openvino --out exported": "write files for other programs",
            f"googlenet serve {run}": "serve it over HTTP, with a web page",
        }
    lines = [f"  {command}\n      {purpose}" for command, purpose in (commands | FIRST_COMMANDS).items()]
    return "\n".join([f"googlenet {__version__}: GoogLeNet and the Inception family in PyTorch", "", *lines])
