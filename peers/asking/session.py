"""Asking a swarm for tokens: the requester runs the model's ends, peers the layers between.

A session is a chain of stages with a KV cache in each. It outlives an answer: the next prompt is
compared with the tokens that the caches hold, and only the new tokens go through the chain.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import trio

from p2pinfer.core.errors import UserError, lone_errors
from p2pinfer.core.ids import ModelId, SessionId
from p2pinfer.core.limits import STEPS_IN_FLIGHT_MAX
from p2pinfer.core.messages import Hop, Open, Step
from p2pinfer.core.regimes import Regime, RegimeChunk, split
from p2pinfer.core.sampling import Sampling
from p2pinfer.engine.base import Candidate, Ends, EndsSession, NextToken
from peers.asking.chain import Chain, open_chain
from peers.asking.draft_model import ModelDrafter, open_drafter
from peers.asking.drafts import (
    MATCH_BEFORE_MODEL_TOKENS,
    MATCH_TOKENS,
    DraftCount,
    Governor,
    TextDrafter,
    alike,
)
from peers.asking.experience import stage_times
from peers.asking.repair import Repair
from peers.receipts.session_evidence import Evidence, Gatherer
from peers.steps.history import Budget, History
from transports.base import Transport


@dataclass(frozen=True)
class Token:
    """One token of an answer."""

    id: int
    piece: bytes
    is_end: bool
    """The model ended its answer with this token."""
    stages_us: tuple[int, ...]
    """Decoding time that each stage reported, in microseconds; of a prompt, for its last chunk."""
    ends_us: int
    """Time in the requester's own layers, head and sampler, in microseconds."""
    candidates: tuple[Candidate, ...] = ()
    """As in ``NextToken``."""


