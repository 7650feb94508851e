"""One stage of a session, as the requester controls it."""

from collections.abc import Callable, Sequence
from itertools import count, takewhile
from typing import TypeVar

import trio
from attrs import evolve

from p2pinfer.core.errors import PeerError, PeerUnavailable, RemoteProtocolError, lone_errors
from p2pinfer.core.ids import PeerId
from p2pinfer.core.messages import (
    Attach,
    Attached,
    Connect,
    Connected,
    Denied,
    Expect,
    Expecting,
    Hop,
    Idle,
    Leaving,
    Link,
    Linked,
    Lost,
    Open,
    Opened,
    Refusal,
    Step,
)
from p2pinfer.core.wire import encode
from peers.receipts.session_evidence import Evidence
from peers.steps.limits import CONNECT_S_MAX
from peers.steps.messaging import SESSION, RefusedError, receive, send
from peers.steps.numbers import all_finite
from transports.base import Channel, Transport, is_circuit

A = TypeVar("A", Connected, Expecting)
D = TypeVar("D", Opened, Linked, Attached)

ANSWER_S_MAX = CONNECT_S_MAX + 1.0
"""For a stage to carry out a command while a session is being repaired."""

LOOK_STEPS = 16
"""Steps between two checks for a slow stage; every stage reports its time for each step."""

REOPEN_S = 10.0
"""A peer that is lost again so soon is replaced: its relay was not the reason."""

STILL_S_MAX = 120.0
"""For a step to come out of a chain that seems whole: a block of a prompt takes most of this where
laptops run 70 billion weights. A peer whose engine hangs answers heartbeats all the same."""


class StageHandle:
    """A stage that accepted a session, and the control channel that keeps it open."""

    def __init__(
        self,
        hop: Hop,
        control: Channel,
        expects: PeerId,
        *,
        blocks: bool,
        begins_at: int = 0,
        is_carried: bool = False,
    ) -> None:
        """Control a stage that has the steps up to ``begins_at`` from a parent of the session.

        ``is_carried``: by a path, so that it may be there still when it seems to be lost.
        """
        self.hop, self.blocks, self._begins_at = hop, blocks, begins_at
        self.may_return = is_carried or any(map(is_circuit, hop.addresses))
        """Whether perhaps only a relay is gone when it is lost."""
        self._expects: PeerId | None = expects
        self.lost: PeerError | None = None
        """Why the session cannot continue with it."""
        self.wants_to_leave = False
        self.sends_to: StageHandle | None = None
        """The stage after it, which takes what it sends; itself stands for the requester."""
        self.lost_next = False
        """It has said that it sends to nobody any more."""
        self.known = 0
        """Its answers to steps up to this number are no longer needed."""
        self._control = control
        self._asking = trio.Lock()
        self._number = 0
        self._answer: Connected | Expecting | Denied | None = None
        self._answered = trio.Event()

    async def listen(
        self, on_word: Callable[["StageHandle", Lost | Leaving | PeerError], None]
    ) -> None:
        """Take answers, and report other messages from the stage and its loss to ``on_word``."""
        try:
            while True:
                said: Connected | Expecting | Denied | Lost | Leaving = await receive(
                    self._control, Connected, Expecting, Denied, Lost, Leaving
                )
                if isinstance(said, Lost | Leaving):
                    on_word(self, said)
                elif said.number == self._number:
                    self._answer = said
                    self._answered.set()
        except PeerError as error:
            self.lose(error)
            on_word(self, error)

    def lose(self, error: PeerError) -> None:
        """Give up on the stage; the first reason counts."""
        self.lost = self.lost or error
        self._answered.set()
        self._control.abort()

    def say_idle(self, number: int) -> None:
        """Tell it that an answer is over; if that cannot be sent at once, it finds out later."""
        self._control.send_now(encode(Idle(number)))

    async def connect(self, to: "StageHandle", sent: int, timeout_s: float) -> None:
        """Have it send to another stage, which already has all steps up to ``sent``.

        Raises:
            RefusedError: it cannot; the code says which of the two is to blame.
            PeerUnavailable: it does not answer, or is gone.
        """
        hop = to.hop
        self.known = max(sent, to.known)
        self.sends_to = None
        await self._ask(
            lambda number: Connect(number, hop.peer, hop.addresses, sent, self.known),
            Connected,
            timeout_s,
        )
        self.sends_to, self.lost_next = to, False

    async def expect(self, peer: PeerId, timeout_s: float) -> int:
        """Have it take steps from another peer; return the number of the last one that it has.

        Raises:
            PeerUnavailable: it does not answer, or is gone.
        """
        known = peer == self._expects  # since it opened or was asked a moment ago
        received = self._begins_at if known else await self.count(peer, timeout_s)
        self._expects = None  # a later change needs another message
        return received

    async def count(self, peer: PeerId, timeout_s: float) -> int:
        """As ``expect``, also where it was opened for the same peer: it may hold steps already.

        An ``expect`` after it need not ask again.
        """
        answer = await self._ask(lambda number: Expect(number, peer), Expecting, timeout_s)
        self._expects, self._begins_at = peer, answer.received
        return answer.received

    async def _ask(
        self, make: Callable[[int], Connect | Expect], kind: type[A], timeout_s: float
    ) -> A:
        peer = self.hop.peer
        async with self._asking:
            self._number += 1
            self._answer, self._answered = None, trio.Event()
            try:
                with trio.fail_after(timeout_s):
                    if not self.lost:
                        await send(self._control, make(self._number))
                        await self._answered.wait()
            except trio.TooSlowError:
                error = PeerUnavailable(peer, f"{peer} did not answer in {timeout_s:.0f} s")
                raise error from None
            if self.lost:
                raise PeerUnavailable(peer, str(self.lost))
            answer = self._answer
        if isinstance(answer, Denied):
            raise RefusedError.of(peer, answer.code, "the stage rejected the command")
        if not isinstance(answer, kind):
            raise RemoteProtocolError(peer, "it answered another question")
        return answer


