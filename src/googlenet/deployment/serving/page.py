"""What a browser gets: the page at ``/``, and the routes at ``/docs``. Neither asks another server for anything."""

import base64
import hashlib
import html
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("page.html").read_text(encoding="utf-8")

_DOCUMENTATION = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>googlenet: routes</title><link rel="icon" href="data:,">{style}</head>
<body><main><p><a href="/">The page</a> &middot; <a href="/openapi.json">openapi.json</a></p>
<h1>Routes</h1><p>{about}</p>
{sections}
</main></body></html>
"""


def _hashes(tag: str, text: str) -> str:
    """What the page's own <script> or <style> is allowed by: a digest of exactly its text."""
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in found)
    return " ".join(f"'sha256-{digest}'" for digest in digests)


_STYLE = "<style>" + re.findall(r"<style>(.*?)</style>", PAGE, re.DOTALL)[0] + "</style>"

# Nothing but what is in the file itself runs, and nothing but this server is spoken to.
PAGE_HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {_hashes('script', PAGE)}; style-src {_hashes('style', PAGE)}; "
        "img-src 'self' data: blob:; media-src 'self' blob:; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
}


def documentation(document: dict[str, Any]) -> str:
    """The OpenAPI document as one page: every route, what it is for, what it takes."""
    sections = []
    for path, methods in document["paths"].items():
        for method, about in methods.items():
            kinds = list(about.get("requestBody", {}).get("content", {}))
            takes = f"<p class='soft'>Takes {html.escape(', '.join(kinds))}</p>" if kinds else ""
            sections.append(
                f"<section><h2><code>{method.upper()} {html.escape(path)}</code></h2>"
                f"<p><b>{html.escape(about.get('summary', ''))}.</b> {_text(about.get('description', ''))}</p>"
                f"{takes}</section>"
            )
    about = document["info"].get("description", "")
    return _DOCUMENTATION.format(style=_STYLE, about=html.escape(about), sections="\n".join(sections))


def _text(marked: str) -> str:
    """A docstring as HTML: `names` as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(marked))
