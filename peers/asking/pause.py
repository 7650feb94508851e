"""Between two answers a session is not in use: what it loses then may wait for those that are."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import trio

from p2pinfer.core.ids import PeerId
from peers.asking.repair import Repair, at_once
from peers.asking.stage_handle import StageHandle, lost_places
from peers.receipts.session_evidence import Evidence

MISSED_S = 30.0
"""When a peer that was lost between two answers is replaced though nobody missed it. It may have
been in many sessions: those in use have their rows run again first, and those that began as copies
of them then find the rows there. Other stages hold a broken session's cells for two minutes."""


class Pause:
    """Whether a session is between two answers; its evidence says when peers are needed then."""

    def __init__(self, evidence: Evidence | None) -> None:
        if evidence:
            evidence.in_need = self.missing
        self.is_on, self._needs = False, 0
        self._missed = trio.Event()

    def begin(self) -> None:
        """Note that an answer is over."""
        self.is_on = True
        if not self._needs:
            self._missed = trio.Event()

    def end(self) -> None:
        """Note that another answer has begun."""
        self.is_on = False
        self._missed.set()

    def miss(self) -> None:
        """Note that somebody waits for the session to be whole, to begin another one with it."""
        self._missed.set()

    @contextmanager
    def missing(self) -> Iterator[None]:
        """Have lost peers replaced at once in the block: they are to sign, or to show rows."""
        self._needs += 1
        self._missed.set()
        try:
            yield
        finally:
            self._needs -= 1
            if self.is_on:
                self.begin()

    async def wait_missed(
        self, repair: Repair | None, stages: Sequence[StageHandle], failed: Collection[PeerId]
    ) -> None:
        """Return once a lost peer is missed, or for ``MISSED_S`` is not.

        One that nobody else can replace, or that perhaps only its relay cut off, is called at once:
        it holds the session's rows for a moment.
        """
        places = lost_places(stages) if self.is_on else None
        if not (repair and places) or any(each.may_return for each in stages[places]):
            return
        if at_once(repair, stages, places.start, failed):
            with trio.move_on_after(MISSED_S):
                await self._missed.wait()
