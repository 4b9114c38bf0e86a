"""Markdown helpers of the tables."""

from typing import Any

Result = dict[str, Any]


def table(header: list[str], rows: list[list[object]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plural(count: int, noun: str) -> str:
    """Return "1 thread", "2 threads"."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def processor(cpu: Result) -> str:
    """Format the model and the features of a processor."""
    return f"{cpu['model']} ({cpu['cores']} cores; {', '.join(cpu['features'])})"
