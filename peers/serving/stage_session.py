"""One session at a stage: steps come in from one peer, are computed, and go on to another.

The session lasts as long as its requester's channel to this stage, and obeys it; where the
connection under that broke, a moment longer, so that the requester can come another way. The peers
before and after it may go away: then the session reports that and waits for replacements.
"""

from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
import trio
from attrs import evolve

from p2pinfer.core.errors import (
    ChannelClosed,
    EngineError,
    PeerUnavailable,
    RemoteProtocolError,
    lone_errors,
)
from p2pinfer.core.ids import PeerId
from p2pinfer.core.limits import STEPS_IN_FLIGHT_MAX
from p2pinfer.core.messages import (
    ROUTE_HOPS_MAX,
    TEXT_CHARS_MAX,
    Attach,
    Attached,
    Connect,
    Connected,
    Denied,
    Expect,
    Expecting,
    Idle,
    Leaving,
    Link,
    Linked,
    Lost,
    Open,
    Opened,
    Refusal,
    Refused,
    Step,
)
from p2pinfer.core.regimes import Regime
from p2pinfer.core.wire import encode
from p2pinfer.engine.base import Decoded, EngineSession, Superseded
from peers.receipts.signer import SessionRecord
from peers.steps.history import History
from peers.steps.limits import CONNECT_S_MAX, ROW_TYPE
from peers.steps.messaging import GOODBYE_S_MAX, SESSION, RefusedError, receive, receive_each, send
from peers.steps.numbers import all_finite
from peers.steps.outbox import Outbox
from transports.base import Channel, Transport

LINKED_S_MAX = 15.0
"""How long cells are held for a session that is being opened and cannot pass steps yet."""

RELINKED_S_MAX = 120.0
"""The same once it has passed steps: its requester may be looking for a replacement."""

IDLE_S_MAX = 900.0
"""A person may think for a while between two questions; after that the cells are freed."""

QUIET_S = 5.0
"""A session between two answers may be ended after this: its requester opens another."""

SILENT_S_MAX = 180.0
"""After this, any session without steps may be ended. In mid-answer no pause between two steps is
longer: 120 s for a slow stage and 60 s until a lost one is replaced."""

REOPEN_S_MAX = 5.0
"""How long a session outlives its requester's channel where the connection broke: a lost relay is
noticed within 2 s, and to call over another one takes about 1 s. Then its cells are freed."""

REOPEN_PAUSE_S = 1.0
"""Requesters that reopen a session sooner again are blamed: ours wait for 10 s."""


@dataclass(eq=False)
class _Taking:
    """Another session's taking over of the first ``rows`` positions of this one."""

    rows: int
    is_spoilt: bool = False
    """They were replaced meanwhile."""


