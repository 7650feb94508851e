"""Take the README's picture of the page again: ``python -m tests.real.picture`` in the root."""

import io
import tempfile
from pathlib import Path

from PIL import Image  # matplotlib brings it
from playwright.sync_api import Browser, ViewportSize, expect, sync_playwright

from tests.support.browsers import ANSWER_MS_MAX, launch
from tests.support.gateways import running_gateway

PICTURE = Path("docs/page.png")
SIZE: ViewportSize = {"width": 1180, "height": 720}
COLOURS = 128
"""Colours in the picture's palette: the page needs no more, and the file stays under 150 KB."""

OPTIONS = (
    "--local",
    "3",
    "--context",
    "1024",
    "--temperature",
    "0",
    "--repeat-penalty",
    "1",
    "--audit-rate",
    "1",
)


def main() -> None:
    """Ask two questions, and take the picture during the second answer."""
    with tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        browser = launch(playwright)
        if browser is None:
            raise SystemExit("no browser: install Chromium")
        with running_gateway(Path(home), *OPTIONS) as gateway:
            shot = take(browser, gateway.url)
        browser.close()
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLOURS).save(PICTURE, optimize=True)


def take(browser: Browser, url: str) -> bytes:
    """Return a PNG of the page."""
    page = browser.new_page(viewport=SIZE, device_scale_factor=2, color_scheme="light")
    page.goto(url)
    expect(page.locator("#status")).to_have_attribute("data-state", "ready")
    question = page.get_by_label("Your question")
    question.fill("What is gravity?")
    question.press("Enter")
    account = page.locator(".account")
    expect(account).to_be_visible(timeout=ANSWER_MS_MAX)
    account.locator("summary").click()
    question.fill("Tell me more about it.")
    question.press("Enter")
    said = page.locator(".turn.assistant .said").last
    expect(said).to_contain_text("the", timeout=ANSWER_MS_MAX)
    page.wait_for_function("document.querySelector('#route-speed').textContent")
    page.wait_for_timeout(1500)  # some lines of the answer, with the moving light on its way
    return page.screenshot()


if __name__ == "__main__":
    main()
