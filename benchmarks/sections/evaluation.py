"""Several networks and crops; where class maps point. One function per benchmark: its JSON as Markdown."""

from .markdown import Found, counted, table


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
        ["scale", "a crop sees", "centre", "four corners", "whole square", "all 12", "scales so far"],
        [
            [
                f"{row['scale']} px", f"{row['area']:.0%}",
                *(f"{row[kind]:.4f}" for kind in ("centre", "corners", "whole", "all", "scales_so_far")),
            ]
            for row in found["by_scale"]
        ],
    )  # fmt: skip
    members = ", ".join(f"{member['top1']['1']:.4f}" for member in found["members"])
    text = (
        f"{grid}\n\nTop-1 error with its 95 % interval / top-5 error, on {found['images']:,} test pictures.\n\n"
        f"{gains}\n\nThe first network's crops, scale by scale, top-1 accuracy (each with its mirror image):\n\n"
        f"{scales}\n\nThe members alone, 1 crop: {members}. Answers in {found['precision']}, torch {found['torch']}."
    )
    if speed := found.get("speed"):
        text += (
            f"\n\n144 crops of {speed['pictures']:,} pictures at {speed['size']} px, of which "
            f"{speed['crops_computed']:,} are distinct and computed: {speed['crops_per_second']} a second, and "
            f"{speed['plain_per_second']} a second of the same tensors in plain batches. **Ratio: {speed['ratio']}.**"
        )
    return text


def cam_peak(found: Found) -> str:
    """How often the map's peak lies in the garment's box, and how often anything would."""
    low, high = found["interval"]
    rows: list[list[object]] = [
        ["the map of the network's answer", f"**{found['inside']:.3f}** ({low:.3f}-{high:.3f})"],
        ["the map of the true class", f"{found['inside_true_class']:.3f}"],
        ["the map of a network that has learned nothing", f"{found['inside_untrained']:.3f}"],
        ["a place by chance: the boxes' mean share of the picture", f"{found['inside_by_chance']:.3f}"],
    ]
    return (
        f"{table(['peak of', 'inside the box (95 % interval)'], rows)}\n\n{found['scenes']} scenes of "
        f"{found['side']} px, seen at {found['size']} px, maps of {found['map']}x{found['map']}; "
        f"top-1 on them {found['top1']:.3f}. "
        f"On as many further scenes of the training part, by which the settings were chosen, "
        f"{found['inside_training_part']:.3f}. Trained on {found['train']:,} scenes in {found['seconds']:.0f} s; "
        f"{counted(found['threads'], 'thread')}, torch {found['torch']}; one seed."
    )
