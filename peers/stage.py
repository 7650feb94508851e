"""Serving a stage: sessions come in along a route, rows go on to the next peer.

A session is one task per inbound channel. It reads steps and hands them to the engine without
waiting for the result, which ``onward`` sends to the next stage. So a prompt flows through the
chain chunk behind chunk, and the engine always has the next one at hand.
"""

import logging
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import trio

from p2pinfer.core.errors import (
    ChannelClosed,
    EngineError,
    PeerUnavailable,
    RemoteProtocolError,
    lone_errors,
)
from p2pinfer.core.ids import ModelId, SessionId
from p2pinfer.core.limits import NARROW_ROWS_MAX
from p2pinfer.core.messages import (
    ROUTE_HOPS_MAX,
    Attach,
    Attached,
    Open,
    Opened,
    Refusal,
    Step,
)
from p2pinfer.engine.base import EngineBusy, StageEngine, StageSession
from peers.onward import NUMPY_TYPES, Onward
from peers.talk import SESSION, RefusedError, receive, send
from transports.base import Channel, Transport

_log = logging.getLogger("p2pinfer.stage")

OPEN_S_MAX = 15.0
"""From a channel's start until its first message, and for the last stage's word that it agrees."""

OPEN_S_PER_STAGE = 1.0
"""Who is nearer to a silent stage gives up earlier by this, and so is the one to name it."""

ATTACH_S_MAX = 15.0
"""How long the last stage holds cells for a requester that has not come to collect."""

IDLE_S_MAX = 900.0
"""A person may think for a while between two questions; after that the cells are for others."""

GOODBYE_S_MAX = 1.0
"""How long to try to tell a peer why its session ends."""


def open_s_max(stages: int) -> float:
    """How long to wait for so many stages to agree to a session."""
    return OPEN_S_MAX + OPEN_S_PER_STAGE * stages


@dataclass
class _Session:
    """What a stage keeps of one session."""

    opened: Open
    cells: StageSession
    length: int = 0
    """Positions that the KV cache holds, once all that was submitted is decoded."""
    collector: Channel | None = None
    active_at: float = 0.0
    """When the last step came, by trio's clock."""
    attached: trio.Event = field(default_factory=trio.Event)
    over: trio.Event = field(default_factory=trio.Event)


