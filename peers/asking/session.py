"""Asking a swarm for tokens: the requester runs the model's ends, peers the layers between.

A session is a chain of stages with a KV cache in each. It outlives an answer: the next prompt is
compared with the tokens that the caches hold, and only the new tokens go through the chain.
"""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import (
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
    nullcontext,
    suppress,
)
from copy import copy
from dataclasses import dataclass
from typing import Final, NamedTuple

import trio
from attrs import evolve

from p2pinfer.core.errors import EngineError, UserError, lone_errors
from p2pinfer.core.ids import ModelId, PeerId, SessionId
from p2pinfer.core.messages import Hop, Open
from p2pinfer.core.regimes import Regime, RegimeChunk, split
from p2pinfer.core.sampling import Sampling
from p2pinfer.engine.base import Candidate, Ends, EndsSession, NextToken
from peers.asking.ahead import Ahead, text_drafter
from peers.asking.chain import Chain
from peers.asking.draft_model import ModelDrafter, open_drafter
from peers.asking.drafts import DraftCount, alike
from peers.asking.experience import stage_times
from peers.asking.governor import DraftRecord, Governor
from peers.asking.opening import open_chain
from peers.asking.prompt_window import PromptWindow
from peers.asking.repair import Repair
from peers.receipts.session_evidence import Evidence, Gatherer
from peers.steps.history import Budget, History
from transports.base import Path, Transport


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


class HeldTokens(NamedTuple):
    """Tokens that all caches hold, and the regime that each one ran in."""

    tokens: Sequence[int] = ()
    regimes: Sequence[Regime] = ()


NOTHING: Final = HeldTokens()


