"""Put the results in benchmarks/results/ into the documentation: tables between a page's markers, plots beside it.

A marker is ``<!-- NAME -->``, and ``<!-- end -->`` closes it. Nothing is typed by hand. Run: make write-up
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"
# Where a result goes, but for docs/performance.md.
PAGES = {
    "family": "family.md",
    "plain_start": "family.md",
    "ensemble": "ensembles.md",
    "deployment": "deploy.md",
    "export_parity": "deploy.md",
}
IMAGES = DOCS / "images"

Found = dict[str, Any]


def table(head: list[str], rows: list[list[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def throughput(found: Found) -> str:
    """Images per second by size, and how they were measured."""
    rows = [
        [
            f"{row['size']} px", row["textbook_images_per_second"], row["images_per_second"],
            f"{row['ratio']} ({row['ratio_range'][0]}-{row['ratio_range'][1]})", f"{row['share_of_product']:.0%}",
        ]
        for row in found["rows"]
    ]  # fmt: skip
    head = ["size", "textbook, images/s", "ours, images/s", "ratio (range)", "share of a matrix product's speed"]
    return (
        f"{table(head, rows)}\n\n{found['threads']} threads, torch {found['torch']}, "
        f"a 4096-cube float32 product at {found['product_gflops']} GFLOP/s; medians of {found['rounds']} interleaved "
        f"rounds of {found['steps_per_round']} steps, each side in a process of its own."
    )


def time_to_accuracy(found: Found) -> str:
    """Every run, the mean, the textbook's time, the ratio."""
    rows = [[run["seed"], f"{run['top1']:.4f}", f"{run['seconds']:.1f}"] for run in found["runs"]]
    rows.append(["mean", f"{found['top1_mean']:.4f}", f"{found['seconds_mean']:.1f}"])
    rows.append(["sd", f"{found['top1_sd']:.4f}", f"{found['seconds_sd']:.1f}"])
    return (
        f"{table(['seed', 'test top-1', 'seconds, all counted'], rows)}\n\n"
        f"The textbook's 10 epochs in the same call: {found['textbook_seconds_extrapolated']:,.0f} s, extrapolated "
        f"from {found['textbook_measured_steps']} measured steps of {found['textbook_step_seconds']} s (median). "
        f"**Ratio: {found['ratio']}.** {found['threads']} threads, torch {found['torch']}, {found['cpu_capability']}."
    )


def step_profile(found: Found) -> str:
    """Milliseconds by kind of work, the two sides side by side."""
    kinds = list(found["rows"][0]["ours"])
    head = ["ms a step, batch 128"]
    for row in found["rows"]:
        head += [f"{row['size']} px, textbook", f"{row['size']} px, ours"]
    body = [[kind, *(row[side][kind] for row in found["rows"] for side in ("textbook", "ours"))] for kind in kinds]
    return table(head, body)


def decoding(found: Found) -> str:
    """Pictures per second of reading a large folder."""
    rows: list[list[object]] = [
        [side, speed, f"{min(found['rounds'][side])}-{max(found['rounds'][side])}"]
        for side, speed in found["images_per_second"].items()
    ]
    return (
        f"{table(['reader', 'images/s, median', 'rounds'], rows)}\n\n**Ratio: {found['ratio']}.** "
        f"{found['cores']} cores, torch {found['torch']}; pictures of {found['bytes_per_picture']:,} bytes."
    )


def finetune(found: Found) -> str:
    """Every seed, the mean, the sd."""
    rows = [
        [run["seed"], f"{run['validation']:.4f}", f"{run['others']:.4f}", f"{run['seconds']:.0f}"]
        for run in found["runs"]
    ]
    rows.append(["mean (sd)", "", f"{found['mean']:.4f} ({found['sd']:.4f})", ""])
    head = ["seed", "validation (12 pictures, chosen by)", f"{found['pictures']} others", "seconds"]
    return table(head, rows) + f"\n\n{' and '.join(found['classes'])}; torch {found['torch']}."


def scales(found: Found) -> str:
    """Accuracy by test size: the multi-scale run beside a fixed-size one."""
    runs = found["runs"]
    head = ["size"] + [f"{name}, top-1" for name in runs] + ["multiply-adds", "images/s"]
    body: list[list[object]] = []
    for rows in zip(*(run["rows"] for run in runs.values()), strict=True):
        first = rows[0]
        body.append(
            [f"{first['size']} px", *(f"{row['top1']:.4f}" for row in rows), f"{first['macs']:,}",
             f"{first['images_per_second']:.0f}"]
        )  # fmt: skip
    body.append(["average", *(f"{run['average']['top1']:.4f}" for run in runs.values()), "", ""])
    return table(head, body)


