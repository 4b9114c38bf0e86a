"""The documentation site: navigation, no request to another server, and how it works in a browser."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml

from conftest import BuildOnce
from googlenet.cli.main import COMMANDS
from googlenet.config.parse import list_recipes

ROOT = Path(__file__).parents[1]
# Attributes whose addresses a browser requests by itself; links in `a` are requested when they are followed.
LOADED = {"src", "srcset", "data", "poster"}
LOADED_LINKS = {"stylesheet", "icon", "preload", "preconnect", "dns-prefetch", "manifest", "modulepreload", "prefetch"}


def nav_pages(entry: object) -> Iterator[str]:
    """Yield the pages of a part of MkDocs' navigation."""
    if isinstance(entry, str):
        yield entry
    else:
        assert isinstance(entry, list | dict)
        for item in entry if isinstance(entry, list) else entry.values():
            yield from nav_pages(item)


def test_the_navigation_lists_every_page() -> None:
    """If this fails for a new page in docs/, add it to `nav` in mkdocs.yml."""
    listed = list(nav_pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert len(listed) == len(set(listed))
    generated = {"index.md", "contributing.md", "changelog.md", "security.md"}
    pages = [name for name in listed if not name.startswith("reference/") and name not in generated]
    assert sorted(pages) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def build_site(folder: Path) -> None:
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def site(build_once: BuildOnce) -> Path:
    """The built site; broken links are errors."""
    pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")
    return build_once("site", build_site)


class Requests(HTMLParser):
    """Collect the addresses that a browser requests when it shows a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.addresses += [values[name] for name in LOADED & values.keys()]
        if tag == "link" and LOADED_LINKS & set(values.get("rel", "").split()):
            self.addresses.append(values.get("href", ""))


def is_external(address: str) -> bool:
    return bool(re.match(r"(https?:)?//", address))


@pytest.mark.release
def test_no_page_requests_another_server(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        requests = Requests()
        requests.feed(page.read_text())
        assert [address for address in requests.addresses if is_external(address)] == [], page
        # Material loads Mermaid from a CDN for diagrams in this form.
        assert 'class="mermaid"' not in page.read_text()
    for sheet in site.rglob("*.css"):
        urls = re.findall(r"url\(['\"]?([^)'\"]*)|@import ['\"]([^'\"]*)", sheet.read_text())
        assert [url for pair in urls for url in pair if is_external(url)] == [], sheet


@pytest.mark.release
def test_the_reference_is_complete(site: Path) -> None:
    import googlenet

    cli = (site / "reference" / "cli.html").read_text()
    assert all(f"usage: googlenet {name}" in cli for name in COMMANDS)
    recipes = (site / "reference" / "recipes.html").read_text()
    assert all(f'id="{name}"' in recipes for name in list_recipes())
    api = (site / "reference" / "api.html").read_text()
    for name in set(googlenet.__all__) - {"create"}:
        target = f"googlenet.{googlenet._LAZY_ATTRS[name]}.{name}"
        assert f'id="{target}"' in api, target


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder on a free port, without a log."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.release
@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(site: Path, width: int, tmp_path: Path) -> None:
    """Search works by keyboard, pages do not scroll sideways, and all requests go to the site's own server."""
    playwright = pytest.importorskip("playwright.sync_api")
    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser_path is None:
        pytest.skip("no Chromium")
    requested: list[str] = []
    with serve(site) as url, playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.on("request", lambda request: requested.append(request.url))
        for name in ("index", "tour.zh-CN", "reference/cli", "performance"):
            page.goto(f"{url}/{name}.html")
            page.wait_for_load_state("networkidle")
            overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert overflow <= 0, f"{name} at {width} px scrolls sideways by {overflow} px"
        assert page.evaluate("document.documentElement.lang") == "en"
        page.keyboard.press("/")  # opens the search
        page.keyboard.type("auxiliary classifiers")
        page.wait_for_selector(".md-search-result__item a")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        page.wait_for_url("**h=auxiliary*")
        browser.close()
    assert len(requested) > 10
    assert {address.split("/")[2] for address in requested if not address.startswith("data:")} == {url[7:]}
