"""Drafting by a small model of the requester's own, which reads along and runs ahead.

It runs while the swarm does, so its time counts only where it is slower than the swarm's links.
Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", ICML 2023; here the
swarm's own sampler decides alone, so that no answer depends on what is drafted.
"""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import takewhile

import trio

from p2pinfer.core.errors import EngineError
from p2pinfer.core.regimes import Regime, split
from p2pinfer.core.sampling import Sampling
from p2pinfer.engine.base import Ends, EndsSession, NextToken
from peers.asking.drafts import DRAFTS_MAX, alike

_log = logging.getLogger("p2pinfer.drafts")

_LIKELIEST = Sampling(temperature=0.0)


class ModelDrafter:
    """One session of the small model; ``open_drafter`` makes one, and runs it."""

    def __init__(self, ends: Ends, cells: EndsSession, vocabulary: int) -> None:
        self._ends, self._cells, self._vocabulary = ends, cells, vocabulary
        self._text: list[int] = []
        self._ahead_max = 0  # tokens to read of its own behind the text
        self._held: list[int] = []  # the tokens that its caches hold
        self._following: NextToken | None = None  # what it says comes next
        self._changed, self._moved = trio.Event(), trio.Event()
        self.is_lost = False
        """Its engine has failed; there are no more drafts."""
        cells.start(_LIKELIEST, [])

    def follow(self, text: Sequence[int], ahead: int = DRAFTS_MAX) -> None:
        """Go on from this text, which is read once, and draft ``ahead`` tokens and one."""
        self._text, self._ahead_max = list(text), ahead
        self._changed.set()

    def drafts(self) -> list[int]:
        """Return the tokens that it has drafted behind the text so far."""
        count, following = len(self._text), self._following
        if following is None or following.is_end or self._held[:count] != self._text:
            return []
        found = [*self._held[count:], following.token]
        return list(takewhile(lambda token: token < self._vocabulary, found))  # padding beyond

    async def wait_moved(self) -> None:
        """Wait until more is drafted."""
        self._moved = trio.Event()
        await self._moved.wait()

    async def run(self) -> None:
        """Read what there is to read, and draft behind it, until cancelled."""
        try:
            while True:
                self._changed = trio.Event()
                if not await self._grow():
                    await self._changed.wait()
                self._moved.set()
        except EngineError as error:
            _log.warning("no more drafts of the draft model: %s", error)
            self.is_lost = True
            self._moved.set()

    async def _grow(self) -> bool:
        """Read a piece of the text, or draft a token behind it; False if nothing is to be done."""
        text, held, following = self._text, self._held, self._following
        if len(text) >= self._ends.context:
            return False
        same = alike(held, text)
        if same == len(text) and following:
            at, ahead = len(held), len(held) - len(text)
            if following.is_end or ahead >= self._ahead_max or at >= self._ends.context:
                return False
            self._following = await self._cells.next(at, following.rows, regime=Regime.NARROW)
            self._held = [*held, following.token]
            return True
        if not text:
            return False
        at, end, regime = split(min(same, len(text) - 1), len(text), blocks=self._ends.blocks)[0]
        self._held, self._following = held[:at], None
        rows = (await self._cells.embed(at, text[at:end], regime=regime)).rows
        if end == len(text):
            self._following = await self._cells.next(at, rows, regime=regime)
        else:
            await self._cells.absorb(at, rows, regime=regime)
        self._held = text[:end]
        return True


@asynccontextmanager
async def open_drafter(
    ends: Ends, vocabulary: int, nursery: trio.Nursery
) -> AsyncIterator[ModelDrafter]:
    """Run a session of a small model, all of whose layers are in these ends, in a nursery.

    ``vocabulary``: how many tokens the large model has.

    Raises:
        EngineBusy, EngineDied: its engine cannot open a session.
    """
    cells = ends.open()
    drafter = ModelDrafter(ends, cells, vocabulary)
    scope = trio.CancelScope()

    async def run() -> None:
        try:
            with scope:
                await drafter.run()
        finally:
            cells.close()  # not before: it may be about to ask

    nursery.start_soon(run)
    try:
        yield drafter
    finally:
        scope.cancel()
