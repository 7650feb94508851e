"""The system's Chromium, without a window, and what a reader does with the page in it."""

import json
import shutil

from playwright.sync_api import Browser, ConsoleMessage, Page, Playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

ANSWER_MS_MAX = 60_000
"""For an answer on a busy machine."""


def launch(playwright: Playwright) -> Browser | None:
    """Start a browser; None if none is installed."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        return None
    return playwright.chromium.launch(executable_path=program, args=FLAGS)


def is_error(line: ConsoleMessage) -> bool:
    """Whether a message is the page's fault, not of a request that a test made fail."""
    return line.type == "error" and not line.text.startswith("Failed to load resource")


def ask(page: Page, text: str) -> None:
    """Type a question and send it."""
    page.get_by_label("Your question").fill(text)
    page.keyboard.press("Enter")


def answer_with(page: Page, text: str, **more: object) -> None:
    """Have the gateway's next answers be this text, and before it these other deltas."""
    deltas = [{name: value} for name, value in more.items()] + [{"content": text}]
    chunks = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    body = "".join(f"data: {json.dumps(each)}\n\n" for each in chunks) + "data: [DONE]\n\n"
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(status=200, content_type="text/event-stream", body=body),
    )
