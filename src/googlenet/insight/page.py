"""The pictures of a network as one self-contained HTML page: opens offline, asks no server for anything."""

import base64
import html
from collections.abc import Sequence
from typing import NamedTuple

from ..evaluation.report import PAGE, STYLE

MORE_STYLE = (
    "section img { width: 100%; max-width: 800px; height: auto; } section pre { white-space: pre-wrap; } "
    "section figure { margin: 0 0 1rem; }"
)


class Picture(NamedTuple):
    """A picture's `file` name, its `png`, and a sentence that says what it shows."""

    file: str
    png: bytes
    caption: str


class Section(NamedTuple):
    """One question: its `title`, the `pictures` that answer it, and the `lines` of text that a terminal gets too."""

    title: str
    pictures: Sequence[Picture]
    lines: Sequence[str]


def render_page(title: str, about: str, sections: Sequence[Section]) -> str:
    """The page; the sections in their order."""
    return PAGE.format(
        title=html.escape(title),
        style=STYLE + MORE_STYLE,
        about=html.escape(about),
        tiles="",
        sections="".join(map(section, sections)),
    )


# Where a run's own report has the sections, so that newer ones take their place.
START, STOP = "<!-- explain -->", "<!-- end explain -->"


def with_sections(report: str, sections: Sequence[Section]) -> str:
    """A run's report.html with the sections at its end, in place of those that were put there before.

    ValueError for a page that is not such a report.
    """
    before, found, after = report.partition("</main>")
    if not found:
        raise ValueError("not a report of ours: it has no </main>")
    before = before.partition(START)[0].rstrip()
    style = f"<style>{MORE_STYLE}</style>"
    return f"{before}\n{START}{style}{''.join(map(section, sections))}{STOP}\n{found}{after}"


def section(content: Section) -> str:
    """One section's HTML."""
    figures = "".join(
        f"<figure><img alt='{html.escape(picture.caption, quote=True)}' src='{_data_url(picture.png)}'>"
        f"<figcaption class='soft'>{html.escape(picture.caption)}</figcaption></figure>"
        for picture in content.pictures
    )
    text = html.escape("\n".join(content.lines))
    return f"<section><h2>{html.escape(content.title)}</h2>{figures}<pre>{text}</pre></section>"


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
