"""The web interface in Chromium: file chooser, drag and drop, keyboard, phone, camera, API key."""

import base64
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from googlenet.inference.loading import load_predictor
from servers import RunningServer, png, predict_offline, serve_in_thread

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; make test installs it where apt-get may be used"),
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
DESKTOP, PHONE = {"width": 1100, "height": 900}, {"width": 390, "height": 844}


class OpenPage(NamedTuple):
    """A page, the URLs of its requests, and its JavaScript errors."""

    page: Page
    requests: list[str]
    errors: list[str]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def open_page(browser: Browser, url: str, size: dict[str, int], scheme: str = "light", classes: int = 5) -> OpenPage:
    context = browser.new_context(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
    opened = OpenPage(context.new_page(), [], [])
    page = opened.page
    page.set_default_timeout(20_000)
    page.on("request", lambda request: opened.requests.append(request.url))
    page.on("pageerror", lambda error: opened.errors.append(str(error)))
    page.on("console", lambda message: opened.errors.append(message.text) if message.type == "error" else None)
    page.goto(url)
    expect(page.locator("#model-info")).to_contain_text(f"{classes} classes")
    return opened


def drop(page: Page, name: str, kind: str, data: bytes) -> None:
    """Drop a file on the page."""
    page.evaluate(
        """([name, type, data]) => {
            const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([bytes], name, { type }));
            for (const kind of ["dragover", "drop"])
                document.querySelector("#dropzone").dispatchEvent(
                    new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true }));
        }""",
        [name, kind, base64.b64encode(data).decode()],
    )


def read_results(page: Page) -> list[tuple[str, float]]:
    """Wait for all results, and return the classes and their percentages."""
    expect(page.locator("#by-size")).to_be_visible()
    assert page.locator("#heatmap").evaluate("img => img.decode().then(() => img.naturalWidth)") == 448
    rows = page.locator("#classes .label").all()
    return [(row.locator("span").first.inner_text(), float(row.locator(".number").inner_text()[:-2])) for row in rows]


def test_file_chooser_and_drop(browser: Browser, server: RunningServer, small_run: Path, images: list[Path]) -> None:
    opened = open_page(browser, server.url, DESKTOP)
    page = opened.page
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose an image").click()
    chooser.value.set_files(images[0])
    first, second = predict_offline(small_run, [images[0], images[3]])
    assert read_results(page) == [(label, pytest.approx(100 * share, abs=0.06)) for label, share in first.items()]
    widths = [
        bar.evaluate("bar => bar.offsetWidth / bar.parentNode.offsetWidth") for bar in page.locator("#classes i").all()
    ]
    assert widths == pytest.approx(list(first.values()), abs=0.05)
    assert page.locator("#legend dt").all_inner_texts() == ["Decode", "Queue", "Compute", "Network"]
    assert page.locator("#sizes tr td:first-child").all_inner_texts() == ["48", "64", "80", "96"]
    page.locator("#by-size").evaluate("section => { section.hidden = true; }")
    drop(page, "dropped.webp", "image/webp", images[3].read_bytes())
    expect(page.locator("#status")).to_contain_text("dropped.webp")
    assert read_results(page) == [(label, pytest.approx(100 * share, abs=0.06)) for label, share in second.items()]
    # Each class has its own class activation map.
    before = page.locator("#heatmap").get_attribute("src")
    rows = page.locator("#classes button")
    rows.nth(2).click()
    expect(rows.nth(2)).to_have_attribute("aria-pressed", "true")
    expect(rows.nth(0)).to_have_attribute("aria-pressed", "false")
    assert page.locator("#heatmap").get_attribute("src") != before
    assert {
        url.partition("/v1")[0].rstrip("/") for url in opened.requests if not url.startswith(("blob:", "data:"))
    } == {server.url}
    assert opened.errors == []
    page.context.close()


def test_keyboard_on_a_phone(browser: Browser, server: RunningServer, images: list[Path], tmp_path: Path) -> None:
    opened = open_page(browser, server.url, PHONE, "dark")
    page = opened.page
    # Intercept file choosers from now on: if interception starts at the key press, it may be too late.
    page.on("filechooser", lambda _: None)
    for name in ("Model", "Choose an image"):
        page.keyboard.press("Tab")
        focused = page.evaluate("(document.activeElement.labels?.[0] ?? document.activeElement).textContent.trim()")
        assert focused.startswith(name)
    ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert ring == "solid", "the focused element is visible"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(images[1])
    read_results(page)
    for _ in range(3):
        page.keyboard.press("Tab")
    assert page.evaluate(
        "document.activeElement.closest('#classes') !== null || document.activeElement.id === 'opacity'"
    )
    page.get_by_role("slider", name="Opacity of the class activation map").focus()
    before = float(page.locator("#heatmap").evaluate("img => getComputedStyle(img).opacity"))
    page.keyboard.press("ArrowLeft")
    assert float(page.locator("#heatmap").evaluate("img => getComputedStyle(img).opacity")) < before
    page.locator("#classes button").nth(1).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#classes button").nth(1)).to_have_attribute("aria-pressed", "true")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], "no horizontal scrolling"
    heights = [button.bounding_box()["height"] for button in page.get_by_role("button").all()]  # type: ignore[index]
    assert min(heights) >= 44, "minimum touch target"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 27)"
    assert opened.errors == []
    page.screenshot(path=str(tmp_path / "phone.png"), full_page=True)
    page.context.close()