class Session:
    """One conversation's KV caches, in all stages and in the requester's own ends."""

    def __init__(
        self,
        chain: Chain,
        ends: Ends,
        cells: EndsSession,
        context: int,
        *,
        drafts: bool = False,
        model: ModelDrafter | None = None,
    ) -> None:
        self._chain, self._ends, self._cells = chain, ends, cells
        self._row_bytes = 4 * ends.width
        self.context = context
        """How many positions fit."""
        self.tokens: list[int] = []
        """The tokens that all caches are known to hold, position by position."""
        self._regimes: list[Regime] = []  # of each of those tokens
        self.times = stage_times()
        """The stages' times for the most recent tokens."""
        self.is_trusted = True
        """No check of it has failed; otherwise the next answer needs another session."""
        self.drafts = DraftCount()
        """What became of the most recent answer's drafts."""
        self._may_draft, self._model = drafts, model
        self._answers = 0  # begun so far

    @property
    def evidence(self) -> Evidence | None:
        """The stages' receipts, if they are gathered."""
        return self._chain.evidence

    @property
    def route(self) -> list[Hop]:
        """The peers that make up the chain now."""
        return self._chain.route

    def held_of(self, prompt: Sequence[int]) -> int:
        """How many tokens of a prompt's beginning need not be run again."""
        # The last token always runs: its logits are needed.
        return min(alike(self.tokens, prompt), len(prompt) - 1)

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, max_tokens: int, said: int = 0
    ) -> AsyncGenerator[Token, None]:
        """Yield the tokens that follow a prompt, until the model ends or ``max_tokens`` are made.

        ``said`` of the prompt's last tokens are the answer's own, made in another session.

        The caches keep what they already hold of the prompt's beginning. After stopping early, this
        may be called again at once: rows still on their way are ignored and overwritten.

        Raises:
            UserError: the prompt leaves no room for an answer.
            RefusedError, PeerUnavailable, RemoteProtocolError: the session is over.
            EngineError: the requester's own engine failed; the session is over.
        """
        if not 0 < len(prompt) < self.context:
            raise UserError(
                f"the prompt has {len(prompt)} tokens, and a session holds {self.context}: "
                "shorten it, or give the session more room with --context"
            )
        self._answers += 1
        answer = self._answers
        self._chain.forget()
        self.drafts = DraftCount()
        try:
            recent = list(prompt[-max(1, sampling.repeat_last_n) :])
            held = said if sampling.grammar else 0
            self._cells.start(sampling, recent, prompt[len(prompt) - held :])
            if self._model:
                self._model.follow(prompt)
            following, stages_us = await self._prefill(prompt)
            governor = Governor() if self._may_draft else None
            match = MATCH_BEFORE_MODEL_TOKENS if self._model else MATCH_TOKENS
            drafter = TextDrafter(prompt, match) if self._may_draft else None
            sent: list[int] = []  # tokens under way: the one that is awaited, and drafts behind it
            received_at = trio.current_time()
            for made in range(1, max_tokens + 1):
                position = len(self.tokens)
                goes_on = not following.is_end and made < max_tokens and position < self.context
                if goes_on and not sent:  # the swarm computes while our caller shows the token
                    self._send_row(position, following.token, following.rows, sent)
                yield Token(
                    following.token,
                    following.piece,
                    following.is_end,
                    stages_us,
                    following.decoding_us,
                    following.candidates,
                )
                if not goes_on:
                    return
                if drafter and governor:
                    drafter.add(following.token)
                    most = min(1 + governor.depth, max_tokens - made, self.context - position)
                    await self._draft(drafter, position, sent, most)
                    step = await self._receive_drafting(position, sent, most)
                    took_s, received_at = _since(received_at)
                    governor.took(took_s, drafting=len(sent) > 1)
                else:
                    step = await self._chain.receive(position, 1, self._row_bytes)
                sent.pop(0)
                self.tokens.append(following.token)
                self._regimes.append(Regime.NARROW)
                stages_us = step.decoding_us
                self.times.append(stages_us)
                drafted = sent[0] if sent else None
                following = await self._cells.next(
                    position, step.rows, regime=Regime.NARROW, drafted=drafted
                )
                if governor and sent:
                    self._compare(governor, following.token, sent)
        finally:
            if answer == self._answers:  # else another one has begun
                self._chain.rest()

    def _send_row(self, position: int, token: int, row: bytes, sent: list[int]) -> None:
        self._chain.send(position, row, 1, regime=Regime.NARROW)
        sent.append(token)

    async def _draft(self, drafter: TextDrafter, position: int, sent: list[int], most: int) -> None:
        """Send rows of tokens that may follow those under way, up to ``most`` in all."""
        tokens = drafter.draft(sent[1:], most - len(sent)) if most > len(sent) else []
        if tokens:
            await self._send_drafts(position, tokens, sent)

    async def _receive_drafting(self, position: int, sent: list[int], most: int) -> Step:
        """Return the answer to the row that is awaited, and let the draft model draft meanwhile."""
        model = self._model
        if model is None or model.is_lost:
            return await self._chain.receive(position, 1, self._row_bytes)
        with lone_errors():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._draft_along, model, position, sent, most)
                step = await self._chain.receive(position, 1, self._row_bytes)
                nursery.cancel_scope.cancel()
        return step

    async def _draft_along(
        self, model: ModelDrafter, position: int, sent: list[int], most: int
    ) -> None:
        """Send the draft model's tokens as it makes them."""
        model.follow([*self.tokens, *sent])
        while len(sent) < most and not model.is_lost:
            tokens = model.drafts()[: most - len(sent)]
            if tokens:
                await self._send_drafts(position, tokens, sent)
                model.follow([*self.tokens, *sent])
            else:
                await model.wait_moved()

    async def _send_drafts(self, position: int, tokens: list[int], sent: list[int]) -> None:
        at, size = position + len(sent), self._row_bytes
        embedded = await self._cells.embed(at, tokens, regime=Regime.NARROW)
        for number, token in enumerate(tokens):
            row = embedded.rows[number * size : (number + 1) * size]
            self._send_row(at + number, token, row, sent)

    def _compare(self, governor: Governor, token: int, sent: list[int]) -> None:
        """Go on with the drafts under way if the first is the token that was drawn."""
        if token == sent[0]:
            governor.kept()
            self.drafts.kept += 1
            return
        governor.dropped()
        self.drafts.dropped += len(sent)
        self._chain.forget()  # what comes back for them; the next row overwrites theirs
        sent.clear()

    async def _prefill(self, prompt: Sequence[int]) -> tuple[NextToken, tuple[int, ...]]:
        """Run the part of the prompt that the caches lack, in consecutive chunks."""
        start = self.held_of(prompt)
        if self.tokens[start : start + 1] == list(prompt[start:]):  # the last one runs again
            chunks = [RegimeChunk(start, start + 1, self._regimes[start])]
        else:
            chunks = split(start, len(prompt), blocks=self._chain.blocks)
        del self.tokens[start:], self._regimes[start:]
        with lone_errors():
            async with trio.open_nursery() as nursery:
                room = trio.Semaphore(STEPS_IN_FLIGHT_MAX)
                nursery.start_soon(self._send_chunks, prompt, chunks, room)
                for at, end, regime in chunks:
                    step = await self._chain.receive(at, end - at, (end - at) * self._row_bytes)
                    room.release()
                    if end < len(prompt):
                        await self._cells.absorb(at, step.rows, regime=regime)
                    else:
                        following = await self._cells.next(at, step.rows, regime=regime)
                    self.tokens += prompt[at:end]
                    self._regimes += [regime] * (end - at)
        return following, step.decoding_us

    async def _send_chunks(
        self, prompt: Sequence[int], chunks: Sequence[RegimeChunk], room: trio.Semaphore
    ) -> None:
        for at, end, regime in chunks:
            await room.acquire()
            embedded = await self._cells.embed(at, list(prompt[at:end]), regime=regime)
            self._chain.send(at, embedded.rows, end - at, regime=regime)


