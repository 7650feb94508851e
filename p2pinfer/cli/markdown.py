"""Showing Markdown on a terminal while it is still being generated."""

import re

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.text import Text

_FENCE = re.compile(r"^\s*(```|~~~)", re.MULTILINE)

LIVE_LINES_MAX = 12
"""Of the unfinished paragraph; the rest is shown once it is complete."""


def split_whole(text: str) -> tuple[str, str]:
    """Split a text after its last block that later text cannot change: (whole, open)."""
    end = 0
    for blank in re.finditer(r"\n[ \t]*\n", text):
        before = text[: blank.end()]
        if len(_FENCE.findall(before)) % 2 == 0:  # not in the middle of code
            end = blank.end()
    return text[:end], text[end:]


class MarkdownStream:
    """Prints each block in its final form once it is whole, and the unfinished one as it grows.

    Printed blocks are never redrawn, so scrolling back shows everything once.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._open = ""
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def feed(self, text: str) -> None:
        """Show another piece."""
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