class Session:
    """One conversation's KV caches, in all stages and in the requester's own ends."""

    def __init__(
        self,
        chain: Chain,
        ends: Ends,
        cells: EndsSession,
        context: int,
        *,
        held: HeldTokens = NOTHING,
        drafts: bool = False,
        model: ModelDrafter | None = None,
        rows_of_others: Callable[[int], float] = lambda _: 0.0,
        keeps_state: bool = False,
        record: DraftRecord | None = None,
        via: Path | None = None,
    ) -> None:
        self._keeps_state, self._via = keeps_state, via
        self._record = record or DraftRecord()
        self._governor = Governor(self._record)
        self._reached = 0
        """Positions that some cache holds, or may: more than tokens where an answer was stopped."""
        self._chain, self._ends, self._cells = chain, ends, cells
        self._row_bytes = 4 * ends.width
        self.context = context
        """How many positions fit."""
        self.tokens = [*held.tokens]
        """The tokens that all caches are known to hold, position by position."""
        self._regimes = [*held.regimes]  # of each of those tokens
        self.times = stage_times()
        """The stages' times for the most recent tokens."""
        self.is_trusted = True
        """No check of it has failed; otherwise the next answer needs another session."""
        self.drafts = DraftCount()
        """What became of the most recent answer's drafts."""
        self.scores: list[tuple[Candidate, ...]] = []
        """Of the most recent prompt's tokens from the second on, where they were asked for."""
        self.on_rows: Callable[[int, bytes], None] = lambda _, __: None
        """Called with where a prompt's rows begin, and those that the last stage sends of it."""
        self._may_draft, self._model, self._rows_of_others = drafts, model, rows_of_others
        self._window = PromptWindow()
        self._answers = 0  # begun so far
        self._reading: Sequence[int] = ()  # the prompt that is being read
        self._lent: list[int] = []  # how many first positions others are taking over
        self._changed = trio.Event()  # set when more is read, and when nothing is lent any more

    @property
    def evidence(self) -> Evidence | None:
        """The stages' receipts, if they are gathered."""
        return self._chain.evidence

    @property
    def route(self) -> list[Hop]:
        """The peers that make up the chain now."""
        return self._chain.route

    @property
    def path(self) -> Sequence[PeerId]:
        """The relays that all of it goes through, the nearest first."""
        return self._via.path if self._via else ()

    @property
    def pace_ms(self) -> int:
        """In what rhythm its rows go through them, in milliseconds; 0: as they are made."""
        return self._via.pace_ms if self._via else 0

    @property
    def is_full(self) -> bool:
        """Whether no further token finds room."""
        return len(self.tokens) >= self.context

    def lendable(self, prompt: Sequence[int]) -> int:
        """How many tokens of a prompt's beginning another session may begin with a copy of."""
        return 0 if self._keeps_state else self.held_of(prompt)

    async def wait_read(self, prompt: Sequence[int]) -> None:
        """Wait while it reads a prompt, until it holds all that this one begins with as well."""
        while len(self.tokens) < alike(self._reading, prompt):
            await self._changed.wait()

    @contextmanager
    def lend(self, rows: int) -> Iterator[HeldTokens]:
        """Leave the first positions as they are during the block."""
        self._lent.append(rows)
        try:
            yield HeldTokens(self.tokens[:rows], self._regimes[:rows])
        finally:
            self._lent.remove(rows)
            self._tell_changed()

    def _tell_changed(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def copy_to(self, chain: Chain, cells: EndsSession, rows: int) -> None:
        """Have another session's own end begin with the first positions of this one's.

        Raises:
            EngineError, LookupError: they are no longer held.
        """
        await cells.inherit(self._cells, rows)
        await chain.inherit(self._chain, rows)

    def opening(self, opened: Open, rows: int) -> Open:
        """Return what opens a session that begins with the first positions of this one."""
        return evolve(opened, blocks=self._chain.blocks, parent=self._chain.as_parent(rows))

    async def wait_without(self, peer: PeerId) -> None:
        """Wait until another peer has taken the place of this one, or the session is over."""
        await self._chain.wait_without(peer)

    def held_of(self, prompt: Sequence[int]) -> int:
        """How many tokens of a prompt's beginning need not be run again.

        Where layers keep a state, no position can be dropped: all or nothing.
        """
        if self._keeps_state:
            held = len(self.tokens)
            is_held = held == self._reached and [*prompt[:held]] == self.tokens
            return held if is_held and held < len(prompt) else 0
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
        count, made = DraftCount(), 0
        self.drafts = count
        try:
            recent = list(prompt[-max(1, sampling.repeat_last_n) :])
            held = said if sampling.grammar else 0
            self._cells.start(sampling, recent, prompt[len(prompt) - held :])
            if self._model:
                self._model.follow(prompt, 0)
            scored = sampling.prompt_logprobs is not None and not said
            read = len(prompt) - self.held_of(prompt)
            following, stages_us = await self._prefill(prompt, scored=scored)
            if following.rows:
                self._reached = len(self.tokens) + 1  # in our own first layers
            ahead = self._ahead(prompt, read)
            self.drafts = count = ahead.count
            for made in range(1, max_tokens + 1):
                position = len(self.tokens)
                goes_on = not following.is_end and made < max_tokens and position < self.context
                if following.rows:
                    self._reached = position + 1  # in our own first layers
                if goes_on:  # the swarm computes while our caller shows the token
                    ahead.send(position, following)
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
                most = min(max_tokens - made, self.context - position)
                step = await ahead.receive(self.tokens, most)
                self.tokens.append(following.token)
                self._regimes.append(Regime.NARROW)
                stages_us = step.decoding_us
                self.times.append(stages_us)
                following = await self._cells.next(
                    position, step.rows, regime=Regime.NARROW, drafted=ahead.drafted
                )
                ahead.drew(following.token)
        finally:
            self._record.add(count.kept, made)
            if answer == self._answers:  # else another one has begun
                self._chain.rest()

    def _ahead(self, prompt: Sequence[int], read: int) -> Ahead:
        drafter = text_drafter(prompt, self._model) if self._may_draft else None
        return Ahead(
            self._chain,
            self._cells,
            self._row_bytes,
            self._governor,
            read,
            drafter,
            self._model,
            self._rows_of_others,
        )

    async def _prefill(
        self, prompt: Sequence[int], *, scored: bool
    ) -> tuple[NextToken, tuple[int, ...]]:
        """Run the part of the prompt that the caches lack, in consecutive chunks.

        ``scored``: run all of it, and note how likely each token was.
        """
        start = 0 if scored else self.held_of(prompt)
        self.scores = []
        self._reached = max(start, self._reached if start else 0)
        while any(rows > start for rows in self._lent):
            await self._changed.wait()
        if self.tokens[start : start + 1] == list(prompt[start:]):  # the last one runs again
            chunks = [RegimeChunk(start, start + 1, self._regimes[start])]
        else:
            chunks = split(start, len(prompt), blocks=self._chain.blocks)
        del self.tokens[start:], self._regimes[start:]
        self._reading = prompt
        try:
            with lone_errors():
                async with trio.open_nursery() as nursery:
                    window, sent_at = self._window, deque[float]()
                    window.begin()
                    room = trio.Semaphore(window.limit)
                    nursery.start_soon(self._send_chunks, prompt, chunks, room, sent_at)
                    for at, end, regime in chunks:
                        step = await self._chain.receive(at, end - at, (end - at) * self._row_bytes)
                        now = trio.current_time()
                        for _ in range(window.came_back(now - sent_at.popleft(), now)):
                            room.release()
                        self.on_rows(at, step.rows)
                        after = list(prompt[at + 1 : end + 1]) if scored else []
                        if end == len(prompt):
                            following = await self._cells.next(
                                at, step.rows, regime=regime, following=after
                            )
                            self.scores += following.scores
                        elif scored:
                            self.scores += await self._cells.score(
                                at, step.rows, after, regime=regime
                            )
                        else:
                            await self._cells.absorb(at, step.rows, regime=regime)
                        self.tokens += prompt[at:end]
                        self._regimes += [regime] * (end - at)
                        self._tell_changed()
        finally:
            self._reading = ()
            self._tell_changed()
        return following, step.decoding_us

    async def _send_chunks(
        self,
        prompt: Sequence[int],
        chunks: Sequence[RegimeChunk],
        room: trio.Semaphore,
        sent_at: deque[float],
    ) -> None:
        for at, end, regime in chunks:
            await room.acquire()
            self._reached = end
            embedded = await self._cells.embed(at, list(prompt[at:end]), regime=regime)
            self._chain.send(at, embedded.rows, end - at, regime=regime)
            sent_at.append(trio.current_time())


class Beginning(NamedTuple):
    """The first ``rows`` positions of a session, with which another one is to begin."""

    session: Session
    rows: int


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
        keeps_state: bool = False,
    ) -> None:
        """Ask for a model; the sessions' tasks run in the nursery, which outlives them.

        ``drafts``: send rows of likely tokens ahead; ``draft_model``: all layers of a small model
        with the same tokens, which says what is likely; ``keeps_state``: some of the model's layers
        cannot drop positions, so that nothing is sent that may have to be.
        """
        self._nursery, self._transport, self._ends, self._model = nursery, transport, ends, model
        self._gatherer, self._budget = gatherer, Budget()
        self._drafts = drafts and not keeps_state
        self._draft_model = None if keeps_state else draft_model
        self._keeps_state = keeps_state
        self.draft_record = DraftRecord()
        """Of all of its sessions."""

    def over(self, transport: Transport, gatherer: Gatherer | None) -> "Requester":
        """Return one that asks over another transport, with the ends and limits of this one."""
        found = copy(self)
        found._transport, found._gatherer = transport, gatherer
        return found

    @asynccontextmanager
    async def open(
        self,
        route: Sequence[Hop],
        session: SessionId,
        context: int,
        repair: Repair | None = None,
        beginning: Beginning | None = None,
    ) -> AsyncIterator[Session]:
        """Open a session along a route that connects the ends, for as long as the block lasts.

        Args:
            route: stages without gap or overlap from ``ends.first`` to ``ends.end``.
            session: 16 random bytes.
            context: positions that the session may hold at most.
            repair: replaces lost stages; with None the session ends instead.
            beginning: what it is to hold from the start, of a session along the same route.

        Raises:
            LookupError, EngineError: what it should begin with is no longer held.
            EngineBusy, EngineDied: the requester's own engine cannot open a session.
            RefusedError, PeerUnavailable, RemoteProtocolError: a stage refused or failed.
        """
        ends, me = self._ends, self._transport.peer_id
        context = min(context, ends.context)
        opened = Open(
            session, self._model, me, me, ends.first, ends.end, context, blocks=ends.blocks
        )
        if beginning:
            opened = beginning.session.opening(opened, beginning.rows)
        cells = ends.open(context)
        try:
            evidence = self._gatherer.begin(opened) if self._gatherer else None
            opened = evidence.opened if evidence else opened
            history = History(self._budget)
            chain = Chain(self._transport, opened, history, evidence, repair)
            async with AsyncExitStack() as stack:
                lending = (
                    beginning.session.lend(beginning.rows) if beginning else nullcontext(NOTHING)
                )
                with lending as held:
                    if beginning:
                        await beginning.session.copy_to(chain, cells, beginning.rows)
                    await stack.enter_async_context(open_chain(chain, route, self._nursery))
                model = None
                if self._draft_model:
                    drafter = open_drafter(self._draft_model, ends.vocabulary, self._nursery)
                    with suppress(EngineError):  # all of its sessions are taken: go without
                        model = await stack.enter_async_context(drafter)
                yield Session(
                    chain,
                    ends,
                    cells,
                    context,
                    held=held,
                    drafts=self._drafts,
                    model=model,
                    rows_of_others=repair.rows_of_others if repair else lambda _: 0.0,
                    keeps_state=self._keeps_state,
                    record=self.draft_record,
                    via=self._transport.via,
                )
        finally:
            cells.close()
