"""Sessions for many askers: a few are open at once, and a prompt gets one that knows its beginning.

A client of an OpenAI interface sends the whole conversation each time. Its session waits here
between two answers, so that only what is new goes through the swarm. Where a client hides behind
relays, conversations are kept apart: a session goes on with its own only.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

import trio

from p2pinfer.core.errors import EngineError, P2pinferError, PeerError
from p2pinfer.core.messages import Refusal
from p2pinfer.engine.base import EngineBusy
from p2pinfer.node.requester import Client
from peers.asking.drafts import alike
from peers.asking.session import Beginning, Session
from peers.steps.messaging import RefusedError

WAITING_MAX = 64
"""Askers in the queue: at some seconds an answer, those behind would wait for minutes."""

WAIT_S_MAX = 120.0
"""In the queue; then the asker is told to come again."""

BUSY_AGAIN_S = 1.0
"""How often to ask the swarm again once its peers had no session to give."""

IDLE_MAX = 8
"""Sessions kept for a next turn: their cells are others' memory."""

IDLE_S_MAX = 300.0
"""How long: a person reads, thinks and types."""

ANSWER_ROOM = 1024
"""Tokens of an answer for which a new session has room behind its prompt. An answer that is longer
goes on in a longer session; one that is shorter, as most are, leaves room for the next turns."""
LOST_TOKENS_MAX = 256
"""Of another conversation, where a session goes on from a beginning that both share: a question
asked again, and its answer. Where more would be lost, a second session begins with a copy."""

TURN_END_TOKENS_MAX = 4
"""At a prompt's end, that the next turn may write otherwise, such as an empty thought of Qwen's:
fewer than what follows a question in most templates, since another question is another turn."""

SHARED_TOKENS_MIN = 64
"""What a session must share with a prompt to be copied: a block, which runs in a moment."""

MENDED_S_MAX = 10.0
"""For a peer that died to be replaced in the session to begin with, as while an answer waits."""

MENDED_TIMES_MAX = 3
"""As many peers of a short chain may die at once."""

CLOSE_S_MAX = 5.0
"""For taking leave of the peers of a session."""


class TooBusy(P2pinferError):
    """More is asked than can be answered soon."""


