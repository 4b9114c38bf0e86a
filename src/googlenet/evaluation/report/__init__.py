"""Reports as HTML pages without external resources: tiles with values, sections with charts, tables and images."""

import base64
import io
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from torch import Tensor

from ...data.accounting import Accounting, plural
from ...data.decode import to_display


class Tile(NamedTuple):
    """A `value` in large type at the top of a page, with a `label`."""

    value: str
    label: str


class Section(NamedTuple):
    """A part of a page: `title`, an optional `note`, and a `body` of HTML, which is not escaped."""

    title: str
    note: str
    body: str


class ReportInfo(NamedTuple):
    """What every run's report shows: title, recipe (YAML), entries of metrics.jsonl, classes, environment."""

    title: str
    recipe: str
    entries: list[dict[str, Any]]
    classes: tuple[str, ...]
    environment: dict[str, Any]

    @property
    def evaluated_split(self) -> str:
        """Return the name of the split that was evaluated last, "none" without validation and test images."""
        return next((entry["split"] for entry in reversed(self.entries) if entry["split"] != "train"), "none")


class GalleryItem(NamedTuple):
    """An image, uint8 (1 or 3, h, w), with a `title`, a `note` that follows it, and the name of its file."""

    image: Tensor
    title: str
    note: str
    name: str


class Cell(NamedTuple):
    """A cell of a table: its text, and the share 0..1 of the color of its background."""

    text: str
    shade: float = 0.0
    error: bool = False


@cache
def template_environment(package: str) -> Environment:
    """Return the templates of a package; values are escaped unless they are `Markup`."""
    environment = Environment(loader=PackageLoader(package), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["data_url"] = data_url
    return environment


def render(template: str, **values: Any) -> Markup:
    """Render a template of this package: ``table.html`` of rows (name, cells), ``gallery.html`` of items, ..."""
    return Markup(template_environment("googlenet.evaluation.report").get_template(template).render(**values))


def render_run_page(info: ReportInfo, tiles: Sequence[Tile], sections: Sequence[Section]) -> str:
    """Render the report of a run: `tiles` and `sections`, then the command, the recipe and the environment."""
    seconds = max((entry["seconds"] for entry in info.entries if entry["split"] == "train"), default=0.0)
    command = info.environment.get("command") or "googlenet.fit(recipe, out)"
    hidden = ("command", "data")
    values = {key: value for key, value in info.environment.items() if key not in hidden and value is not None}
    subtitle = f"Trained {values.get('started', '')} with googlenet {values.get('googlenet', '')}"
    origin = [
        *_data_section(info.environment.get("data")),
        Section("Command", "", Markup("<pre>{}</pre>").format(command)),
        Section("Recipe", "All values, including the defaults.", Markup("<pre>{}</pre>").format(info.recipe)),
        Section("Environment", "", render("definitions.html", values=values)),
    ]
    tiles = [*tiles, Tile(format_duration(seconds), "training time")]
    return render("page.html", title=info.title, subtitle=subtitle, tiles=tiles, sections=[*sections, *origin])


def _data_section(accounting: dict[str, Any] | None) -> list[Section]:
    """Return the section with the used and excluded items of the data source."""
    if not accounting:
        return []
    counts = Accounting.from_dict(accounting)
    used = [f"{count:,} {plural(kind, count)} used" for kind, count in counts.used.items()]
    items = Markup().join(Markup("<li>{}</li>").format(line) for line in [*used, *counts.lines()])
    return [Section("Data", "", Markup("<ul>{}</ul>").format(items))]


def data_url(image: Tensor | bytes) -> str:
    """Return a data URL of a PNG file, or of an image uint8 (channels, h, w) that is encoded as one."""
    if isinstance(image, Tensor):
        buffer = io.BytesIO()
        to_display(image).save(buffer, "PNG")
        image = buffer.getvalue()
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def format_duration(seconds: float) -> str:
    """Format a duration as "1 h 5 min", "5 min 3 s" or "3 s"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
