"""Tables of training: speed, accuracy, image sizes, folders."""

from .markdown import Result, plural, processor, table


def throughput(result: Result) -> str:
    """Format images per second of every side by image size, and the ratios to the fastest textbook form."""
    rows = result["rows"]
    sides = list(rows[0]["images_per_second"])
    header = ["size", *(f"{side}, images/s" for side in sides)]
    speeds = [[f"{row['size']} px", *row["images_per_second"].values()] for row in rows]
    ratios: list[list[object]] = []
    for row in rows:
        for item in row["comparisons"]:
            ratio = f"{item['ratio']} ({item['ratio_range'][0]}-{item['ratio_range'][1]})"
            utilization = f"{item['matmul_utilization']:.0%}"
            ratios.append([f"{row['size']} px", item["name"], item["peer"], ratio, utilization])
    compared = ["size", "side", "fastest textbook form", "ratio (range)", "relative to a matrix product"]
    products = ", ".join(f"{speed} GFLOP/s in {name}" for name, speed in result["matmul_gflops"].items())
    return (
        f"{table(header, speeds)}\n\n{table(compared, ratios)}\n\n{processor(result['cpu'])}, "
        f"{plural(result['threads'], 'thread')}, torch {result['torch']}, a 4096-cube product at {products}; medians "
        f"of {plural(result['rounds'], 'interleaved round')} of {result['steps_per_round']} steps, each side in its "
        "own process."
    )


def races(results: dict[str, Result]) -> str:
    """Format the races of all kinds of processors, each with a heading."""
    return "\n\n".join(f"### {name}\n\n{race(result)}" for name, result in results.items())


def race(result: Result) -> str:
    """Format every run, the means, the p-values, the time of the textbook and the ratios."""
    header = ["seed"]
    for row in result["rows"]:
        header += [f"{row['recipe']}, test top-1", "seconds, whole command"]
    body = [
        [
            first["seed"],
            *(cell for run in (first, *others) for cell in (f"{run['top1']:.4f}", f"{run['seconds']:.1f}")),
        ]
        for first, *others in zip(*(row["runs"] for row in result["rows"]), strict=True)
    ]
    for name in ("mean", "sd"):
        line: list[object] = [name]
        for row in result["rows"]:
            line += [f"{row[f'top1_{name}']:.4f}", f"{row[f'seconds_{name}']:.1f}"]
        body.append(line)
    ratios = ", ".join(f"{row['recipe']} {row['ratio']}" for row in result["rows"])
    p_values = ", ".join(f"{row['recipe']} {row['p_value']}" for row in result["rows"])
    return (
        f"{table(header, body)}\n\n"
        f"The textbook's 10 epochs in the same run: {result['textbook_seconds_extrapolated']:,.0f} s, extrapolated "
        f"from {result['textbook_measured_steps']} measured steps of {result['textbook_step_seconds']} s (median). "
        f"**Ratio: {ratios}.** p-value of a mean of at most 0.889: {p_values}. {processor(result['cpu'])}, trained in "
        f"{result['precision']}{limited_to(result['max_cpu_isa'])}; {plural(result['threads'], 'thread')}, torch "
        f"{result['torch']}."
    )


def limited_to(isa: str | None) -> str:
    """Format the limit of the instructions."""
    return f", limited to {isa}" if isa else ""


def step_profile(result: Result) -> str:
    """Format milliseconds by kind of operation for both sides."""
    sides = ("baseline", "googlenet")
    header = ["ms per step, batch 128"]
    for row in result["rows"]:
        header += [f"{row['size']} px, {side}" for side in sides]
    kinds = list(result["rows"][0]["googlenet"])
    body = [[kind, *(row[side][kind] for row in result["rows"] for side in sides)] for kind in kinds]
    return table(header, body)


def load(result: Result) -> str:
    """Format the milliseconds of a step alone and next to a busy process."""
    header = ["recipe", "alone, ms", "next to a busy process, ms", "speed that remains"]
    rows = [[row["recipe"], row["alone_ms"], row["loaded_ms"], row["speed"]] for row in result["rows"]]
    return f"{table(header, rows)}\n\n{processor(result['cpu'])}; {result['threads']} threads, torch {result['torch']}."


def decoding(result: Result) -> str:
    """Format images per second of reading a large folder."""
    rows: list[list[object]] = [
        [side, speed, f"{min(result['rounds'][side])}-{max(result['rounds'][side])}"]
        for side, speed in result["images_per_second"].items()
    ]
    return (
        f"{table(['reader', 'images/s, median', 'rounds'], rows)}\n\n**Ratio: {result['ratio']}.** "
        f"{result['cores']} cores, torch {result['torch']}; images of {result['bytes_per_image']:,} bytes."
    )


def augmentation(result: Result) -> str:
    """Format loading and training with and without augmentation, and the start on a large folder."""
    header = ["files", "images", "worker processes", "loading, images/s: plain, augmented, ratio",
              "training, images/s: plain, augmented, ratio", "seconds per augmented step"]  # fmt: skip
    rows: list[list[object]] = []
    for row in result["throughput"]:
        speeds = [
            f"{row[kind]['plain']}, {row[kind]['augmented']}, {row[kind]['ratio']}" for kind in ("loading", "training")
        ]
        where = "in memory" if row["in_memory"] else "on disk"
        rows.append([row["format"], where, row["workers"], *speeds, row["training"]["seconds_per_step"]])
    start, runs = result["start"], []
    for name in ("first", "second"):
        runs.append([f"{name} run", start[name]["seconds"], start[name]["memory_mb"],
                     start[name]["memory_after_50_steps_mb"]])  # fmt: skip
    columns = ["start", "seconds to the first step", "memory after it, MB", "memory after 50 more steps, MB"]
    return (
        f"{table(header, rows)}\n\n{table(columns, runs)}\n\n{result['size']} px, batches of {result['batch']}; start: "
        f"{start['links']:,} links in {start['classes']:,} classes; {result['cores']} cores, torch {result['torch']}."
    )


