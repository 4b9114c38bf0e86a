"""Write the results in benchmarks/results/ into the documentation: tables between a page's markers, and plots.

A table is between the markers ``<!-- NAME -->`` and ``<!-- end -->``. Results are never typed by hand.
Run: make docs-results
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

from tables import detection, engines, evaluation, models, rcnn, serving, training
from tables.markdown import Result

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"
IMAGES = DOCS / "images"

# The page of each result; the others are in docs/performance.md.
PAGES = {
    "models": "models.md", "overheads": "models.md", "init_without_norm": "models.md",
    "own_images": "finetune.md", "plan_rules": "finetune.md",
    "ensemble": "ensembles.md",
    "cam_localization": "explain.md",
    "fid": "fid.md", "fid_values": "fid.md",
    "deployment": "performance.md", "deployment_avx2": "performance.md", "export_parity": "export.md",
    "serving": "serving.md", "serving_bfloat16": "serving.md", "fuzz_server": "serving.md",
    "hostile_server": "serving.md", "ray_predict": "serving.md",
    "detection": "detection.md", "detection_baseline": "detection.md",
    "rcnn": "detection-rcnn.md", "rcnn_ensemble": "detection-rcnn.md",
}  # fmt: skip

# The processor of the race that the plot shows.
REFERENCE = "intel-amx"

# The function that formats each result.
TABLES: dict[str, Callable[[Result], str]] = {
    "throughput": training.throughput,
    "step_profile": training.step_profile,
    "load": training.load,
    "decoding": training.decoding,
    "augmentation": training.augmentation,
    "finetune": training.finetune,
    "own_images": training.own_images,
    "plan_rules": training.plan_rules,
    "multi_scale": training.multi_scale,
    "d2l_recipe": training.d2l_recipe,
    "ablation": training.ablation,
    "ablation_slim": training.ablation,
    "ablation_best": training.ablation,
    "models": models.models,
    "overheads": models.overheads,
    "init_without_norm": models.init_without_norm,
    "ensemble": evaluation.ensemble,
    "cam_localization": evaluation.cam_localization,
    "fid": evaluation.fid,
    "fid_values": evaluation.fid_values,
    "deployment": engines.deployment,
    "deployment_avx2": engines.deployment,
    "export_parity": engines.export_parity,
    "serving": serving.serving,
    "serving_bfloat16": serving.serving,
    "fuzz_server": serving.fuzz_server,
    "hostile_server": serving.hostile_server,
    "ray_predict": serving.ray_predict,
    "detection": detection.detection,
    "detection_baseline": detection.detection_baseline,
    "rcnn": rcnn.rcnn,
    "rcnn_ensemble": rcnn.rcnn,
}


def plot_throughput(result: Result) -> None:
    """Plot images per second by image size."""
    import matplotlib.pyplot as plt

    sizes = [row["size"] for row in result["rows"]]
    figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
    for side in result["rows"][0]["images_per_second"]:
        style = "s--" if side.startswith("textbook") else "o-"
        axes.plot(sizes, [row["images_per_second"][side] for row in result["rows"]], style, label=side)
    axes.set(xlabel="image size, px", ylabel="training images/s", yscale="log", xticks=sizes)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    figure.savefig(IMAGES / "throughput.svg", metadata={"Date": None})


def plot_race(result: Result) -> None:
    """Plot every run as a point; the time of the textbook and the accuracy of published runs as lines."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for row in result["rows"]:
        axes.scatter([run["seconds"] for run in row["runs"]], [run["top1"] for run in row["runs"]], label=row["recipe"])
    axes.axvline(result["textbook_seconds_extrapolated"], ls="--", color="tab:red", label="textbook, 10 epochs")
    axes.axhline(0.888, ls=":", color="gray", label="median of 81 published runs")
    values = [0.888, *(run["top1"] for row in result["rows"] for run in row["runs"])]
    axes.set(xscale="log", xlabel="seconds", ylabel="test top-1", ylim=(min(values) - 0.006, max(values) + 0.003))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(IMAGES / "race.svg", metadata={"Date": None})


def plot_d2l_recipe(result: Result) -> None:
    """Plot the training accuracy of each seed by epoch; the test accuracy of published runs as a line."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for run in result["runs"]:
        epochs, accuracy = zip(*((row["epoch"], row["accuracy"]) for row in run["epochs"]), strict=True)
        (line,) = axes.plot(epochs, accuracy, "o-", ms=3, label=f"training, seed {run['seed']}")
        axes.plot(epochs[-1], run["top1"], "*", ms=8, mec="white", mew=0.6, zorder=3, color=line.get_color())
    axes.plot([], [], "k*", label="test, at the end")
    axes.axhline(0.888, ls=":", color="gray", label="test, median of 81 published runs")
    axes.set(xlabel="epoch", ylabel="top-1", ylim=(0, 1), xticks=epochs)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(IMAGES / "d2l_recipe.svg", metadata={"Date": None})


PLOTS = {
    "d2l_recipe": plot_d2l_recipe,
    "throughput": plot_throughput,
}


def fill(page: str, name: str, text: str) -> str:
    """Return `page` with the text between the markers of `name` replaced."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"the page has no markers for {name}")
    return pattern.sub(lambda match: f"{match[1]}{text}\n{match[2]}", page)


def main() -> None:
    """Write every result into its page, and draw the plots."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "googlenet"
    for file in sorted(RESULTS.glob("*.json")):
        result = json.loads(file.read_text())
        page = DOCS / PAGES.get(file.stem, "performance.md")
        page.write_text(fill(page.read_text(), file.stem, TABLES[file.stem](result)))
        if file.stem in PLOTS:
            PLOTS[file.stem](result)
    page = DOCS / "race.md"
    results = {file.stem: json.loads(file.read_text()) for file in sorted((RESULTS / "race").glob("*.json"))}
    page.write_text(fill(page.read_text(), "race", training.races(results)))
    plot_race(results[REFERENCE])


if __name__ == "__main__":
    main()