class StageSession:
    """One session, as a stage keeps it."""

    def __init__(
        self,
        transport: Transport,
        control: Channel,
        opened: Open,
        cells: EngineSession,
        width: int,
        history: History,
        record: SessionRecord | None,
    ) -> None:
        self.opened, self.previous = opened, opened.previous
        self._transport, self._control, self._cells = transport, control, cells
        self._record = record
        self._row_bytes = width * np.dtype(ROW_TYPE).itemsize
        self._outbox = Outbox(history)
        self._received = 0  # the number of the last step
        self._length = 0  # positions that the cells hold once all submitted steps are decoded
        self._answer = Opened()  # to the requester's next channel
        self._computed = 0  # positions whose rows have come out of the engine
        self._submitted = deque[int]()  # positions of the steps in the engine
        self._takings: list[_Taking] = []  # by sessions that begin with what this one holds
        self._idle_from = -1  # the number of the last step before the requester went idle
        self._inlet = trio.CancelScope()
        self._has_inlet = self._was_linked = False
        self._began_at = self._active_at = self._whole_at = trio.current_time()
        self._next: PeerId | None = None  # the stage that steps were last sent to, if any
        self._changed = trio.Event()
        self._obeying, self._turn = trio.CancelScope(), trio.Event()
        self._reopened_at = -np.inf
        self._failure: RefusedError | None = None
        self._failed, self._leaving = trio.Event(), trio.Event()
        self.rows = 0
        """Submitted to the engine so far, but for those that it skipped."""
        self.over = trio.Event()

    @property
    def positions(self) -> int:
        """How many positions the cells hold."""
        return self._length

    @property
    def holds_steps(self) -> bool:
        """Whether it got any, by itself or from a parent."""
        return self._received > 0

    @property
    def age_s(self) -> float:
        """Seconds since it was opened."""
        return trio.current_time() - self._began_at

    @property
    def idle_s(self) -> float:
        """Seconds since its last step."""
        return trio.current_time() - self._active_at

    @property
    def is_quiet(self) -> bool:
        """Whether it may be ended to make room: it has been between two answers for a while."""
        is_between = self._received <= self._idle_from
        return self.idle_s > (QUIET_S if is_between else SILENT_S_MAX)

    # Commands of the requester

    async def run(self, parent: "StageSession | None" = None) -> None:
        """Obey the requester until it leaves; begin with what the parent holds, if that works.

        Raises:
            RefusedError: the session failed, or was unused; the requester is told why.
            RemoteProtocolError: the requester broke the protocol.
        """
        try:
            if parent:
                self._answer = Opened(await self._inherit(parent))
            with lone_errors():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._outbox.run)
                    nursery.start_soon(self._expire)
                    nursery.start_soon(self._raise_failure)
                    nursery.start_soon(self._say_leaving)
                    while await self._obey(nursery):
                        pass
                    nursery.cancel_scope.cancel()  # the requester is done
        except RefusedError as error:  # tell the requester before the neighbours notice
            with trio.move_on_after(GOODBYE_S_MAX):
                await self._tell(error.refused)
            raise
        finally:
            self._cells.close()
            self._inlet.cancel()
            self._outbox.unlink()
            self._outbox.history.close()
            if self._record:
                self._record.close()
            self._turn.set()
            self.over.set()

    async def _inherit(self, parent: "StageSession") -> bool:
        """Take over the cells, the rows sent and the evidence of the parent's first positions.

        A requester that goes back before their end meanwhile, or never sent them, gets nothing:
        what this stage signs for must be one and the same session throughout.
        """
        asked, history = self.opened.parent, self._outbox.history
        assert asked
        taking = _Taking(asked.rows)
        if not parent.holds(taking.rows, self.opened) or (self._record and not parent._record):
            return False
        parent._takings.append(taking)
        try:
            await history.inherit(parent._outbox.history, taking.rows, asked.number)
            await self._cells.inherit(parent._cells, taking.rows)
        except (LookupError, EngineError):
            taking.is_spoilt = True
        finally:
            parent._takings.remove(taking)
        if taking.is_spoilt:
            history.clear()
            return False
        if self._record and parent._record:
            self._record.witness = parent._record.witness.fork(taking.rows)
        self._received, self._length = asked.number, taking.rows
        self._computed = taking.rows
        return True

    def holds(self, rows: int, opened: Open) -> bool:
        """Whether it has computed these positions as a session that is opened so would."""
        mine = self.opened
        return (
            (mine.end, mine.dtype) == (opened.end, opened.dtype)
            and mine.blocks <= opened.blocks
            and rows <= self._computed
            and all(position >= rows for position in self._submitted)
            and not self._failure
        )

    async def _obey(self, nursery: trio.Nursery) -> bool:
        """Obey the requester on its present channel; return whether it opened another one."""
        control, turn = self._control, self._turn
        try:
            with trio.CancelScope() as self._obeying:
                answer, self._answer = self._answer, Opened()
                await send(control, answer)
                if self._next and not self._outbox.channel:  # perhaps it was not heard
                    await send(control, Lost(self._next, "the channel to it has ended"))
                while True:
                    order: Connect | Expect | Idle = await receive(control, Connect, Expect, Idle)
                    if isinstance(order, Idle):
                        self._idle_from = order.number
                    elif isinstance(order, Connect):
                        await self._connect(order, control, nursery)
                    else:
                        await self._expect(order, control)
        except ChannelClosed as closed:
            if closed.is_lost and self._received:
                with trio.move_on_after(REOPEN_S_MAX):
                    await turn.wait()
        return turn.is_set()

    async def resume(self, channel: Channel, opened: Open) -> None:
        """Obey the requester on another channel, until it opens yet another, or the session ends.

        Raises:
            RemoteProtocolError: it wants another session than it opened, or reopens it too often.
        """
        now = trio.current_time()
        mine = self.opened
        alike = evolve(opened, previous=mine.previous, blocks=mine.blocks, parent=mine.parent)
        if opened.parent or alike != mine:
            raise RemoteProtocolError(channel.remote, "it reopened a session as another one")
        if now - self._reopened_at < REOPEN_PAUSE_S:
            raise RemoteProtocolError(channel.remote, "it reopens a session again and again")
        self._reopened_at = now
        before, self._control = self._control, channel
        turn, self._turn = self._turn, trio.Event()
        over = self._turn
        turn.set()
        self._obeying.cancel()
        before.abort()
        await over.wait()

    def hand_over(self) -> None:
        """Ask the requester to continue with another peer, if it can."""
        self._leaving.set()

    async def _say_leaving(self) -> None:
        await self._leaving.wait()
        await self._tell(Leaving())

    async def _connect(self, order: Connect, control: Channel, nursery: trio.Nursery) -> None:
        """Open a channel to the peer after this one, and send it the steps it lacks."""
        if not self._outbox.can_begin(order.sent):
            await send(control, Denied(order.number, Refusal.NOT_HELD))
            return
        try:
            with trio.fail_after(CONNECT_S_MAX):
                channel = await self._transport.open(
                    order.peer, SESSION, order.addresses, first=encode(Link(self.opened.session))
                )
                try:
                    await receive(channel, Linked)
                except BaseException:
                    channel.abort()
                    raise
        except (PeerUnavailable, RefusedError, RemoteProtocolError):
            await send(control, Denied(order.number, Refusal.PEER_LOST))
        except trio.TooSlowError:
            await send(control, Denied(order.number, Refusal.TOO_SLOW))
        else:
            self._link(channel, order.sent, order.known)
            self._next = order.peer
            nursery.start_soon(self._watch, channel)
            await send(control, Connected(order.number))

    async def _watch(self, channel: Channel) -> None:
        """Notice when the peer after refuses or goes away; it sends nothing else here."""
        try:
            await receive(channel)
        except (PeerUnavailable, RefusedError, RemoteProtocolError) as error:
            if not self._unlink(channel):
                return  # it was replaced
            with trio.move_on_after(CONNECT_S_MAX):
                await self._tell(Lost(channel.remote, str(error)[:TEXT_CHARS_MAX]))

    async def _expect(self, order: Expect, control: Channel) -> None:
        if order.peer != self.previous:
            self.previous = order.peer
            self._inlet.cancel()
        await send(control, Expecting(order.number, self._received))

    async def _tell(self, message: Lost | Leaving | Refused) -> None:
        with suppress(ChannelClosed):  # then the session ends anyway
            await send(self._control, message)

    # Links

    async def take_from(self, channel: Channel) -> None:
        """Take steps from the peer before, until it goes away or is replaced.

        Raises:
            RemoteProtocolError: it broke the protocol.
            RefusedError: the session is over.
        """
        self._inlet.cancel()
        with trio.CancelScope() as scope:
            self._inlet, self._has_inlet = scope, True
            self._note_links()
            try:
                await send(channel, Linked())
                while not self.over.is_set():
                    await receive_each(channel, partial(self._take, channel, scope), Step)
                    while not self._has_room():
                        await self._outbox.wait_moved()
            except ChannelClosed:
                pass  # the requester will find a replacement
            except RefusedError as error:
                self.fail(error)
                with trio.CancelScope(shield=True):
                    await self.over.wait()  # the requester is told first
                raise
            except RemoteProtocolError as error:
                await self._accuse(channel, error)
                raise
            finally:
                if self._inlet is scope:
                    self._has_inlet = False
                    self._note_links()

    def _take(self, channel: Channel, scope: trio.CancelScope, step: Step) -> bool:
        """Submit a step in the same call in which it comes; return whether another has room."""
        if scope.cancel_called:
            return False  # the task that waits for steps is about to end
        self.submit(channel, step)
        return self._has_room()

    def _has_room(self) -> bool:
        return len(self._submitted) + self._outbox.unsent < STEPS_IN_FLIGHT_MAX

    async def _accuse(self, channel: Channel, error: RemoteProtocolError) -> None:
        """Report a peer's protocol error to the requester; if the requester made it, end."""
        if channel.remote == self.opened.requester:
            self.fail(self._no(Refusal.BAD_REQUEST, str(error)))
        else:
            await self._tell(Lost(channel.remote, str(error)[:TEXT_CHARS_MAX]))

    async def give_to(self, channel: Channel, attach: Attach) -> None:
        """Send the results to the requester itself, until it goes away or opens another channel."""
        if not self._outbox.can_begin(attach.sent):
            raise self._no(Refusal.NOT_HELD, "earlier results are no longer kept")
        await send(channel, Attached())
        self._next = None
        self._link(channel, attach.sent, attach.sent)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_collector, channel, scope)
                await self.over.wait()
                scope.cancel()

    async def _watch_collector(self, channel: Channel, scope: trio.CancelScope) -> None:
        try:
            await receive(channel)
        except (PeerUnavailable, RefusedError, RemoteProtocolError):
            self._unlink(channel)
            scope.cancel()

    def _link(self, channel: Channel, sent: int, known: int) -> None:
        self._outbox.link(channel, sent, known)
        self._note_links()

    def _unlink(self, channel: Channel) -> bool:
        """Stop sending to a channel that has ended; return whether it was the one in use."""
        if self._outbox.channel not in (channel, None):
            return False
        self._outbox.unlink()
        self._note_links()
        return True

    def _note_links(self) -> None:
        """Record since when steps cannot pass through."""
        if self._has_inlet and self._outbox.channel:
            self._was_linked, self._whole_at = True, np.inf
        else:
            self._whole_at = min(self._whole_at, trio.current_time())
        self._changed.set()

    async def _expire(self) -> None:
        """Raise RefusedError once the session was unused, or could not pass steps, for too long."""
        while True:
            patience_s = RELINKED_S_MAX if self._was_linked else LINKED_S_MAX
            idle_at, stuck_at = self._active_at + IDLE_S_MAX, self._whole_at + patience_s
            now = trio.current_time()
            if now >= stuck_at:
                raise self._no(Refusal.TOO_SLOW, "no peer sends steps, or none takes them")
            if now >= idle_at:
                raise self._no(Refusal.IDLE, "the session was unused for too long")
            self._changed = trio.Event()
            with trio.move_on_at(min(idle_at, stuck_at)):
                await self._changed.wait()

    # Steps

    def submit(self, channel: Channel, step: Step) -> None:
        """Check a step and submit it to the engine; one received before is ignored."""
        if step.number <= self._received:
            return
        if step.position + step.count > self.opened.context:
            text = f"the session's {self.opened.context} positions are full"
            raise self._no(Refusal.CONTEXT_FULL, text)
        if step.position > self._length:
            raise RemoteProtocolError(channel.remote, "a step leaves a gap in its session")
        if step.count > step.regime.rows_max:
            text = f"a {step.regime.name.lower()} step has {step.count} rows"
            raise RemoteProtocolError(channel.remote, text)
        if step.regime is Regime.BLOCK and not self.opened.blocks:
            raise RemoteProtocolError(channel.remote, "the session was opened without blocks")
        if len(step.decoding_us) == ROUTE_HOPS_MAX:
            raise RemoteProtocolError(channel.remote, "a step went through too many stages")
        if len(step.rows) != step.count * self._row_bytes:
            raise RemoteProtocolError(channel.remote, "a step's rows do not have the model's width")
        if not all_finite(step.rows):
            raise RemoteProtocolError(channel.remote, "a step's rows hold NaN or infinity")
        self._received, self._length = step.number, step.position + step.count
        self._active_at = trio.current_time()
        self._submitted.append(step.position)  # an engine may be done before it returns
        for taking in self._takings:
            taking.is_spoilt |= step.position < taking.rows
        self.rows += step.count
        try:
            self._cells.submit(
                step.position, step.rows, partial(self._done, step), regime=step.regime
            )
        except EngineError as error:
            raise self._no(Refusal.ENGINE_FAILED, str(error)) from error

    def _done(self, step: Step, outcome: Decoded | EngineError) -> None:
        """Send a result on, in the same call in which the engine delivers it."""
        if isinstance(outcome, Superseded):  # by a step behind it, which goes on in its place
            self._submitted.remove(step.position)
            self.rows -= step.count
            self._outbox.wake()
            return
        if isinstance(outcome, EngineError):
            self.fail(self._no(Refusal.ENGINE_FAILED, str(outcome)))
            return
        self._submitted.popleft()
        self._computed = step.position + step.count
        rows = outcome.rows
        times = (*step.decoding_us, outcome.decoding_us)
        self._outbox.put(Step(step.number, step.position, step.count, step.regime, rows, times))
        self._outbox.wake()
        if self._record:
            self._record.add(step, rows)

    def fail(self, error: RefusedError) -> None:
        """End the session, and tell the requester why."""
        if not self._failure:
            self._failure = error
            self._failed.set()

    async def _raise_failure(self) -> None:
        await self._failed.wait()
        assert self._failure
        raise self._failure

    def _no(self, code: Refusal, text: str) -> RefusedError:
        return RefusedError.of(self._transport.peer_id, code, text)
