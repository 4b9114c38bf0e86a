"""Tables of detection: the feature pyramid and torchvision's detector."""

from .markdown import Result, plural, table

METRICS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "recall")
METRIC_NAMES = ["AP", "AP50", "AP75", "small", "medium", "large", "recall"]


def _metrics(row: Result) -> list[object]:
    return [f"{row[key]:.3f}" if key in row else "" for key in METRICS]


def detection(result: Result) -> str:
    """Format COCO metrics of every configuration, and the difference of the exported file from PyTorch."""
    rows = [
        [row["name"], *_metrics(row), "" if row.get("seconds") is None else f"{row['seconds']:.0f}",
         row.get("images_per_second", "")]
        for row in result["rows"]
    ]  # fmt: skip
    text = (
        f"{table(['', *METRIC_NAMES, 'training, s', 'images/s'], rows)}\n\n{result['train']:,} training scenes, "
        f"{result['test']:,} test scenes; {plural(result['threads'], 'thread')}, torch {result['torch']}."
    )
    export = result["export"]
    if export is None:
        return text
    return (
        f"{text} The boxes of the exported file differ from PyTorch's by at most {export['max_error']:.1e} pixels and "
        f"{export['max_score_error']:.1e} of the score, on {export['images']} scenes of 40 to 260 pixels."
    )


def detection_baseline(result: Result) -> str:
    """Format COCO metrics of torchvision's detector."""
    return (
        f"{table(METRIC_NAMES, [_metrics(result['metrics'])])}\n\n"
        f"{result['seconds']:,.0f} s of training, {result['steps']:,} steps of {result['batch']} images of "
        f"{result['size']} px with {result['regions']} regions each; {result['images_per_second']} images/s in "
        f"evaluation; {result['train']:,} training scenes, {result['test']:,} test scenes; "
        f"{plural(result['threads'], 'thread')}, torch {result['torch']}."
    )
