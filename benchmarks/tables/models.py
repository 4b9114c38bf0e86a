"""Tables of the networks."""

from .markdown import Result, plural, table

# Single network, single crop, top-1 / top-5 error in percent: "Going Deeper" table 2, "Rethinking" table 3,
# "Inception-v4" table 2.
PUBLISHED = {
    "googlenet": "- / 10.07",
    "bn_inception": "25.2 / 7.8",
    "inception_v2": "23.4 / -",
    "inception_v3": "21.2 / 5.6",
    "inception_v4": "20.0 / 5.0",
    "inception_resnet_v2": "19.9 / 4.9",
}


def models(result: Result) -> str:
    """Format size, cost, speed and accuracy with the common training budget of every network."""
    rows = [
        [
            f"`{row['name']}`", f"{row['parameters'] / 1e6:.2f} M", f"{row['macs'] / 1e9:.2f} G", f"{row['size']} px",
            PUBLISHED.get(row["name"], ""),
            f"{row['milliseconds']} ({row['milliseconds_range'][0]}-{row['milliseconds_range'][1]})", row["ratio"],
            ", ".join(f"{top1:.3f}" for top1 in row["top1"]), row["seconds"],
        ]
        for row in result["rows"]
    ]  # fmt: skip
    header = [
        "network", "parameters", "multiply-adds", "size", "published error", "ms per image (range)", "ratio",
        "top-1 with the training budget", "training, s",
    ]  # fmt: skip
    return (
        f"{table(header, rows)}\n\n{plural(result['threads'], 'thread')}, torch {result['torch']}, "
        f"{result['cpu_capability']}. Speeds are medians of {result['rounds']} rounds. Seeds of the training: "
        f"{', '.join(map(str, result['seeds']))}. "
        f"The ratio is to {result['baseline']} in the same rounds, {result['baseline_milliseconds']} ms."
    )


def init_without_norm(result: Result) -> str:
    """Format one configuration per row."""
    rows = [
        [
            row["init"], row["optimizer"], f"{row['warmup']} steps" if row["warmup"] else "none",
            "yes" if row["aux"] else "no",
            ", ".join("diverged" if loss is None else f"{loss:.3f}" for loss in row["losses"]),
        ]
        for row in result["rows"]
    ]  # fmt: skip
    header = ["initial weights", "optimizer", "warm-up", "auxiliary heads", "final loss by seed"]
    return (
        f"{table(header, rows)}\n\nUniform predictions have a loss of {result['uniform_loss']}. "
        f"{result['steps']} steps, torch {result['torch']}."
    )


def overheads(result: Result) -> str:
    """Format the time to build each network, and the speed of 144 crops."""
    rows = [[f"`{name}`", f"{seconds:.3f}"] for name, seconds in result["seconds_to_build"].items()]
    low, high = min(result["crops_ratios"]), max(result["crops_ratios"])
    return (
        table(["network", "seconds to build"], rows)
        + f"\n\nThe 144 crops of an image are predicted at {result['crops_ratio']:.2f} of the speed of prepared "
        f"tensors (median of {result['rounds']} rounds: {low} to {high}; "
        f"{plural(result['threads'], 'thread')}, {result['cpu_capability']}, torch {result['torch']})."
    )
