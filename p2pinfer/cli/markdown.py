"""Showing Markdown on a terminal while it is still being written."""

import re

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.text import Text

_FENCE = re.compile(r"^\s*(```|~~~)", re.MULTILINE)

LIVE_LINES_MAX = 12
"""Of the paragraph that is being written; the rest is seen once it is whole."""


def split_whole(text: str) -> tuple[str, str]:
    """Cut a text behind its last block that nothing can change any more: (whole, open)."""
    end = 0
    for blank in re.finditer(r"\n[ \t]*\n", text):
        before = text[: blank.end()]
        if len(_FENCE.findall(before)) % 2 == 0:  # not in the middle of code
            end = blank.end()
    return text[:end], text[end:]


class MarkdownStream:
    """Prints blocks in their final form as soon as they are whole, and the one behind as it grows.

    What has been printed is never drawn again, so that scrolling back shows all of it once.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._open = ""
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def feed(self, text: str) -> None:
        """Show more."""
        if not self._live.is_started:
            self._live.start()
        whole, self._open = split_whole(self._open + text)
        if whole.strip():
            self._live.console.print(Markdown(whole), end="\n")
        lines = self._open.splitlines()[-LIVE_LINES_MAX:]
        self._live.update(Text("\n".join(lines)), refresh=True)

    def end(self) -> None:
        """Show what is left; nothing follows."""
        if self._live.is_started:
            self._live.update(Text(""))
            self._live.stop()
        if self._open.strip():
            self._console.print(Markdown(self._open))
        self._open = ""
