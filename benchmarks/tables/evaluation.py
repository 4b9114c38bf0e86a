"""Tables of ensembles with crops, of class activation maps, and of FID."""

from .markdown import Result, plural, table

METRIC_NAMES = ["fid", "kid", "kid sd", "inception score", "inception score sd", "precision", "recall"]


def ensemble(result: Result) -> str:
    """Format the paper's table, the comparisons, the accuracy by scale, and the speed of crops."""
    crops = sorted({cell["crops"] for cell in result["table"]})
    cells = {(cell["models"], cell["crops"]): cell for cell in result["table"]}

    def format_cell(cell: Result) -> str:
        low, high = cell["interval"]
        return f"{1 - cell['top1']:.4f} [{1 - high:.4f}, {1 - low:.4f}] / {1 - cell['top5']:.4f}"

    errors = table(
        ["models", *(plural(count, "crop") for count in crops)],
        [[models, *(format_cell(cells[models, count]) for count in crops)] for models in sorted({m for m, _ in cells})],
    )
    comparisons = table(
        ["compared with 1 model, 1 crop", "top-1", "correct only before", "correct only now", "p (McNemar)", "ECE"],
        [
            [
                f"{plural(row['models'], 'model')}, {plural(row['crops'], 'crop')}",
                f"{row['gain']:+.4f}", row["only_first"], row["only_second"], f"{row['p']:.2g}",
                f"{cells[row['models'], row['crops']]['ece']:.4f}",
            ]
            for row in result["comparisons"]
        ],
    )  # fmt: skip
    scales = table(
        ["scale", "area of a crop", "center", "four corners", "whole square", "all 12", "all scales up to this"],
        [
            [
                f"{row['scale']} px", f"{row['area_fraction']:.0%}",
                *(f"{row[kind]:.4f}" for kind in ("center", "corners", "whole", "all", "cumulative")),
            ]
            for row in result["by_scale"]
        ],
    )  # fmt: skip
    members = ", ".join(f"{member['top1']['1']:.4f}" for member in result["members"])
    text = (
        f"{errors}\n\nTop-1 error with its 95 % interval ({result['interval_method']}) / top-5 error, on "
        f"{result['images']:,} test images.\n\n"
        f"{comparisons}\n\nTop-1 accuracy of the first network's crops by scale (each with its flip):\n\n{scales}\n\n"
        f"Top-1 of the members, 1 crop: {members}. Computed in {result['precision']}, torch {result['torch']}."
    )
    if speed := result.get("speed"):
        text += (
            f"\n\nSpeed of 144 crops of {speed['images']:,} images at {speed['size']} px, of which "
            f"{speed['crops_computed']:,} are distinct and computed: {speed['crops_per_second']} crops/s; "
            f"{speed['tensors_per_second']} crops/s for the same tensors, prepared. **Ratio: {speed['ratio']}.**"
        )
    return text


def cam_localization(result: Result) -> str:
    """Format how often the map's peak is inside the garment's box, with baselines."""
    low, high = result["interval"]
    rows: list[list[object]] = [
        ["map of the predicted class", f"**{result['inside_box']:.3f}** ({low:.3f}-{high:.3f})"],
        ["map of the true class", f"{result['inside_box_true_class']:.3f}"],
        ["map of an untrained network", f"{result['inside_box_untrained']:.3f}"],
        ["random position: mean area of the boxes", f"{result['inside_box_random']:.3f}"],
    ]
    header = ["peak of", f"inside the box (95 % interval, {result['interval_method']})"]
    return (
        f"{table(header, rows)}\n\n"
        f"{result['scenes']} scenes of {result['scene_size']} px, resized to {result['image_size']} px, maps of "
        f"{result['map_size']}x{result['map_size']}; top-1 on them {result['top1']:.3f}. "
        f"On the same number of scenes of the training set, which selected the settings, "
        f"{result['inside_box_train']:.3f}. Trained on "
        f"{result['train']:,} scenes in {result['seconds']:.0f} s; {plural(result['threads'], 'thread')}, torch "
        f"{result['torch']}; one seed."
    )


def fid(result: Result) -> str:
    """Format speed, memory and value of every tool, and how far this package's value is from it."""
    rows: list[list[object]] = []
    for row in result["rows"]:
        if "error" in row:
            rows.append([row["side"], "", "", "", row["error"]])
            continue
        difference = row.get("relative_difference")
        speed, memory = f"{row['images_per_second']:.1f}", f"{row['peak_bytes'] / 1e6:.0f}"
        rows.append(
            [row["side"], speed, memory, f"{row['fid']:.6g}", "" if difference is None else f"{difference:.1e}"]
        )
    header = ["side", "images/s", "peak MB", "FID", "relative difference of this package in the same mode"]
    matrix = next((row["matrix_seconds"] for row in result["rows"] if "matrix_seconds" in row), None)
    seconds = "" if matrix is None else f" The matrix part takes {matrix:.1f} s here."
    return (
        f"{table(header, rows)}\n\n{result['images']:,} images of {result['size']} px in each set, random weights, "
        f"{plural(result['cores'], 'core')}, torch {result['torch']}, from files to the value, one run.{seconds}"
    )


def fid_values(result: Result) -> str:
    """Format every value of the tools, and the relative differences of this package's values from them."""
    rows: list[list[object]] = [
        [
            row["metric"], row["tool"], f"{row['value']:.7g}", f"{row['googlenet']:.7g}",
            f"{row['relative_difference']:.1e}", f"{row['relative_difference_of_formula']:.1e}",
        ]
        for row in sorted(result["rows"], key=lambda row: METRIC_NAMES.index(row["metric"]))
    ]  # fmt: skip
    header = ["metric", "tool", "its value", "`--like` it", "relative difference", "from the features of the tool"]
    return (
        f"{table(header, rows)}\n\n{result['images']:,} images in each set: Fashion-MNIST in several sizes, and "
        f"drawings of Openclipart. Random weights; {result['engine']} in float32, torch {result['torch']}."
    )
