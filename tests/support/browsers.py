"""The system's Chromium, without a window."""

import shutil

from playwright.sync_api import Browser, Playwright

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
