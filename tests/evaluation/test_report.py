"""The report of a run: self-contained, and displayed in a browser on desktops and phones."""

import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


def test_the_page_has_no_external_resources(smoke_run: Path) -> None:
    page = (smoke_run / "report.html").read_text()
    links = re.findall(r"""(?:src|href)=["'](?!data:|#)([^"']*)""", page)
    assert links == []
    assert "@import" not in page
    assert "googlenet train fashion-mnist-smoke" in page


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; make test installs it if apt-get is allowed")
@pytest.mark.parametrize("width", [pytest.param(1100, marks=pytest.mark.slow), 390])
def test_the_page_in_chromium(smoke_run: Path, width: int, tmp_path: Path) -> None:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        requests, errors = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto((smoke_run / "report.html").as_uri())
        assert page.locator("table.matrix tbody tr").count() == 10
        assert page.locator("table.matrix tbody td").count() == 100
        assert page.locator("section svg").count() == 1
        images = page.locator(".gallery img")
        assert images.count() == 24
        assert all(images.nth(i).evaluate("img => img.naturalWidth") == 28 for i in range(24))
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "no horizontal scrolling"
        cells = [int(text or 0) for text in page.locator("table.matrix tbody td").all_inner_texts()]
        assert sum(cells) == 1000
        assert errors == []
        assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
        page.screenshot(path=str(tmp_path / "report.png"), full_page=True)
        browser.close()
