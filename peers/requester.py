"""Asking a swarm for tokens: the requester runs the model's ends, others run what lies between.

A session is a chain of stages with a KV cache in each. It outlives an answer: the next prompt is
compared with the tokens that the caches hold, and only what is new goes through the chain.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import NoReturn

import numpy as np
import trio

from p2pinfer.core.errors import (
    ChannelClosed,
    PeerUnavailable,
    RemoteProtocolError,
    UserError,
    lone_errors,
)
from p2pinfer.core.ids import ModelId, PeerId, SessionId
from p2pinfer.core.limits import ROWS_PER_DECODE_MAX, STEPS_IN_FLIGHT_MAX
from p2pinfer.core.messages import Attach, Attached, Hop, Open, Opened, Step
from p2pinfer.core.sampling import Sampling
from p2pinfer.engine.base import Ends, EndsSession, NextToken
from peers.stage import open_s_max
from peers.talk import SESSION, receive, send
from transports.base import Channel, Transport

REASON_S_MAX = 2.0
"""How long to wait for the word of why a session ended, once it has."""


@dataclass(frozen=True)
class Token:
    """One token of an answer."""

    id: int
    piece: bytes
    is_end: bool
    """The model ended its answer with this token."""
    stages_us: tuple[int, ...]
    """What each stage said it spent on decoding, in microseconds; of a prompt, its last chunk."""
    ends_us: int
    """What the requester's own layers, head and sampler took, likewise."""


class Chain:
    """The stages of one session, as the requester sees them: steps go in, steps come out."""

    def __init__(self, entry: Channel, exit_: Channel) -> None:
        self._entry, self._exit = entry, exit_
        self._sent = self._forgotten = 0

    @property
    def last(self) -> PeerId:
        """The peer of the last stage."""
        return self._exit.remote

    async def send(self, position: int, rows: bytes, count: int, *, wide: bool) -> None:
        """Send rows down the chain.

        Raises:
            RefusedError, PeerUnavailable: the session is over.
        """
        self._sent += 1
        try:
            await send(self._entry, Step(self._sent, position, count, wide, rows))
        except ChannelClosed as error:
            await self._raise_reason(error)

    async def receive(self) -> Step:
        """Return the next step that was sent, with the rows that came out; raises as ``send``."""
        while True:
            try:
                step = await receive(self._exit, Step)
            except ChannelClosed as error:
                await self._raise_reason(error)
            if step.number > self._forgotten:
                return step

    def forget(self) -> None:
        """Ignore what is still on its way: nobody waits for it any more."""
        self._forgotten = self._sent

    async def _raise_reason(self, error: ChannelClosed) -> NoReturn:
        """Raise what ended the session.

        Whichever stage fails, those behind it close, down to the exit, and those before it pass on
        to the entry who failed and why.
        """
        with trio.move_on_after(REASON_S_MAX):
            await receive(self._entry)
        raise error


@asynccontextmanager
async def open_chain(
    transport: Transport, model: ModelId, route: Sequence[Hop], session: SessionId, context: int
) -> AsyncIterator[Chain]:
    """Open a session along a route, for as long as the block lasts.

    Raises:
        RefusedError: a stage said no.
        PeerUnavailable: a peer cannot be reached.
        RemoteProtocolError: a peer sent nonsense.
    """
    opened = Open(session, model, transport.peer_id, tuple(route), context)
    channels: list[Channel] = []
    try:
        with _too_slow(route[0].peer, open_s_max(len(route))):
            channels.append(await transport.open(route[0].peer, SESSION, route[0].addresses))
            await send(channels[0], opened)
            await receive(channels[0], Opened)
        with _too_slow(route[-1].peer, open_s_max(1)):
            channels.append(await transport.open(route[-1].peer, SESSION, route[-1].addresses))
            await send(channels[1], Attach(session))
            await receive(channels[1], Attached)
        yield Chain(*channels)
    finally:
        for channel in channels:
            await channel.close()


@contextmanager
def _too_slow(peer: PeerId, timeout_s: float) -> Iterator[None]:
    try:
        with trio.fail_after(timeout_s):
            yield
    except trio.TooSlowError:
        raise PeerUnavailable(peer, f"{peer} did not answer in {timeout_s:.0f} s") from None


