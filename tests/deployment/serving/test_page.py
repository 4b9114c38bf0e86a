"""The page at / as people meet it, in a real Chromium: by mouse, by drop, by keyboard, on a phone, by camera."""

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from servers import Running, in_thread, offline, png

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; make test installs it where apt-get may be used"),
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
DESK, PHONE = {"width": 1100, "height": 900}, {"width": 390, "height": 844}


class Seen(NamedTuple):
    """A page, every address that it asked, and what it complained of."""

    page: Page
    asked: list[str]
    complaints: list[str]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


def opened(browser: Browser, url: str, size: dict[str, int], scheme: str = "light") -> Seen:
    context = browser.new_context(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.set_default_timeout(20_000)
    seen = Seen(page, [], [])
    page.on("request", lambda request: seen.asked.append(request.url))
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.on("console", lambda said: seen.complaints.append(said.text) if said.type == "error" else None)
    page.goto(url)
    expect(page.locator("#about")).to_contain_text("5 classes")
    return seen


def drop(page: Page, name: str, kind: str, data: bytes) -> None:
    """Let go of a file over the page, as a mouse would."""
    page.evaluate(
        """([name, type, data]) => {
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([bytes], name, { type }));
            for (const kind of ["dragover", "drop"])
                document.querySelector("#stage").dispatchEvent(
                    new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true }));
        }""",
        [name, kind, base64.b64encode(data).decode()],
    )


def answered(page: Page) -> list[tuple[str, float]]:
    """The classes and their percentages, when everything is there: the map and the sizes too."""
    expect(page.locator("#several")).to_be_visible()
    assert page.locator("#heat").evaluate("img => img.decode().then(() => img.naturalWidth)") == 448
    rows = page.locator("#classes .name").all()
    return [(row.locator("span").first.inner_text(), float(row.locator(".number").inner_text()[:-2])) for row in rows]


def test_by_click_and_by_drop(browser: Browser, server: Running, small_run: Path, pictures: list[Path]) -> None:
    seen = opened(browser, server.url, DESK)
    page = seen.page
    with page.expect_file_chooser() as choosing:
        page.get_by_role("button", name="Choose a picture").click()
    choosing.value.set_files(pictures[0])
    first, second = offline(small_run, [pictures[0], pictures[3]])
    assert answered(page) == [(label, pytest.approx(100 * share, abs=0.06)) for label, share in first.items()]
    widths = [
        bar.evaluate("bar => bar.offsetWidth / bar.parentNode.offsetWidth")
        for bar in page.locator("#classes i").all()
    ]
    assert widths == pytest.approx(list(first.values()), abs=0.05)
    assert page.locator("#legend dt").all_inner_texts() == ["Decode", "Queue", "Compute", "On the way"]
    assert page.locator("#sizes tr td:first-child").all_inner_texts() == ["48", "64", "80", "96"]
    page.locator("#several").evaluate("section => { section.hidden = true; }")
    drop(page, "dropped.webp", "image/webp", pictures[3].read_bytes())
    expect(page.locator("#status")).to_contain_text("dropped.webp")
    assert answered(page) == [(label, pytest.approx(100 * share, abs=0.06)) for label, share in second.items()]
    # Another class has another map.
    before = page.locator("#heat").get_attribute("src")
    rows = page.locator("#classes button")
    rows.nth(2).click()
    expect(rows.nth(2)).to_have_attribute("aria-pressed", "true")
    expect(rows.nth(0)).to_have_attribute("aria-pressed", "false")
    assert page.locator("#heat").get_attribute("src") != before
    assert {url.partition("/v1")[0].rstrip("/") for url in seen.asked if not url.startswith(("blob:", "data:"))} == {
        server.url
    }
    assert seen.complaints == []
    page.context.close()


def test_by_keyboard_on_a_phone(browser: Browser, server: Running, pictures: list[Path], tmp_path: Path) -> None:
    seen = opened(browser, server.url, PHONE, "dark")
    page = seen.page
    # Chosen files are caught from here on: begun at the key's press, it may come too late for the key.
    page.on("filechooser", lambda chooser: None)
    for name in ("Model", "Choose a picture"):
        page.keyboard.press("Tab")
        focused = page.evaluate("(document.activeElement.labels?.[0] ?? document.activeElement).textContent.trim()")
        assert focused.startswith(name)
    ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert ring == "solid", "one sees where one is"
    with page.expect_file_chooser() as choosing:
        page.keyboard.press("Enter")
    choosing.value.set_files(pictures[1])
    answered(page)
    for _ in range(3):
        page.keyboard.press("Tab")
    assert page.evaluate(
        "document.activeElement.closest('#classes') !== null || document.activeElement.id === 'opacity'"
    )
    strength = page.get_by_role("slider", name="Strength of the class activation map")
    strength.focus()
    before = float(page.locator("#heat").evaluate("img => getComputedStyle(img).opacity"))
    page.keyboard.press("ArrowLeft")
    assert float(page.locator("#heat").evaluate("img => getComputedStyle(img).opacity")) < before
    page.locator("#classes button").nth(1).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#classes button").nth(1)).to_have_attribute("aria-pressed", "true")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], "nothing sticks out sideways"
    heights = [button.bounding_box()["height"] for button in page.get_by_role("button").all()]  # type: ignore[index]
    assert min(heights) >= 44, "a thumb finds them"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 27)"
    assert seen.complaints == []
    page.screenshot(path=str(tmp_path / "phone.png"), full_page=True)
    page.context.close()


def test_what_is_no_picture(browser: Browser, server: Running) -> None:
    seen = opened(browser, server.url, PHONE)
    page = seen.page
    drop(page, "notes.txt", "text/plain", b"milk, eggs")
    alarm = page.get_by_role("alert")
    expect(alarm).to_have_text("notes.txt: not a picture in a format that Pillow reads")
    expect(page.locator("#answer")).to_be_hidden()
    drop(page, "good.png", "image/png", png())
    answered(page)
    expect(alarm).to_be_hidden()
    page.context.close()


def test_camera(browser: Browser, server: Running) -> None:
    seen = opened(browser, server.url, DESK)
    page = seen.page
    page.get_by_role("button", name="Use the camera").click()
    expect(page.get_by_role("button", name="Take the picture")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Use the camera")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Take the picture")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("camera.jpg")
    answered(page)
    assert page.locator("#video").evaluate("video => video.srcObject") is None, "the camera is let go of"
    assert seen.complaints == []
    page.context.close()


def test_the_key_is_asked_for(browser: Browser, small_run: Path) -> None:
    with in_thread(small_run, key="s3cret") as url:
        page = browser.new_page()
        page.goto(url)
        field = page.get_by_label("This server asks for its key")
        expect(field).to_be_focused()
        field.fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("key")
        field.fill("s3cret")
        page.keyboard.press("Enter")
        expect(page.locator("#about")).to_contain_text("5 classes")
        expect(field).to_be_hidden()
        drop(page, "good.png", "image/png", png())
        answered(page)
        page.close()
