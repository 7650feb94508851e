"""What a gateway tells while it cannot answer yet: what is being done, and how far that is."""

from collections.abc import AsyncGenerator
from typing import Any

import trio

from p2pinfer.api.problems import Problem
from p2pinfer.api.streams import event
from peers.parts.progress import Progress

LOOK_S = 0.25
"""How often a listener is told what has changed."""


class Loading:
    """How far a gateway is; anything may set what is being done, from any thread."""

    def __init__(self, steps: int) -> None:
        """Begin.

        Args:
            steps: how many there are until it answers: naming the model, each local peer, and its
                own layers.
        """
        self.text = "starting …"
        self.steps, self.steps_done = steps, 0
        self.share = 0.0
        """Of the step that is being done, where that is known."""
        self.is_over = False
        self.listeners = 0

    def step(self, text: str) -> None:
        """Take in what is being done from now on."""
        self.text, self.share = text, 0.0

    def tell(self, transfer: Progress) -> None:
        """Take in how far a transfer of parts is."""
        if transfer.holders and transfer.done_bytes < transfer.total_bytes:
            self.progress("fetching the model", transfer.done_bytes, transfer.total_bytes)
        if transfer.waiting:
            self.step(f"{transfer.waiting} …")

    def progress(self, what: str, done: int, total: int) -> None:
        """Take in how many bytes of something are done."""
        self.share = done / total if total else 0.0
        self.text = f"{what}: {self.share:.0%} of {total / 1e6:,.1f} MB …"

    def next(self) -> None:
        """Take in that a step is done."""
        self.steps_done, self.share = self.steps_done + 1, 0.0

    def problem(self) -> Problem:
        """Return the reply to requests until then."""
        text = f"This gateway is still loading ({self.text.rstrip(' …')}): ask again in a moment."
        return Problem(503, text, "loading", kind="unavailable_error")

    def describe(self) -> dict[str, Any]:
        """Return what the page shows."""
        done = min(self.steps_done + self.share, self.steps)
        return {"text": self.text, "share": round(done / self.steps, 3)}

    async def events(self) -> AsyncGenerator[bytes]:
        """Yield what changes until the gateway can answer."""
        self.listeners += 1
        try:
            told: dict[str, Any] = {}
            while not self.is_over:
                if (now := self.describe()) != told:
                    yield event(now, "loading")
                told = now
                await trio.sleep(LOOK_S)
        finally:
            self.listeners -= 1
