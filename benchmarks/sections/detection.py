"""Objects: the pyramid's parts with and without, and torchvision's detector."""

from .markdown import Found, counted, table

FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "recall")
FIGURE_NAMES = ["AP", "AP50", "AP75", "small", "medium", "large", "recall"]


def detection(found: Found) -> str:
    """Every way to find objects, by COCO's figures; how far the exported file is from PyTorch."""
    rows = [
        [row["what"], *(f"{row[key]:.3f}" if key in row else "" for key in FIGURES),
         "" if row.get("seconds") is None else f"{row['seconds']:.0f}", row.get("images_per_second", "")]
        for row in found["rows"]
    ]  # fmt: skip
    head = ["", *FIGURE_NAMES, "training, s", "pictures/s"]
    text = (
        f"{table(head, rows)}\n\n{found['train']:,} training scenes, {found['test']:,} test scenes; "
        f"{counted(found['threads'], 'thread')}, torch {found['torch']}."
    )
    if found["export"] is None:
        return text
    export = found["export"]
    return (
        f"{text} The exported file's boxes are within {export['box']:.1e} pixels and {export['score']:.1e} of the "
        f"score of PyTorch's, on {export['pictures']} scenes of 40 to 260 pixels."
    )


def detection_peer(found: Found) -> str:
    """What torchvision's detector learns in the same time."""
    figures = found["figures"]
    return (
        f"{table(FIGURE_NAMES, [[f'{figures[key]:.3f}' if key in figures else '' for key in FIGURES]])}\n\n"
        f"{found['seconds']:,.0f} s of training, {found['steps']:,} steps of {found['batch']} pictures of "
        f"{found['size']} px with {found['regions']} regions each; {found['images_per_second']} pictures/s are "
        f"answered; {found['train']:,} training scenes, {found['test']:,} test scenes; "
        f"{counted(found['threads'], 'thread')}, torch {found['torch']}."
    )