class Stage:
    """Runs a range of layers for whoever asks, along routes that requesters choose."""

    def __init__(self, transport: Transport, engine: StageEngine, model: ModelId) -> None:
        self._transport, self._engine, self._model = transport, engine, model
        self._sessions: dict[SessionId, _Session] = {}
        self.rows = 0
        """Rows computed so far, for all sessions."""

    @property
    def sessions(self) -> int:
        """How many sessions are being served."""
        return len(self._sessions)

    def listen(self) -> None:
        """Serve sessions from now on."""
        self._transport.handle(SESSION, self._serve)

    async def _serve(self, channel: Channel) -> None:
        """Serve one inbound channel: a session, or a requester that comes to collect."""
        try:
            with trio.fail_after(OPEN_S_MAX):
                first = await receive(channel, Open, Attach)
            if isinstance(first, Attach):
                await self._serve_collector(channel, first)
            else:
                await self._serve_session(channel, first)
        except ChannelClosed:
            pass  # whoever asked has left
        except RemoteProtocolError as error:
            _log.warning("%s", error)
            await self._refuse(channel, self._no(Refusal.BAD_REQUEST, str(error)))
        except trio.TooSlowError:
            await self._refuse(channel, self._no(Refusal.TOO_SLOW, "nothing came for too long"))
        except RefusedError as error:
            await self._refuse(channel, error)

    async def _serve_collector(self, channel: Channel, attach: Attach) -> None:
        """Give the channel to its session, and keep it open for as long as that lasts."""
        session = self._sessions.get(attach.session)
        if (
            session is None
            or session.opened.requester != channel.remote
            or len(session.opened.route) != 1
            or session.collector is not None
        ):
            raise self._no(Refusal.UNKNOWN_SESSION, "no such session waits here for you")
        session.collector = channel
        await send(channel, Attached())
        session.attached.set()
        await session.over.wait()

    async def _serve_session(self, channel: Channel, opened: Open) -> None:
        session = self._admit(opened)
        self._sessions[opened.session] = session
        output: Channel | None = None
        try:
            if len(opened.route) > 1:
                output = await self._extend(opened)
            await send(channel, Opened())
            if output is None:
                output = await self._wait_for_collector(session)
            await self._run(channel, session, output)
        finally:
            del self._sessions[opened.session]
            session.cells.close()
            session.over.set()
            if output:
                output.abort()

    def _admit(self, opened: Open) -> _Session:
        """Reserve cells for a session that is meant for this stage, or raise RefusedError."""
        hop, engine = opened.route[0], self._engine
        if opened.model != self._model:
            raise self._no(Refusal.WRONG_MODEL, f"this peer serves model {self._model[:12]}…")
        if (hop.first, hop.end) != (engine.first, engine.end):
            text = f"this peer serves layers {engine.first}:{engine.end}, not {hop.first}:{hop.end}"
            raise self._no(Refusal.WRONG_RANGE, text)
        if any(b.first != a.end for a, b in pairwise(opened.route)):
            raise self._no(Refusal.WRONG_RANGE, "the route's layer ranges leave a gap or overlap")
        if opened.context > engine.context:
            text = f"sessions here hold {engine.context} positions, not {opened.context}"
            raise self._no(Refusal.CONTEXT_FULL, text)
        if opened.session in self._sessions:
            raise self._no(Refusal.BAD_REQUEST, "this session is open already")
        try:
            return _Session(opened, engine.open())
        except EngineBusy as error:
            raise self._no(Refusal.BUSY, str(error)) from error
        except EngineError as error:
            raise self._no(Refusal.ENGINE_FAILED, str(error)) from error

    async def _extend(self, opened: Open) -> Channel:
        """Open the session at the next stage, which does the same until the last one agreed."""
        following = opened.route[1]
        with ExitStack() as undo:
            try:
                with trio.fail_after(open_s_max(len(opened.route) - 1)):
                    output = await self._transport.open(
                        following.peer, SESSION, following.addresses
                    )
                    undo.callback(output.abort)
                    await send(output, opened.for_next())
                    await receive(output, Opened)
            except PeerUnavailable as error:
                raise RefusedError.of(following.peer, Refusal.PEER_LOST, str(error)) from error
            except trio.TooSlowError as error:
                text = "it did not answer in time"
                raise RefusedError.of(following.peer, Refusal.TOO_SLOW, text) from error
            undo.pop_all()
        return output

    async def _wait_for_collector(self, session: _Session) -> Channel:
        with trio.fail_after(ATTACH_S_MAX):
            await session.attached.wait()
        assert session.collector
        return session.collector

    async def _run(self, channel: Channel, session: _Session, output: Channel) -> None:
        """Compute steps until the peer before us closes, or something fails."""
        onward = Onward(self._transport.peer_id, output, session.opened.dtype)
        with lone_errors():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(onward.flush)
                nursery.start_soon(_watch, output)
                nursery.start_soon(_expire, session)
                try:
                    while True:
                        step = await receive(channel, Step)
                        session.active_at = trio.current_time()
                        self._submit(channel, session, step, onward)
                        await onward.wait_room()
                except ChannelClosed:
                    nursery.cancel_scope.cancel()  # the requester is done

    def _submit(self, channel: Channel, session: _Session, step: Step, onward: Onward) -> None:
        """Check a step and line it up for the engine."""
        if step.position + step.count > session.opened.context:
            text = f"the session's {session.opened.context} positions are full"
            raise self._no(Refusal.CONTEXT_FULL, text)
        if step.position > session.length:
            raise RemoteProtocolError(channel.remote, "a step leaves a gap in its session")
        if step.count > NARROW_ROWS_MAX and not step.wide:
            raise RemoteProtocolError(channel.remote, f"a narrow step has {step.count} rows")
        if len(step.decoding_us) == ROUTE_HOPS_MAX:
            raise RemoteProtocolError(channel.remote, "a step went through too many stages")
        dtype = np.dtype(NUMPY_TYPES[session.opened.dtype])
        if len(step.rows) != step.count * self._engine.width * dtype.itemsize:
            raise RemoteProtocolError(channel.remote, "a step's rows are not of the model's width")
        rows = np.frombuffer(step.rows, dtype)
        if not np.isfinite(rows).all():
            raise RemoteProtocolError(channel.remote, "a step's rows hold NaN or infinity")
        session.length = step.position + step.count
        self.rows += step.count
        data = step.rows if rows.dtype == np.float32 else rows.astype("<f4").tobytes()
        try:
            session.cells.submit(step.position, data, onward.expect(step), wide=step.wide)
        except EngineError as error:
            raise self._no(Refusal.ENGINE_FAILED, str(error)) from error

    def _no(self, code: Refusal, text: str) -> RefusedError:
        return RefusedError.of(self._transport.peer_id, code, text)

    async def _refuse(self, channel: Channel, error: RefusedError) -> None:
        """Say no, if the peer still listens."""
        with trio.move_on_after(GOODBYE_S_MAX):
            try:
                await send(channel, error.refused)
                await channel.close()
            except PeerUnavailable:
                pass


async def _expire(session: _Session) -> None:
    """Raise TooSlowError once a session has been idle for too long."""
    session.active_at = trio.current_time()
    while (idle_until := session.active_at + IDLE_S_MAX) > trio.current_time():  # noqa: ASYNC110 -- steps move the deadline; an event per step would cost each token
        await trio.sleep_until(idle_until)
    raise trio.TooSlowError


async def _watch(output: Channel) -> None:
    """Notice when the peer behind us refuses or goes away; it has nothing else to say."""
    try:
        await receive(output)
    except PeerUnavailable as error:
        raise RefusedError.of(output.remote, Refusal.PEER_LOST, str(error)) from error
