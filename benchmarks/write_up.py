"""Put the results in benchmarks/results/ into the documentation: tables between a page's markers, plots beside it.

A marker is ``<!-- NAME -->``, and ``<!-- end -->`` closes it. Nothing is typed by hand. Run: make write-up
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

from sections import deployment, detection, evaluation, family, regions, training
from sections.markdown import Found

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"
# Where a result goes, but for docs/performance.md.
PAGES = {
    "family": "family.md", "overheads": "family.md", "plain_start": "family.md",
    "ensemble": "ensembles.md", "cam_peak": "insight.md",
    "deployment": "deploy.md", "export_parity": "deploy.md", "serving": "serving.md", "hostile": "serving.md",
    "ray_predict": "serving.md",
    "detection": "detection.md", "detection_peer": "detection.md",
    "rcnn": "detection-rcnn.md", "rcnn_networks": "detection-rcnn.md",
}  # fmt: skip
IMAGES = DOCS / "images"

SECTIONS: dict[str, Callable[[Found], str]] = {
    "throughput": training.throughput,
    "time_to_accuracy": training.time_to_accuracy,
    "step_profile": training.step_profile,
    "decoding": training.decoding,
    "finetune": training.finetune,
    "scales": training.scales,
    "chapter": training.chapter,
    "search": training.search,
    "search_slim": training.search,
    "search_best": training.search,
    "family": family.family,
    "overheads": family.overheads,
    "plain_start": family.plain_start,
    "ensemble": evaluation.ensemble,
    "cam_peak": evaluation.cam_peak,
    "deployment": deployment.deployment,
    "export_parity": deployment.export_parity,
    "serving": deployment.serving,
    "hostile": deployment.hostile,
    "ray_predict": deployment.ray_predict,
    "detection": detection.detection,
    "detection_peer": detection.detection_peer,
    "rcnn": regions.rcnn,
    "rcnn_networks": regions.rcnn,
}


def plot_throughput(found: Found) -> None:
    """Both sides' images per second over the size."""
    import matplotlib.pyplot as plt

    sizes = [row["size"] for row in found["rows"]]
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    axes.plot(sizes, [row["images_per_second"] for row in found["rows"]], "o-", label="ours")
    axes.plot(sizes, [row["textbook_images_per_second"] for row in found["rows"]], "s--", label="textbook")
    axes.set(xlabel="image size, px", ylabel="training images/s", yscale="log", xticks=sizes)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(IMAGES / "throughput.svg", metadata={"Date": None})


def plot_time_to_accuracy(found: Found) -> None:
    """Every run as a point, the textbook's time and the published runs' accuracy as lines."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for row in found["rows"]:
        axes.scatter([r["seconds"] for r in row["runs"]], [r["top1"] for r in row["runs"]], label=row["recipe"])
    axes.axvline(found["textbook_seconds_extrapolated"], ls="--", color="tab:red", label="textbook, 10 epochs")
    axes.axhline(0.888, ls=":", color="grey", label="median of 81 published runs")
    shown = [0.888, *(r["top1"] for row in found["rows"] for r in row["runs"])]
    axes.set(xscale="log", xlabel="seconds", ylabel="test top-1", ylim=(min(shown) - 0.006, max(shown) + 0.003))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(IMAGES / "time_to_accuracy.svg", metadata={"Date": None})


def plot_chapter(found: Found) -> None:
    """Training accuracy by epoch, a line a seed, and the published runs' test accuracy as a line."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for run in found["runs"]:
        epochs, accuracy = zip(*((row["epoch"], row["accuracy"]) for row in run["epochs"]), strict=True)
        (line,) = axes.plot(epochs, accuracy, "o-", ms=3, label=f"training, seed {run['seed']}")
        axes.plot(epochs[-1], run["top1"], "*", ms=8, mec="white", mew=0.6, zorder=3, color=line.get_color())
    axes.plot([], [], "k*", label="test, at the end")
    axes.axhline(0.888, ls=":", color="grey", label="test, median of 81 published runs")
    axes.set(xlabel="epoch", ylabel="top-1", ylim=(0, 1), xticks=epochs)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(IMAGES / "chapter.svg", metadata={"Date": None})


PLOTS = {
    "chapter": plot_chapter,
    "throughput": plot_throughput,
    "time_to_accuracy": plot_time_to_accuracy,
}


def fill(page: str, name: str, text: str) -> str:
    """`page` with what stands between the markers of `name` replaced by `text`."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"the page has no markers for {name}")
    return pattern.sub(lambda match: f"{match[1]}{text}\n{match[2]}", page)


def main() -> None:
    """Fill in every section that has results."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "googlenet"
    for file in sorted(RESULTS.glob("*.json")):
        found = json.loads(file.read_text())
        page = DOCS / PAGES.get(file.stem, "performance.md")
        page.write_text(fill(page.read_text(), file.stem, SECTIONS[file.stem](found)))
        if file.stem in PLOTS:
            PLOTS[file.stem](found)


if __name__ == "__main__":
    main()