def finetune(result: Result) -> str:
    """Format every seed, mean and standard deviation."""
    rows = [
        [run["seed"], f"{run['validation']:.4f}", f"{run['others']:.4f}", f"{run['seconds']:.0f}"]
        for run in result["runs"]
    ]
    rows.append(["mean (sd)", "", f"{result['mean']:.4f} ({result['sd']:.4f})", ""])
    header = ["seed", "validation (12 images, for selection)", f"{result['images']} other images", "seconds"]
    return table(header, rows) + f"\n\n{' and '.join(result['classes'])}; torch {result['torch']}."


def multi_scale(result: Result) -> str:
    """Format accuracy by test size of the multi-scale run and of the run at a fixed size."""
    runs = result["runs"]
    header = ["size"] + [f"{name}, top-1" for name in runs] + ["multiply-adds", "images/s"]
    body: list[list[object]] = []
    for rows in zip(*(run["rows"] for run in runs.values()), strict=True):
        first = rows[0]
        body.append(
            [f"{first['size']} px", *(f"{row['top1']:.4f}" for row in rows), f"{first['macs']:,}",
             f"{first['images_per_second']:.0f}"]
        )  # fmt: skip
    body.append(["average", *(f"{run['average']['top1']:.4f}" for run in runs.values()), "", ""])
    return table(header, body)


def d2l_recipe(result: Result) -> str:
    """Format the final accuracy of each run, and the mean training curve."""
    runs = result["runs"]
    final: list[list[object]] = [[run["seed"], f"{run['top1']:.4f}"] for run in runs]
    if len(runs) > 1:
        final.append(["mean (sd)", f"{result['top1_mean']:.4f} ({result['top1_sd']:.4f})"])
    epochs: list[list[object]] = []
    for rows in zip(*(run["epochs"] for run in runs), strict=True):
        means = (sum(row[key] for row in rows) / len(rows) for key in ("loss", "accuracy"))
        epochs.append([rows[0]["epoch"], *(f"{mean:.3f}" for mean in means)])
    seconds = ", ".join(f"{run['seconds']:.0f}" for run in runs)
    return (
        f"{table(['seed', 'test top-1 after the last epoch'], final)}\n\n"
        f"{table(['epoch', 'training loss', 'training accuracy'], epochs)}\n\n"
        f"Means over {plural(len(runs), 'seed')} and all steps of an epoch. {result['device']}, torch "
        f"{result['torch']}, float32; {seconds} s of training, {result['parallel']} runs in parallel."
    )


def ablation(result: Result) -> str:
    """Format one change of the recipe per row, with seconds if the runs were not parallel."""
    sequential = result["parallel"] == 1
    rows = [
        [
            row["change"], f"`{row['keys']}`" if row["keys"] else "", f"{row['validation_top1_mean']:.4f}",
            "" if row["validation_top1_sd"] is None else row["validation_top1_sd"], row["n"],
            *([row["seconds"]] if sequential else []),
        ]
        for row in result["rows"]
    ]  # fmt: skip
    header = ["change", "keys", "validation top-1, mean", "sd", "n", *(["seconds, median"] if sequential else [])]
    tta = ", with horizontal flips" if result["tta_flip"] else ""
    return f"{table(header, rows)}\n\nSeeds from 0{tta}; {result['device']}, torch {result['torch']}."


def own_images(result: Result) -> str:
    """Format the accuracy of every side for each folder and time, and what was planned."""
    header = ["images", "minutes", "side", "test top-1, mean", "95 % interval", "sd", "n", "seconds, whole command"]
    body = [
        [
            row["data"], f"{row['minutes']:g}", row["side"], f"{row['top1']:.4f}", f"± {row['half_interval']:.4f}",
            f"{row['sd']:.4f}", row["n"], f"{row['seconds']:.0f}",
        ]
        for row in sorted(result["rows"], key=lambda row: (row["data"], row["minutes"]))
    ]  # fmt: skip
    plans = [[row["data"], f"{row['minutes']:g}", "; ".join(row["plan"][2:5])] for row in result["rows"] if row["plan"]]
    return (
        f"{table(header, body)}\n\n{table(['images', 'minutes', 'plan of seed 0'], plans)}\n\n{result['device']}, "
        f"{plural(result['threads'], 'thread')}, torch {result['torch']}. The interval is that of one run on the test "
        "images."
    )


def plan_rules(result: Result) -> str:
    """Format the validation accuracy of every setting."""
    header = ["images", "seconds of one core", "setting", "epochs", "validation top-1", "95 % interval"]
    body = [
        [
            row["data"], f"{row['seconds']:g}", f"`{row['flags']}`", f"{row['epochs']:.1f}", f"{row['top1']:.3f}",
            f"± {row['half_interval']:.3f}",
        ]
        for row in result["rows"]
    ]  # fmt: skip
    note = f" {result['note']}" if "note" in result else ""
    return f"{table(header, body)}\n\nOne run of each (n = 1); CPU, one thread, torch {result['torch']}.{note}"
