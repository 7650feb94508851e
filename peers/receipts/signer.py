"""The stage's side of evidence: commitments to its rows, which it opens for the requester.

Receipts go to the session's requester on a separate channel, so that no token waits for one.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import trio

from p2pinfer.core.errors import ChannelClosed, RemoteProtocolError, lone_errors
from p2pinfer.core.evidence import AskRows, Follow, Made, Opening, Settle, Settled
from p2pinfer.core.ids import PeerId, SessionId
from p2pinfer.core.ledger import LedgerEntry
from p2pinfer.core.messages import Denied, Open, Refusal, Step
from p2pinfer.core.receipts import Terms
from p2pinfer.core.witness import Seat, Witness
from p2pinfer.engine.base import EngineSession, StageEngine
from peers.steps.history import History
from peers.steps.messaging import receive, send
from transports.base import Channel, Transport

_log = logging.getLogger("p2pinfer.evidence")

EVIDENCE = "evidence"

FOLLOW_S_MAX = 15.0
"""From a channel's start until the requester names its session."""


@dataclass(eq=False)
class SessionRecord:
    """The evidence of one session at one stage."""

    opened: Open
    seat: Seat
    history: History
    """Rows that were sent; the session also keeps them for replacements."""
    cells: EngineSession
    """Those that the rows were computed in."""
    width: int
    """Numbers in a row."""
    on_over: Callable[["SessionRecord"], None]
    witness: Witness = field(default_factory=partial(Witness, keep=False))
    following: trio.CancelScope = field(default_factory=trio.CancelScope)
    """Serves the requester on its newest channel."""
    sending: trio.Lock = field(default_factory=trio.Lock)
    """Makes receipts go out in the order in which they were signed."""
    due: trio.Event = field(default_factory=trio.Event)
    over: trio.Event = field(default_factory=trio.Event)

    def add(self, step: Step, sent: bytes) -> None:
        """Remember a step and the rows sent on for it; cheap, as a token is waiting."""
        if self.witness.add(step.position, step.count, step.rows, sent, regime=step.regime):
            self.due.set()

    def close(self) -> None:
        """Forget the session: it is over."""
        self.on_over(self)
        self.over.set()

    def open(self, position: int, count: int) -> tuple[bytes, bytes]:
        """Return the regimes and rows sent; raises LookupError if they are no longer kept."""
        kept = list(self.history.read(position, position + count))
        regimes = b"".join(bytes([each.regime]) * each.count for each in kept)
        return regimes, b"".join(each.rows or b"" for each in kept)


class ReceiptSigner:
    """Keeps the records of a peer's sessions, and answers questions about them."""

    def __init__(
        self,
        transport: Transport,
        sign: Callable[[bytes], bytes],
        on_served: Callable[[LedgerEntry], None] = lambda _: None,
    ) -> None:
        """Prepare to keep records.

        Args:
            transport: to requesters.
            sign: with the peer's key.
            on_served: called with each session's ledger entry once it is over.
        """
        self._transport, self._sign, self._on_served = transport, sign, on_served
        self._records: dict[SessionId, SessionRecord] = {}

    def listen(self) -> None:
        """Answer requesters from now on."""
        self._transport.handle(EVIDENCE, self._serve)

    def find(self, session: SessionId, requester: PeerId) -> SessionRecord | None:
        """Return the record of a requester's session, while that lasts."""
        record = self._records.get(session)
        return record if record and record.opened.requester == requester else None

    def record(
        self, opened: Open, engine: StageEngine, history: History, cells: EngineSession
    ) -> SessionRecord:
        """Keep a record of a session from now on, until it is closed."""
        terms = terms_of(opened)
        numerics = bytes.fromhex(engine.numerics_class)
        seat = Seat(terms.digest(), opened.first, opened.end, numerics, self._sign)
        found = SessionRecord(opened, seat, history, cells, engine.width, self._over)
        self._records[opened.session] = found
        return found

    def _over(self, record: SessionRecord) -> None:
        opened, seat = record.opened, record.seat
        self._records.pop(opened.session, None)
        me, rows = self._transport.peer_id, record.witness.rows
        self._on_served(LedgerEntry(me, opened.requester, seat.terms, seat.first, seat.end, rows))

    async def _serve(self, channel: Channel) -> None:
        """Serve one requester that follows its session, until either is over."""
        try:
            with trio.fail_after(FOLLOW_S_MAX):
                session = (await receive(channel, Follow)).session
            record = self.find(session, channel.remote)
            if record is None:  # one that just ended, or another requester's
                await send(channel, Denied(0, Refusal.UNKNOWN_SESSION))
                return
            record.following.cancel()  # where its relay is gone, the requester may notice first
            with lone_errors():
                async with trio.open_nursery() as nursery:
                    record.following = nursery.cancel_scope
                    nursery.start_soon(_push, channel, record)
                    nursery.start_soon(_answer, channel, record)
                    await record.over.wait()
                    nursery.cancel_scope.cancel()
        except ChannelClosed:
            pass  # the requester has left
        except RemoteProtocolError as error:
            _log.info("%s", error)
        except trio.TooSlowError:
            pass


def terms_of(opened: Open) -> Terms:
    """Return the terms that a session's receipts refer to."""
    return Terms(opened.session, opened.model, opened.requester, opened.dtype, opened.seal)


async def _push(channel: Channel, record: SessionRecord) -> None:
    """Send each receipt once it is due."""
    while True:
        await record.due.wait()
        record.due = trio.Event()
        async with record.sending:
            await _send_due(channel, record)


async def _send_due(channel: Channel, record: SessionRecord) -> None:
    for signed in record.witness.due(record.seat):
        await send(channel, Made(signed))


async def _answer(channel: Channel, record: SessionRecord) -> None:
    """Answer questions one at a time."""
    while True:
        asked = await receive(channel, Settle, AskRows)
        if isinstance(asked, AskRows):
            await send(channel, _opening(asked, record))
        elif asked.position > record.witness.length:
            await send(channel, Denied(asked.number, Refusal.NOT_HELD))
        else:
            async with record.sending:
                await _send_due(channel, record)
                signed = record.witness.sign(record.seat, asked.position)
                await send(channel, Settled(asked.number, signed))


def _opening(asked: AskRows, record: SessionRecord) -> Opening | Denied:
    try:
        return Opening(asked.number, *record.open(asked.position, asked.count))
    except LookupError:
        return Denied(asked.number, Refusal.NOT_HELD)
