"""Serving a stage: any requester opens a session, and steps go through it down a chain.

An inbound channel is one of three things, as its first message says: a requester that opens and
controls a session, the peer before that sends steps, or the requester that collects the results.
Steps are handed to the engine without waiting for the result, which goes to the next stage as soon
as it is ready. So a prompt flows through the chain chunk after chunk, and the engine always has
the next one at hand.
"""

import logging
from collections import Counter
from dataclasses import dataclass

import trio

from p2pinfer.core.errors import ChannelClosed, EngineError, RemoteProtocolError
from p2pinfer.core.ids import ModelId, PeerId, SessionId
from p2pinfer.core.limits import SESSIONS_PER_REQUESTER_DEFAULT
from p2pinfer.core.messages import Attach, Link, Open, Refusal
from p2pinfer.engine.base import EngineBusy, StageEngine
from peers.receipts.signer import ReceiptSigner
from peers.serving.stage_session import StageSession
from peers.steps.history import Budget, History
from peers.steps.limits import OPEN_S_MAX
from peers.steps.messaging import SESSION, RefusedError, receive, refuse
from transports.base import Channel, Transport

_log = logging.getLogger("p2pinfer.stage")


@dataclass(frozen=True)
class SessionStatistics:
    """A session that is being served."""

    session: SessionId
    requester: PeerId
    first: int
    end: int
    """One past the last layer that it uses here."""
    positions: int
    """Filled KV cells."""
    rows: int
    """Computed for it so far."""
    age_s: float
    idle_s: float
    """Since its last step."""