def test_invalid_image(browser: Browser, server: RunningServer) -> None:
    opened = open_page(browser, server.url, PHONE)
    page = opened.page
    drop(page, "notes.txt", "text/plain", b"milk, eggs")
    alert = page.get_by_role("alert")
    expect(alert).to_have_text("notes.txt: not an image in a format that Pillow reads")
    expect(page.locator("#results")).to_be_hidden()
    drop(page, "good.png", "image/png", png())
    read_results(page)
    expect(alert).to_be_hidden()
    page.context.close()


@pytest.mark.slow
def test_camera(browser: Browser, server: RunningServer) -> None:
    opened = open_page(browser, server.url, DESKTOP)
    page = opened.page
    page.get_by_role("button", name="Open the camera").click()
    expect(page.get_by_role("button", name="Take a photo")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Open the camera")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Take a photo")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("camera.jpg")
    read_results(page)
    assert page.locator("#video").evaluate("video => video.srcObject") is None, "the camera is released"
    assert opened.errors == []
    page.context.close()


@pytest.mark.parametrize(("size", "viewport"), [((300, 180), DESKTOP), ((90, 200), PHONE)])
@pytest.mark.slow
def test_boxes_of_a_detector(
    browser: Browser, detector_run: Path, small_run: Path, tmp_path: Path, size: tuple[int, int],
    viewport: dict[str, int],
) -> None:  # fmt: skip
    """The boxes are drawn over the image, which is shown completely, with label and score."""
    scene = Image.fromarray(np.random.default_rng(5).integers(0, 256, (6, 9, 3), dtype=np.uint8)).resize(size)
    scene.save(buffer := io.BytesIO(), "PNG")
    pixels = torch.from_numpy(np.array(scene)).permute(2, 0, 1)
    predictor = load_predictor(str(detector_run), task="detection").predictor
    expected = predictor.predict([pixels])[0].above(0.3)
    assert len(expected.boxes)
    with serve_in_thread({"detector": detector_run, "small": small_run}) as url:
        opened = open_page(browser, url, viewport, classes=3)
        page = opened.page
        expect(page.get_by_role("heading", level=1)).to_have_text("Object detection")
        drop(page, "scene.png", "image/png", buffer.getvalue())
        expect(page.locator("#boxes")).to_be_visible()
        expect(page.locator("#status")).to_contain_text(f"scene.png: {len(expected.boxes)} object")
        rows = page.locator("#classes .label")
        listed = [row.locator("span").all_inner_texts() for row in rows.all()]
        texts = [
            [predictor.classes[label], f"{score:.2f}"]
            for label, score in zip(expected.labels.tolist(), expected.scores.tolist(), strict=True)
        ]
        assert listed == texts[:20]
        # The canvas has the shape of the image and covers the same area of the page.
        width, height = page.locator("#boxes").evaluate("canvas => [canvas.width, canvas.height]")
        assert width / height == pytest.approx(size[0] / size[1], rel=0.01)
        places = [page.locator(f"#{name}").bounding_box() for name in ("image", "boxes")]
        assert places[0] == places[1]
        fits = [page.locator(f"#{n}").evaluate("x => getComputedStyle(x).objectFit") for n in ("image", "boxes")]
        assert fits == ["contain", "contain"]
        # The middle of each edge of the best box, which is drawn last, has its color.
        edges = (expected.boxes[0] / torch.tensor([*size, *size]) * torch.tensor([width, height] * 2)).tolist()
        left, top, right, bottom = edges
        points = [[left, (top + bottom) / 2], [right, (top + bottom) / 2], [(left + right) / 2, bottom]]
        alpha = page.locator("#boxes").evaluate(
            """(canvas, points) => {
                const inside = (value, length) => Math.min(Math.max(value, 1), length - 2);
                return points.map(([x, y]) => canvas.getContext("2d")
                    .getImageData(inside(x, canvas.width), inside(y, canvas.height), 1, 1).data[3]);
            }""",
            points,
        )
        assert min(alpha) > 100
        page.screenshot(path=str(tmp_path / "boxes.png"), full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"], "no horizontal scrolling"
        # The classifier of the same server: classes instead of boxes, also for the image that is shown.
        page.get_by_label("Model").select_option("small")
        expect(page.get_by_role("heading", level=1)).to_have_text("Image classification")
        expect(page.locator("#boxes")).to_be_hidden()
        expect(page.locator("#h-classes")).to_have_text("Classes")
        assert {
            url_.partition("/v1")[0].rstrip("/") for url_ in opened.requests if not url_.startswith(("blob:", "data:"))
        } == {url}
        assert opened.errors == []
        page.context.close()


def test_api_key(browser: Browser, small_run: Path) -> None:
    with serve_in_thread(small_run, api_key="s3cret") as url:
        page = browser.new_page()
        page.goto(url)
        field = page.get_by_label("API key")
        expect(field).to_be_focused()
        field.fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("API key required")
        field.fill("s3cret")
        page.keyboard.press("Enter")
        expect(page.locator("#model-info")).to_contain_text("5 classes")
        expect(field).to_be_hidden()
        drop(page, "good.png", "image/png", png())
        read_results(page)
        page.close()
