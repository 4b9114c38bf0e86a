"""HTML pages: the web interface at ``/`` and the route list at ``/docs``. They load nothing from other servers."""

import base64
import hashlib
import html
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

PAGE = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
_STYLES, _SCRIPTS = (re.findall(rf"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL) for tag in ("style", "script"))


def _csp_hashes(contents: list[str]) -> str:
    """Return the CSP sources that allow inline elements with these contents, by SHA-256."""
    digests = (base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in contents)
    return " ".join(f"'sha256-{digest}'" for digest in digests)


# Only the inline code of the page runs, and it connects to this server only.
PAGE_HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {_csp_hashes(_SCRIPTS)}; style-src {_csp_hashes(_STYLES)}; "
        "img-src 'self' data: blob:; media-src 'self' blob:; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
}


def render_docs(openapi: dict[str, Any]) -> str:
    """Render the OpenAPI document as an HTML page: every route, its description and its content types."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    # Text in backticks becomes code.
    environment.filters["with_code"] = lambda text: re.sub(r"`+([^`]+)`+", r"<code>\1</code>", html.escape(text))
    return environment.get_template("docs.html").render(openapi, style=_STYLES[0])