def lost_places(stages: Sequence[StageHandle]) -> slice | None:
    """Return the first run of stages that are lost."""
    lost = [index for index, stage in enumerate(stages) if stage.lost]
    if not lost:
        return None
    run = takewhile(lambda index: index in lost, count(lost[0]))
    return slice(lost[0], lost[0] + sum(1 for _ in run))


async def open_stages(
    transport: Transport,
    opened: Open,
    route: Sequence[Hop],
    previous: PeerId,
    timeout_s: float,
    evidence: Evidence | None = None,
    is_new: bool = False,
) -> list[StageHandle]:
    """Open a session at consecutive stages, the first one after ``previous``.

    It opens at all of them or at none; raises as ``reach``. If a stage refuses a session with a
    voucher, which older peers do not know, or which served another requester before, it is asked
    again without; and then without a parent, which older peers do not know either, or since it has
    that very session. A new session is asked for again without blocks, too, unless the parent's
    rows are of blocks. A replacement that has no such parent gets the rows from the stage before.
    """
    previous_of = [previous, *(hop.peer for hop in route)]
    found: dict[int, StageHandle] = {}

    async def open_one(index: int, hop: Hop) -> None:
        before = previous_of[index]
        own = evolve(opened, previous=before, first=hop.first, end=hop.end)
        if evidence:
            own = evolve(own, voucher=await evidence.vouch(hop.peer))
        while True:
            try:
                control, said = await reach(transport, hop, own, Opened, timeout_s)
                break
            except RefusedError as error:
                if error.refused.code is not Refusal.BAD_REQUEST:
                    raise
                if own.voucher:
                    own = evolve(own, voucher=None)
                elif own.parent:
                    own = evolve(own, parent=None)
                elif is_new and own.blocks and not opened.parent:
                    own = evolve(own, blocks=False)
                else:
                    raise
        if said.inherited and not own.parent:
            control.abort()
            raise RemoteProtocolError(hop.peer, "it took over a session that was not named")
        begins_at = own.parent.number if own.parent and said.inherited else 0
        found[index] = StageHandle(
            hop,
            control,
            before,
            blocks=own.blocks,
            begins_at=begins_at,
            is_carried=transport.via is not None,
        )

    try:
        with lone_errors():
            async with trio.open_nursery() as opening:
                for index, hop in enumerate(route):
                    opening.start_soon(open_one, index, hop)
    except BaseException:
        for stage in found.values():
            stage.lose(PeerUnavailable(stage.hop.peer, "another stage did not open"))
        raise
    return [found[index] for index in range(len(route))]


async def reach(
    transport: Transport,
    hop: Hop,
    first: Open | Link | Attach,
    due: type[D],
    timeout_s: float,
) -> tuple[Channel, D]:
    """Open a channel to a stage, say what it is for, and wait until the stage agrees.

    Returns the channel and what the stage said.

    Raises:
        RefusedError: it refused.
        PeerUnavailable: it cannot be reached, or does not answer.
        RemoteProtocolError: it broke the protocol.
    """
    channel: Channel | None = None
    try:
        with trio.fail_after(timeout_s):
            channel = await transport.open(hop.peer, SESSION, hop.addresses, first=encode(first))
            said = await receive(channel, due)
        return channel, said
    except BaseException as error:
        if channel:
            channel.abort()
        if isinstance(error, trio.TooSlowError):
            text = f"{hop.peer} did not answer in {timeout_s:.0f} s"
            raise PeerUnavailable(hop.peer, text) from None
        raise


def check_step(peer: PeerId, step: Step, sent: int, due: tuple[int, int, int]) -> None:
    """Raise RemoteProtocolError if a step is not the answer to what was sent.

    Args:
        peer: the sender.
        step: the step received.
        sent: the number of the last step that was sent.
        due: the position, row count and byte count it must have.
    """
    if step.number > sent or (step.position, step.count) != due[:2]:
        raise RemoteProtocolError(peer, "a stage answered another step")
    if len(step.rows) != due[2]:
        raise RemoteProtocolError(peer, "a stage's rows have the wrong width")
    if not all_finite(step.rows):
        raise RemoteProtocolError(peer, "a stage's rows hold NaN or infinity")


async def wait_still(progress: Callable[[], tuple[int, int]]) -> None:
    """Return once nothing has come out of a chain for too long.

    Checking now and then costs nothing per token; a deadline for each step would.

    Args:
        progress: the number of the last step received, and of the last that is awaited.
    """
    seen, since = -1, trio.current_time()
    while trio.current_time() < since + STILL_S_MAX:
        await trio.sleep(STILL_S_MAX / 8)
        came, sent = progress()
        if came >= sent or came != seen:
            seen, since = came, trio.current_time()
