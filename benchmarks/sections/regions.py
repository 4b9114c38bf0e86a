"""R-CNN: its parts, each with and without. One function per benchmark: its JSON as Markdown."""

from .markdown import Found, counted, table


def rcnn(found: Found) -> str:
    """Every combination: proposals, coverage, precision; and what it was measured on."""
    rows: list[list[object]] = [
        [
            row["what"], row["proposals"], f"{row['coverage']:.3f}", f"{row['ap50']:.3f}", f"{row['ap75']:.3f}",
            f"{row['ap']:.3f}", row["classify_seconds"],
        ]
        for row in found["rows"]
    ]  # fmt: skip
    head = ["proposals and networks", "a picture", "coverage", "AP50", "AP75", "AP", "seconds, all pictures"]
    seconds = [run["seconds"] for run in found["runs"]]
    trained = f", each trained in {min(seconds):.0f}-{max(seconds):.0f} s" if seconds else ""
    return (
        f"{table(head, rows)}\n\n{found['scenes']:,} test scenes; {counted(found['networks'], 'network')} of "
        f"{found['epochs']:g} epochs over {found['training_scenes']:,} scenes{trained}. The seconds are of the "
        f"classification alone. {counted(found['threads'], 'thread')}, {found['cores']} cores, "
        f"torch {found['torch']}."
    )