class Session:
    """One conversation's KV caches, in all stages and in the requester's own ends."""

    def __init__(self, chain: Chain, ends: Ends, cells: EndsSession, context: int) -> None:
        self._chain, self._ends, self._cells = chain, ends, cells
        self.context = context
        """How many positions fit."""
        self.tokens: list[int] = []
        """What all caches are known to hold, position by position."""

    def held_of(self, prompt: Sequence[int]) -> int:
        """How many tokens of a prompt's beginning need not be run again."""
        common = takewhile(lambda pair: pair[0] == pair[1], zip(self.tokens, prompt, strict=False))
        # The last token is always run: its logits are wanted.
        return min(sum(1 for _ in common), len(prompt) - 1)

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, max_tokens: int
    ) -> AsyncGenerator[Token, None]:
        """Yield the tokens that follow a prompt, until the model ends or ``max_tokens`` are made.

        The caches keep what they already hold of the prompt's beginning. Whoever stops early may
        call this again at once: what was on its way is ignored, and overwritten.

        Raises:
            UserError: the prompt leaves no room for an answer.
            RefusedError, PeerUnavailable: the session is over.
            EngineError: the own engine failed; the session is over.
        """
        if not 0 < len(prompt) < self.context:
            raise UserError(
                f"the prompt has {len(prompt)} tokens, and a session holds {self.context}: "
                "shorten it, or give the session more room with --context"
            )
        self._chain.forget()
        self._cells.start(sampling, list(prompt[-max(1, sampling.repeat_last_n) :]))
        following, stages_us = await self._prefill(prompt)
        for made in range(1, max_tokens + 1):
            position = len(self.tokens)
            goes_on = not following.is_end and made < max_tokens and position < self.context
            if goes_on:  # the swarm computes while our caller shows the token
                await self._chain.send(position, following.rows, 1, wide=False)
            yield Token(
                following.token,
                following.piece,
                following.is_end,
                stages_us,
                following.decoding_us,
            )
            if not goes_on:
                return
            step = self._check(await self._chain.receive(), position, 1)
            self.tokens.append(following.token)
            stages_us = step.decoding_us
            following = await self._cells.next(position, step.rows, wide=False)

    async def _prefill(self, prompt: Sequence[int]) -> tuple[NextToken, tuple[int, ...]]:
        """Run what the caches lack of the prompt, in chunks that follow each other."""
        start = self.held_of(prompt)
        del self.tokens[start:]
        chunks = [
            (at, list(prompt[at : at + ROWS_PER_DECODE_MAX]))
            for at in range(start, len(prompt), ROWS_PER_DECODE_MAX)
        ]
        with lone_errors():
            async with trio.open_nursery() as nursery:
                room = trio.Semaphore(STEPS_IN_FLIGHT_MAX)
                nursery.start_soon(self._send_chunks, chunks, room)
                for at, tokens in chunks:
                    step = self._check(await self._chain.receive(), at, len(tokens))
                    room.release()
                    if at + len(tokens) < len(prompt):
                        await self._cells.absorb(at, step.rows, wide=True)
                    else:
                        following = await self._cells.next(at, step.rows, wide=True)
                    self.tokens += tokens
        return following, step.decoding_us

    async def _send_chunks(
        self, chunks: Sequence[tuple[int, list[int]]], room: trio.Semaphore
    ) -> None:
        for at, tokens in chunks:
            await room.acquire()
            embedded = await self._cells.embed(at, tokens, wide=True)
            await self._chain.send(at, embedded.rows, len(tokens), wide=True)

    def _check(self, step: Step, position: int, count: int) -> Step:
        """Return the step if it is the answer to what was sent."""
        if (step.position, step.count) != (position, count):
            raise RemoteProtocolError(self._chain.last, "a stage answered another step")
        if len(step.rows) != 4 * count * self._ends.width:
            raise RemoteProtocolError(
                self._chain.last, "a stage's rows are not as wide as they are"
            )
        if not np.isfinite(np.frombuffer(step.rows, "<f4")).all():
            raise RemoteProtocolError(self._chain.last, "a stage's rows hold NaN or infinity")
        return step


class Requester:
    """Opens sessions in a swarm."""

    def __init__(self, transport: Transport, ends: Ends, model: ModelId) -> None:
        self._transport, self._ends, self._model = transport, ends, model

    @asynccontextmanager
    async def open(
        self, route: Sequence[Hop], session: SessionId, context: int
    ) -> AsyncIterator[Session]:
        """Open a session along a route that joins the own ends, for as long as the block lasts.

        Args:
            route: stages without gap or overlap from ``ends.first`` to ``ends.end``.
            session: 16 random bytes.
            context: positions that the session is to hold at most.

        Raises:
            EngineBusy, EngineDied: the own engine has no session to give.
            RefusedError, PeerUnavailable, RemoteProtocolError: a stage said no, or nothing.
        """
        context = min(context, self._ends.context)
        cells = self._ends.open()
        try:
            async with open_chain(self._transport, self._model, route, session, context) as chain:
                yield Session(chain, self._ends, cells, context)
        finally:
            cells.close()
