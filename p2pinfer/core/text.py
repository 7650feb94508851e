"""Turning the bytes of tokens into text that may be shown at once."""

import codecs
from collections.abc import Sequence


class TextStream:
    """Bytes in, text out: never half a character, never part of a possible stop string.

    A stop string ends the text and is not part of it.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped = False
        """A stop string has come; whatever follows is dropped."""
        self.stop = ""
        """Which one."""

    @property
    def held(self) -> int:
        """How many characters are held back because they may begin a stop string."""
        return len(self._held)

    def feed(self, piece: bytes) -> str:
        """Return the text that is certain now."""
        return self._release(self._decoder.decode(piece))

    def end(self) -> str:
        """Return what was held back, now that nothing follows."""
        text = self._release(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        return text if self.stopped else text + held

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        # The first complete one counts: that does not depend on how the bytes were cut.
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            end, start = min(found)
            self.stop = text[start:end]
            return text[:start]
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        split = len(text) - keep
        self._held = text[split:]
        return text[:split]


def printable(text: str) -> str:
    """Return a text on one line, without terminal control codes."""
    return "".join(c if c.isprintable() else " " for c in text)


def overlap(text: str, stop: str) -> int:
    """How many characters at the text's end could be the beginning of the stop string."""
    return next(
        (n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0
    )
