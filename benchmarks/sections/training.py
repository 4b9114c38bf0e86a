"""Training: speed, accuracy, sizes, folders. One function per benchmark: its JSON as Markdown."""

from .markdown import Found, counted, table


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
        f"{table(head, rows)}\n\n{counted(found['threads'], 'thread')}, torch {found['torch']}, "
        f"a 4096-cube float32 product at {found['product_gflops']} GFLOP/s; medians of {found['rounds']} interleaved "
        f"rounds of {found['steps_per_round']} steps, each side in a process of its own."
    )


def time_to_accuracy(found: Found) -> str:
    """Every run, the means, the textbook's time, the ratios."""
    head = ["seed"]
    for row in found["rows"]:
        head += [f"{row['recipe']}, test top-1", "seconds, all counted"]
    body = [
        [
            first["seed"],
            *(cell for run in (first, *others) for cell in (f"{run['top1']:.4f}", f"{run['seconds']:.1f}")),
        ]
        for first, *others in zip(*(row["runs"] for row in found["rows"]), strict=True)
    ]
    for name in ("mean", "sd"):
        line: list[object] = [name]
        for row in found["rows"]:
            line += [f"{row[f'top1_{name}']:.4f}", f"{row[f'seconds_{name}']:.1f}"]
        body.append(line)
    ratios = ", ".join(f"{row['recipe']} {row['ratio']}" for row in found["rows"])
    return (
        f"{table(head, body)}\n\n"
        f"The textbook's 10 epochs in the same call: {found['textbook_seconds_extrapolated']:,.0f} s, extrapolated "
        f"from {found['textbook_measured_steps']} measured steps of {found['textbook_step_seconds']} s (median). "
        f"**Ratio: {ratios}.** {counted(found['threads'], 'thread')}, torch {found['torch']}, "
        f"{found['cpu_capability']}."
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


def chapter(found: Found) -> str:
    """The chapter's runs: each one's end, and their training epoch by epoch, on average."""
    runs = found["runs"]
    ends: list[list[object]] = [[run["seed"], f"{run['top1']:.4f}"] for run in runs]
    if len(runs) > 1:
        ends.append(["mean (sd)", f"{found['top1_mean']:.4f} ({found['top1_sd']:.4f})"])
    epochs: list[list[object]] = []
    for parts in zip(*(run["epochs"] for run in runs), strict=True):
        means = (sum(part[key] for part in parts) / len(parts) for key in ("loss", "accuracy"))
        epochs.append([parts[0]["epoch"], *(f"{mean:.3f}" for mean in means)])
    seconds = ", ".join(f"{run['seconds']:.0f}" for run in runs)
    return (
        f"{table(['seed', 'test top-1 after the last epoch'], ends)}\n\n"
        f"{table(['epoch', 'training loss', 'training accuracy'], epochs)}\n\n"
        f"Means over {counted(len(runs), 'seed')}, over all steps of an epoch. {found['device']}, torch "
        f"{found['torch']}, float32; {seconds} s of training, {found['at_once']} at a time."
    )


def search(found: Found) -> str:
    """One change of the recipe a row; seconds where one run was made at a time."""
    alone = found["at_once"] == 1
    rows = [
        [
            row["change"], f"`{row['keys']}`" if row["keys"] else "", f"{row['validation_top1_mean']:.4f}",
            "" if row["validation_top1_sd"] is None else row["validation_top1_sd"], row["n"],
            *([row["seconds"]] if alone else []),
        ]
        for row in found["rows"]
    ]  # fmt: skip
    head = ["change", "keys", "validation top-1, mean", "sd", "n", *(["seconds, median"] if alone else [])]
    mirrored = ", with mirror images" if found["mirrored"] else ""
    return f"{table(head, rows)}\n\nSeeds from 0{mirrored}; {found['device']}, torch {found['torch']}."
