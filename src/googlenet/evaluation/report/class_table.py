"""The table of the metrics of each class in a report."""

from collections.abc import Sequence

from ..class_metrics import METRICS, ClassMetrics, Estimate
from . import Cell, Section, render

NOTE = (
    "Each class against the rest; averages over the classes: macro counts every class once, weighted by its images. "
    "In parentheses: 95 % intervals. A dash: undefined, for example without images of the class."
)


def class_metrics_section(metrics: ClassMetrics, classes: Sequence[str], note: str = NOTE) -> Section:
    """Return the section with the averages and all classes."""
    rows = [
        (kind, [Cell(""), *(_cell(estimates.get(name, Estimate(None))) for name in METRICS)])
        for kind, estimates in metrics.averages.items()
    ]
    rows += [
        (name, [Cell(f"{row.images:,}"), *(_cell(row.estimates[key]) for key in METRICS)])
        for name, row in zip(classes, metrics.classes, strict=True)
    ]
    table = render("table.html", header=["images", *METRICS.values()], rows=rows, table_class="values")
    return Section("Metrics of the classes", note, table)


def _cell(item: Estimate) -> Cell:
    if item.value is None:
        return Cell("-")
    interval = f" ({item.interval.low:.2f} to {item.interval.high:.2f})" if item.interval else ""
    return Cell(f"{item.value:.3f}{interval}")