@dataclass(eq=False)
class Lent:
    """An open session."""

    number: int
    """Of this pool's sessions."""
    session: Session
    stack: AsyncExitStack
    opened_at: float
    """By trio's clock."""
    used_at: float = 0.0
    """When it was given back, by trio's clock."""
    asked: Sequence[int] = ()
    """The prompt that it was lent for last."""

    def goes_on(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt is the next turn of what was asked last, or the same again."""
        return alike(self.asked, prompt) >= len(self.asked) - TURN_END_TOKENS_MAX

    async def close(self, error: Exception | None = None) -> None:
        """Give its cells back; what went wrong, if it did, is remembered against the peer."""
        with trio.move_on_after(CLOSE_S_MAX, shield=True), suppress(P2pinferError):
            # What is suppressed is that very error, or that the peers have left already.
            await self.stack.__aexit__(type(error) if error else None, error, None)


class SessionPool:
    """At most ``sessions_max`` sessions of one client, lent first come, first served."""

    def __init__(
        self, client: Client, sessions_max: int, on_wait: Callable[[str], None] = lambda _: None
    ) -> None:
        self._client, self._on_wait = client, on_wait
        self.sessions_max, self.room = sessions_max, ANSWER_ROOM
        self.running = self.waiting = 0
        self._slots = trio.Semaphore(sessions_max)  # in the order of asking
        self._lent: list[Lent] = []
        self._numbers = count(1)
        self._idle: list[Lent] = []  # the longest unused first
        self._in_need = trio.Lock()  # held while waiting for a busy swarm; in order too
        self._freed = trio.Event()

    @property
    def idle(self) -> int:
        """Sessions that wait for a next turn."""
        return len(self._idle)

    @asynccontextmanager
    async def lend(self, prompt: Sequence[int], most: int | None = None) -> AsyncIterator[Lent]:
        """Lend a session for the block, the one that holds most of the prompt if one does.

        Args:
            prompt: the tokens that it begins with.
            most: how many more tokens there may be, if that is known; where a new one is opened,
                it has room for them, or for ``room``.

        Raises:
            TooBusy: the queue is full, or it did not move.
            NobodyServes: no chain of peers.
            PeerError, EngineError: the session could not be opened.
        """
        await self._queue()
        self.running += 1
        try:
            lent = await self._take(prompt, len(prompt) + min(most or self.room, self.room))
            lent.asked = prompt
            self._lent.append(lent)
            try:
                yield lent
            except (PeerError, EngineError) as error:
                await lent.close(error)
                raise
            except BaseException:  # an asker that left; the session is good for the next one
                await self._keep(lent)
                raise
            finally:
                self._lent.remove(lent)
            await self._keep(lent)
        finally:
            self.running -= 1
            self._slots.release()
            self._freed.set()

    def describe(self) -> list[dict[str, Any]]:
        """Return the sessions that are open, those in use first."""
        now = trio.current_time()
        return [
            {
                "session": str(lent.number),
                "with": [hop.peer for hop in lent.session.route],
                "layers": " ".join(f"{hop.first}:{hop.end}" for hop in lent.session.route),
                "positions": len(lent.session.tokens),
                "age_s": round(now - lent.opened_at, 1),
                "idle_s": round(now - lent.used_at, 1) if lent in self._idle else 0.0,
            }
            for lent in [*self._lent, *self._idle]
        ]

    async def tend(self) -> None:
        """Close what nobody came back to, for ever."""
        while True:
            await trio.sleep(IDLE_S_MAX / 10)
            oldest = trio.current_time() - IDLE_S_MAX
            while self._idle and self._idle[0].used_at < oldest:
                await self._idle.pop(0).close()

    async def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            await self._idle.pop().close()

    async def _queue(self) -> None:
        if self.waiting >= WAITING_MAX:
            raise TooBusy(f"{WAITING_MAX} questions wait already; ask again in a moment")
        self.waiting += 1
        try:
            with trio.fail_after(WAIT_S_MAX):
                await self._slots.acquire()
        except trio.TooSlowError:
            raise TooBusy("no session became free in time; ask again in a moment") from None
        finally:
            self.waiting -= 1

    async def _take(self, prompt: Sequence[int], positions: int) -> Lent:
        if not self._in_need.locked():  # else a request that waits for a session comes first
            await self._wait_read(prompt)
            if lent := self._matching(prompt):
                return lent
            beginning = self._beginning(prompt)
            if self._idle and not self._has_room():
                least = self._least()  # of another conversation: better than to open one
                is_best = beginning is None or beginning.session is least.session
                if is_best and self._may_take(least, prompt):
                    return least
                await least.close()
            try:
                return await self._open(positions, beginning)
            except P2pinferError as error:
                if not _is_busy(error):
                    raise
        try:
            with trio.fail_after(WAIT_S_MAX):
                async with self._in_need:
                    return await self._take_when_free(prompt, positions)
        except trio.TooSlowError:
            raise TooBusy("the swarm's sessions are all taken; ask again in a moment") from None

    async def _take_when_free(self, prompt: Sequence[int], positions: int) -> Lent:
        while True:
            if self._idle:  # of another conversation, but its cells are ours already
                lent = self._least()
                if self._may_take(lent, prompt):
                    return lent
                await lent.close()
            else:
                self._freed = trio.Event()
                with trio.move_on_after(BUSY_AGAIN_S):
                    await self._freed.wait()
            if not self._idle:
                try:
                    return await self._open(positions)
                except P2pinferError as error:
                    if not _is_busy(error):
                        raise

    def _may_take(self, lent: Lent, prompt: Sequence[int]) -> bool:
        """Whether a session can go on with a prompt; where this machine hides, of its own only."""
        joins = self._client.joins_conversations or lent.goes_on(prompt)
        return joins and _fits(lent, prompt)

    def _has_room(self) -> bool:
        return self.running + len(self._idle) <= self.sessions_max

    async def _wait_read(self, prompt: Sequence[int]) -> None:
        """Wait while sessions in use read a prompt that begins like this one.

        Agents that begin together share their instructions; read once, all have them sooner.
        """
        for lent in [*self._lent] if self._client.joins_conversations else ():
            await lent.session.wait_read(prompt)

    def _beginning(self, prompt: Sequence[int]) -> Beginning | None:
        """Choose the session that has most in common with a prompt, to begin another one with."""
        if not self._client.joins_conversations:
            return None
        sessions = [lent.session for lent in (*self._lent, *self._idle)]
        found = [Beginning(session, session.lendable(prompt)) for session in sessions]
        best = max(found, key=lambda each: each.rows, default=None)
        return best if best and best.rows >= SHARED_TOKENS_MIN else None

    def _matching(self, prompt: Sequence[int]) -> Lent | None:
        """Take the idle session that lends most, unless another conversation would lose more.

        Of equals it is the oldest, with which others began: they take its rows over where a peer
        was lost. Where there is room for another session, none loses more than a little.
        """
        idle = [lent for lent in self._idle if self._may_take(lent, prompt)]
        idle.sort(key=lambda lent: lent.number)
        best = max(idle, key=lambda lent: lent.session.held_of(prompt), default=None)
        if best is None:
            return None
        held = best.session.held_of(prompt)
        lost = len(best.session.tokens) - held
        is_asked_again = held == len(prompt) - 1
        loses = lost > held or (lost > LOST_TOKENS_MAX and self._has_room())
        if loses and not is_asked_again:
            return None
        self._idle.remove(best)
        return best

    async def _open(self, positions: int, beginning: Beginning | None = None) -> Lent:
        """Open a session; where another one can be copied, with what that holds."""
        if beginning and (lent := await self._open_beside(beginning, positions)):
            return lent
        route = await self._client.find_route(self._on_wait, positions)
        return await self._enter(self._client.open_session(route, self._on_wait, positions))

    async def _open_beside(self, beginning: Beginning, positions: int) -> Lent | None:
        """Open a session with a copy of another one; None if that is over, or its peers are full.

        One of them may have died a moment ago: then the other session finds a replacement first.
        """
        for _ in range(MENDED_TIMES_MAX):
            try:
                opening = self._client.open_beside(beginning, self._on_wait, positions)
                return await self._enter(opening)
            except (LookupError, EngineError):
                return None
            except PeerError as error:
                if _is_busy(error):
                    return None
                with trio.move_on_after(MENDED_S_MAX):
                    await beginning.session.wait_without(error.peer)
        return None

    async def _enter(self, opening: AbstractAsyncContextManager[Session]) -> Lent:
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(opening)
            return Lent(next(self._numbers), session, stack.pop_all(), trio.current_time())

    async def _keep(self, lent: Lent) -> None:
        if not lent.session.is_trusted or lent.session.is_full:
            await lent.close()
            return
        lent.used_at = trio.current_time()
        self._idle.append(lent)
        if len(self._idle) > min(IDLE_MAX, self.sessions_max):
            await self._least().close()

    def _least(self) -> Lent:
        """Take the idle session whose conversation would lose least, the older of equals.

        An agent asks small questions beside its long conversation, which they must not end.
        """
        least = min(self._idle, key=lambda lent: len(lent.session.tokens))
        self._idle.remove(least)
        return least


def _fits(lent: Lent, prompt: Sequence[int]) -> bool:
    """Whether a session can hold a prompt, and an answer's first token."""
    return len(prompt) < lent.session.context


def _is_busy(error: P2pinferError) -> bool:
    """Whether somebody had no session to give, who may have one soon."""
    if isinstance(error, RefusedError):
        return error.refused.code is Refusal.BUSY
    return isinstance(error, EngineBusy)
