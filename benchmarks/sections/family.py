"""The members of the family. One function per benchmark: its JSON as Markdown."""

from .markdown import Found, counted, table

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
        f"{table(head, rows)}\n\n{counted(found['threads'], 'thread')}, torch {found['torch']}, "
        f"{found['cpu_capability']}. Speeds are medians of {found['rounds']} rounds; the budget's seeds: "
        f"{', '.join(map(str, found['seeds']))}. "
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


def overheads(found: Found) -> str:
    """Seconds to build each member, and how fast the 144 crops are against tensors that lie ready."""
    rows = [[f"`{name}`", f"{seconds:.3f}"] for name, seconds in found["seconds_to_build"].items()]
    return (
        table(["member", "seconds to build"], rows)
        + f"\n\nThe 144 crops of an image go through a network at {found['crops_ratio']:.2f} of the speed of "
        f"the same tensors lying ready (median of {found['rounds']} rounds: {min(found['crops_ratios'])} to "
        f"{max(found['crops_ratios'])}; {counted(found['threads'], 'thread')}, {found['cpu_capability']}, "
        f"torch {found['torch']})."
    )