def _since(then: float) -> tuple[float, float]:
    """Return the seconds since a time, and the time now."""
    now = trio.current_time()
    return now - then, now


class Requester:
    """Opens sessions in a swarm."""

    def __init__(
        self,
        nursery: trio.Nursery,
        transport: Transport,
        ends: Ends,
        model: ModelId,
        gatherer: Gatherer | None = None,
        *,
        drafts: bool = False,
        draft_model: Ends | None = None,
    ) -> None:
        """Ask for a model; the sessions' tasks run in the nursery, which outlives them.

        ``drafts``: send rows of likely tokens ahead; ``draft_model``: all layers of a small model
        with the same tokens, which says what is likely.
        """
        self._nursery, self._transport, self._ends, self._model = nursery, transport, ends, model
        self._gatherer, self._budget = gatherer, Budget()
        self._drafts, self._draft_model = drafts, draft_model

    @asynccontextmanager
    async def open(
        self,
        route: Sequence[Hop],
        session: SessionId,
        context: int,
        repair: Repair | None = None,
    ) -> AsyncIterator[Session]:
        """Open a session along a route that connects the ends, for as long as the block lasts.

        Args:
            route: stages without gap or overlap from ``ends.first`` to ``ends.end``.
            session: 16 random bytes.
            context: positions that the session may hold at most.
            repair: replaces lost stages; with None the session ends instead.

        Raises:
            EngineBusy, EngineDied: the requester's own engine cannot open a session.
            RefusedError, PeerUnavailable, RemoteProtocolError: a stage refused or failed.
        """
        ends, me = self._ends, self._transport.peer_id
        context = min(context, ends.context)
        opened = Open(
            session, self._model, me, me, ends.first, ends.end, context, blocks=ends.blocks
        )
        cells = ends.open()
        try:
            evidence = self._gatherer.begin(opened) if self._gatherer else None
            opened = evidence.opened if evidence else opened
            history = History(self._budget)
            chain = Chain(self._transport, opened, history, evidence, repair)
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(open_chain(chain, route, self._nursery))
                model = None
                if self._draft_model:
                    drafter = open_drafter(self._draft_model, ends.vocabulary, self._nursery)
                    model = await stack.enter_async_context(drafter)
                yield Session(chain, ends, cells, context, drafts=self._drafts, model=model)
        finally:
            cells.close()