def curve(found: Found) -> str:
    """The chapter's run, epoch by epoch."""
    rows = [[f"{row['epoch']:.0f}", f"{row['loss']:.3f}", f"{row['accuracy']:.3f}"] for row in found["epochs"]]
    return table(["epoch", "training loss", "training accuracy"], rows) + f"\n\n{found['about']}"


def search(found: Found) -> str:
    """One change of the recipe a row."""
    rows = [
        [
            row["change"], f"`{row['keys']}`" if row["keys"] else "", f"{row['validation_top1_mean']:.4f}",
            row["validation_top1_sd"], row["n"], row["seconds"],
        ]
        for row in found["rows"]
    ]  # fmt: skip
    return table(["change", "keys", "validation top-1, mean", "sd", "n", "seconds, median"], rows)


# Single network, single crop, top-1 / top-5 error in per cent: "Going Deeper" table 2, "Rethinking" table 3,
# "Inception-v4" table 2.
PUBLISHED = {
    "googlenet": "- / 10.07",
    "bn_inception": "25.2 / 7.8",
    "inception_v2": "23.4 / -",
    "inception_v3": "21.2 / 5.6",
    "inception_v4": "20.0 / 5.0",
    "inception_resnet_v2": "19.9 / 4.9",
}


def family(found: Found) -> str:
    """Every member: size, cost, speed, and what the common budget makes of it."""
    rows = [
        [
            f"`{row['name']}`", f"{row['parameters'] / 1e6:.2f} M", f"{row['macs'] / 1e9:.2f} G", f"{row['size']} px",
            PUBLISHED.get(row["name"], ""),
            f"{row['milliseconds']} ({row['milliseconds_range'][0]}-{row['milliseconds_range'][1]})", row["ratio"],
            ", ".join(f"{top1:.3f}" for top1 in row["top1"]), row["seconds"],
        ]
        for row in found["rows"]
    ]  # fmt: skip
    head = [
        "member",
        "parameters",
        "multiply-adds",
        "at",
        "published error",
        "ms a picture (range)",
        "ratio",
        "top-1 from the budget",
        "seconds",
    ]
    return (
        f"{table(head, rows)}\n\n{found['threads']} threads, torch {found['torch']}, {found['cpu_capability']}. "
        f"Speeds are medians of {found['rounds']} rounds; the budget's seeds: {', '.join(map(str, found['seeds']))}. "
        f"The ratio is to {found['peer']} in the same rounds, {found['peer_milliseconds']} ms."
    )


def plain_start(found: Found) -> str:
    """One way to start a row."""
    rows = [
        [
            row["init"], row["optimiser"], f"{row['warmup']} steps" if row["warmup"] else "none",
            "yes" if row["aux"] else "no",
            ", ".join("diverged" if loss is None else f"{loss:.3f}" for loss in row["losses"]),
        ]
        for row in found["rows"]
    ]  # fmt: skip
    head = ["initial weights", "optimiser", "warm-up", "side heads", "loss at the end, by seed"]
    return f"{table(head, rows)}\n\nA guess has {found['guess']}. {found['steps']} steps, torch {found['torch']}."


def ensemble(found: Found) -> str:
    """The paper's table, what each cell gains, which crops help, and what they cost."""
    crops = sorted({cell["crops"] for cell in found["table"]})
    cells = {(cell["models"], cell["crops"]): cell for cell in found["table"]}

    def shown(cell: Found) -> str:
        low, high = cell["interval"]
        return f"{1 - cell['top1']:.4f} [{1 - high:.4f}, {1 - low:.4f}] / {1 - cell['top5']:.4f}"

    grid = table(
        ["models", *(f"{count} crop{'s' if count > 1 else ''}" for count in crops)],
        [[models, *(shown(cells[models, count]) for count in crops)] for models in sorted({m for m, _ in cells})],
    )
    gains = table(
        ["against 1 model, 1 crop", "top-1 gained", "right only before", "right only now", "p (McNemar)", "ECE"],
        [
            [
                f"{row['models']} model{'s' if row['models'] > 1 else ''}, {row['crops']} "
                f"crop{'s' if row['crops'] > 1 else ''}",
                f"{row['gain']:+.4f}", row["only_first"], row["only_second"], f"{row['p']:.2g}",
                f"{cells[row['models'], row['crops']]['ece']:.4f}",
            ]
            for row in found["against_one_network_one_crop"]
        ],
    )  # fmt: skip
    scales = table(
        ["scale", "a crop's share of the picture", "centre", "four corners", "whole square", "all 12", "scales so far"],
        [
            [
                f"{row['scale']} px", f"{row['area']:.0%}",
                *(f"{row[kind]:.4f}" for kind in ("centre", "corners", "whole", "all", "scales_so_far")),
            ]
            for row in found["by_scale"]
        ],
    )  # fmt: skip
    members = ", ".join(f"{member['top1']['1']:.4f}" for member in found["members"])
    trained = sum(member["seconds"] for member in found["members"])
    text = (
        f"{grid}\n\nTop-1 error with its 95 % interval / top-5 error, on {found['images']:,} test pictures.\n\n{gains}"
        f"\n\nThe first network's crops, scale by scale, top-1 accuracy (each with its mirror image):\n\n{scales}\n\n"
        f"The members alone, 1 crop: {members}. Trained in {trained:.0f} s together; a network's answers took "
        + ", ".join(f"{seconds} s with {count}" for count, seconds in found["seconds_a_network"].items())
        + f" crops, in {found['precision']}. {found['threads']} threads, torch {found['torch']}."
    )
    if speed := found.get("speed"):
        text += (
            f"\n\n144 crops of {speed['pictures']:,} pictures at {speed['size']} px, of which "
            f"{speed['crops_computed']:,} are distinct and computed: {speed['crops_per_second']} a second, and "
            f"{speed['plain_per_second']} a second of the same tensors in plain batches. **Ratio: {speed['ratio']}.**"
        )
    return text


