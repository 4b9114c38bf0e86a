"""Tables of R-CNN and its components."""

from .markdown import Result, plural, table


def rcnn(result: Result) -> str:
    """Format proposals, recall and average precision of every combination."""
    rows: list[list[object]] = [
        [
            row["name"], row["proposals"], f"{row['recall']:.3f}", f"{row['ap50']:.3f}", f"{row['ap75']:.3f}",
            f"{row['ap']:.3f}", row["classify_seconds"],
        ]
        for row in result["rows"]
    ]  # fmt: skip
    header = ["proposals and networks", "proposals per image", "recall", "AP50", "AP75", "AP", "seconds, all images"]
    seconds = [run["seconds"] for run in result["runs"]]
    trained = f", each trained in {min(seconds):.0f}-{max(seconds):.0f} s" if seconds else ""
    return (
        f"{table(header, rows)}\n\n{result['scenes']:,} test scenes; {plural(result['networks'], 'network')} of "
        f"{result['epochs']:g} epochs on {result['training_scenes']:,} scenes{trained}. The seconds are those of the "
        f"classification. {plural(result['threads'], 'thread')}, {result['cores']} cores, torch {result['torch']}."
    )