class Stage:
    """Runs a range of layers for any requester, along routes that requesters choose."""

    def __init__(
        self,
        transport: Transport,
        engine: StageEngine,
        model: ModelId,
        signer: ReceiptSigner | None = None,
        sessions_per_requester: int = SESSIONS_PER_REQUESTER_DEFAULT,
    ) -> None:
        self._transport, self._engine, self._model = transport, engine, model
        self._signer, self._budget = signer, Budget()
        self._sessions_per_requester = sessions_per_requester
        self._sessions: dict[SessionId, StageSession] = {}
        self._rows_before = 0  # of sessions that are over

    @property
    def first(self) -> int:
        """The first of its layers."""
        return self._engine.first

    @property
    def end(self) -> int:
        """One past its last layer."""
        return self._engine.end

    @property
    def sessions(self) -> int:
        """How many sessions are being served."""
        return len(self._sessions)

    @property
    def rows(self) -> int:
        """Rows computed so far, for all sessions."""
        return self._rows_before + sum(session.rows for session in self._sessions.values())

    @property
    def is_quiet(self) -> bool:
        """Whether no session is in the middle of an answer, or was until a moment ago."""
        return all(session.is_quiet for session in self._sessions.values())

    def statistics(self) -> list[SessionStatistics]:
        """Return what each session is doing."""
        return [
            SessionStatistics(
                session.opened.session,
                session.opened.requester,
                session.opened.first,
                session.opened.end,
                session.positions,
                session.rows,
                session.age_s,
                session.idle_s,
            )
            for session in self._sessions.values()
        ]

    def listen(self) -> None:
        """Serve sessions from now on."""
        self._transport.handle(SESSION, self.serve, outlives=True)

    def holds(self, session: SessionId) -> bool:
        """Whether this session is being served here."""
        return session in self._sessions

    def make_room(self, requester: PeerId) -> None:
        """End the quietest session of the requester with most, if it keeps as many as others."""
        held = Counter(session.opened.requester for session in self._sessions.values())
        quiet = [
            session
            for session in self._sessions.values()
            if session.is_quiet and held[session.opened.requester] > held[requester] + 1
        ]
        if quiet:
            last = max(quiet, key=lambda session: (held[session.opened.requester], session.idle_s))
            last.fail(self._no(Refusal.IDLE, "another requester needs the place"))

    def hand_over(self) -> None:
        """Ask all requesters to continue with other peers, where they can."""
        for session in self._sessions.values():
            session.hand_over()

    async def serve(self, channel: Channel) -> None:
        """Serve one inbound channel for as long as it lasts."""
        try:
            with trio.fail_after(OPEN_S_MAX):
                first: Open | Link | Attach = await receive(channel, Open, Link, Attach)
            if isinstance(first, Open):
                await self._serve_requester(channel, first)
            elif isinstance(first, Link):
                await self._find(first, channel.remote).take_from(channel)
            else:
                await self._find(first, channel.remote).give_to(channel, first)
        except ChannelClosed:
            pass  # the other side has left
        except RemoteProtocolError as error:
            _log.info("%s", error)
            await refuse(channel, self._no(Refusal.BAD_REQUEST, str(error)))
        except trio.TooSlowError:
            await refuse(channel, self._no(Refusal.TOO_SLOW, "nothing came for too long"))
        except RefusedError as error:
            await refuse(channel, error)

    def _find(self, first: Link | Attach, peer: PeerId) -> StageSession:
        """Return the session that a peer may send to or collect from, or raise RefusedError."""
        found = self._sessions.get(first.session)
        if found:
            is_link = isinstance(first, Link)
            if peer == (found.previous if is_link else found.opened.requester):
                return found
        raise self._no(Refusal.UNKNOWN_SESSION, "no such session waits here for you")

    async def _serve_requester(self, channel: Channel, opened: Open) -> None:
        found = self._sessions.get(opened.session)
        if found and found.opened.requester == channel.remote and found.holds_steps:
            await found.resume(channel, opened)
            return
        parent = self._parent_of(opened)
        session = self._sessions[opened.session] = self._admit(channel, opened)
        try:
            await session.run(parent)
        finally:
            del self._sessions[opened.session]
            self._rows_before += session.rows

    def _admit(self, channel: Channel, opened: Open) -> StageSession:
        """Reserve cells for a session that is meant for this stage, or raise RefusedError."""
        engine = self._engine
        if opened.requester != channel.remote:
            raise self._no(
                Refusal.BAD_REQUEST, "a session must be opened in the requester's own name"
            )
        if opened.model != self._model:
            raise self._no(Refusal.WRONG_MODEL, f"this peer serves model {self._model[:12]}…")
        if opened.first != engine.first or not opened.first < opened.end <= engine.end:
            text = (
                f"this peer runs layers from {engine.first} to any end up to {engine.end},"
                f" not {opened.first}:{opened.end}"
            )
            raise self._no(Refusal.WRONG_RANGE, text)
        if opened.context > engine.context:
            text = f"sessions here hold {engine.context} positions, not {opened.context}"
            raise self._no(Refusal.CONTEXT_FULL, text)
        if opened.blocks and not engine.blocks:
            raise self._no(Refusal.BAD_REQUEST, "this peer does not run blocks")
        if opened.session in self._sessions:
            raise self._no(Refusal.BAD_REQUEST, "this session is open already")
        if opened.parent and opened.parent.rows > opened.context:
            raise self._no(Refusal.BAD_REQUEST, "the parent's rows do not fit into the session")
        others = [s for s in self._sessions.values() if s.opened.requester == channel.remote]
        if len(others) >= self._sessions_per_requester:
            raise self._no(Refusal.BUSY, f"one requester may have {len(others)} sessions here")
        try:
            cells = engine.open(opened.end, opened.context)
        except EngineBusy as error:
            raise self._no(Refusal.BUSY, str(error)) from error
        except EngineError as error:
            raise self._no(Refusal.ENGINE_FAILED, str(error)) from error
        history = History(self._budget)
        record = None
        if self._signer and any(opened.seal):
            record = self._signer.record(opened, engine, history, cells)
        return StageSession(self._transport, channel, opened, cells, engine.width, history, record)

    def _parent_of(self, opened: Open) -> StageSession | None:
        """Return the session that another one is to begin with, if it is still here.

        Raises:
            RefusedError: it is another requester's, whose text it would give away.
        """
        parent = self._sessions.get(opened.parent.session) if opened.parent else None
        if parent and parent.opened.requester != opened.requester:
            raise self._no(Refusal.BAD_REQUEST, "the parent is another requester's session")
        return parent

    def _no(self, code: Refusal, text: str) -> RefusedError:
        return RefusedError.of(self._transport.peer_id, code, text)