def deployment(found: Found) -> str:
    """Every side at 224 px, and the ratios."""
    rows = [
        [
            row["name"], row["batch"], f"{1e3 * row['latency']:.1f}", f"{1e3 * row['p95']:.1f}",
            f"{row['images_per_second']:.1f}", f"{1e3 * row['first']:.0f}", f"{row['memory'] / 1e6:.0f}",
            "" if row["file_bytes"] is None else f"{row['file_bytes'] / 1e6:.1f}", f"{row['share']:.0%}",
        ]
        for row in found["rows"]
    ]  # fmt: skip
    head = [
        "",
        "batch",
        "median ms",
        "p95 ms",
        "images/s",
        "first answer, ms",
        "memory, MB",
        "file, MB",
        "of a product",
    ]
    r, versions = found["ratios"], found["versions"]
    kept = ", ".join(r["left_in_float32"]) or "none"
    return (
        f"{table(head, rows)}\n\n"
        f"- float32: {r['float32']} takes **{r['float32_to_peer']}** of the time of the best peer ({r['peer']}) with "
        f"the same weights, **{r['float32_to_product']}** of that of a matrix product of as many multiplications;\n"
        f"- int8: {r['int8']} is **{r['peer_to_int8']}** times as fast as that peer and loses "
        f"**{r['top1_lost']:.4f}** of top-1 ({r['top1']:.4f} to {r['top1_int8']:.4f} on {r['images']:,} test "
        f"pictures); layers left in float32: {kept};\n"
        f"- torchvision's network in plain PyTorch takes **{r['eager_to_float32']}** times as long as our float32, "
        f"**{r['eager_to_int8']}** times as long as our int8.\n\n"
        f"224 px, {found['threads']} threads, {found['rounds']} rounds of {found['seconds'] / found['rounds']:g} s, "
        f"each side a process of its own; {', '.join(f'{name} {version}' for name, version in versions.items())}; "
        f"{found['cpu_capability']}."
    )


def export_parity(found: Found) -> str:
    """The largest difference by member and engine."""
    engines = ["onnxruntime", "openvino", "ncnn", "torch"]

    def said(row: Found, engine: str) -> str:
        value = row.get(engine)
        return f"{value:.1e}" if isinstance(value, float) else "cannot be written"

    rows = [[f"`{row['name']}`", *(said(row, engine) for engine in engines)] for row in found["rows"]]
    whole = ", ".join(f"{name} {value:.1e}" for name, value in found["all"].items())
    return (
        f"{table(['member', *engines], rows)}\n\nRaw bytes against `Preprocess` and the network on "
        f"{found['pictures']:,} test pictures: {whole}. torch {found['torch']}."
    )


SECTIONS: dict[str, Callable[[Found], str]] = {
    "throughput": throughput,
    "time_to_accuracy": time_to_accuracy,
    "step_profile": step_profile,
    "decoding": decoding,
    "finetune": finetune,
    "scales": scales,
    "chapter": curve,
    "search": search,
    "family": family,
    "plain_start": plain_start,
    "ensemble": ensemble,
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
    axes.scatter([r["seconds"] for r in found["runs"]], [r["top1"] for r in found["runs"]], label=found["recipe"])
    axes.axvline(found["textbook_seconds_extrapolated"], ls="--", color="tab:orange", label="textbook, 10 epochs")
    axes.axhline(0.888, ls=":", color="grey", label="median of 81 published runs")
    shown = [0.888, *(r["top1"] for r in found["runs"])]
    axes.set(xscale="log", xlabel="seconds", ylabel="test top-1", ylim=(min(shown) - 0.006, max(shown) + 0.003))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(IMAGES / "time_to_accuracy.svg", metadata={"Date": None})


PLOTS = {"throughput": plot_throughput, "time_to_accuracy": plot_time_to_accuracy}


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
