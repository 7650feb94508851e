"""A relay: it lets hidden peers be called through it, and carries bytes that it cannot read.

A hidden peer reserves and keeps its connection; a caller asks for a circuit to it; then a stream to
each is open, and what comes is passed on. End to end over that run Noise and our Yamux, as over a
socket. The reservation is for the peer that asks, even if it names another, and ends with its
connection. A relay dials nobody, and carries nothing that itself came through a relay.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import trio
from libp2p.abc import IHost, INetStream
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamReset

from p2pinfer.core.errors import PeerError
from p2pinfer.core.ids import PeerId
from transports.libp2p import circuit_messages as messages
from transports.libp2p.circuit_messages import (
    HOP,
    MESSAGE_BYTES_MAX,
    STOP,
    CircuitStatus,
    ConnectTo,
)
from transports.libp2p.guest_passage import let_guests_through
from transports.libp2p.muxer import Connection
from transports.libp2p.negotiation import open_stream, read_delimited
from transports.libp2p.padding import Beats
from transports.libp2p.relay_limits import Bucket, RelayLimits, RelayTable, site_of
from transports.libp2p.stream import Stream

log: Final = logging.getLogger("p2pinfer.relay")

ASK_S_MAX = 5.0
"""For a stream to say what it wants."""

STOP_S_MAX = 5.0
"""For a hidden peer to take a call."""

ASKING_MAX = 128
ASKING_PER_PEER_MAX = 16
"""Streams that have not said yet what they want, or are being connected: more are reset."""

IDLE_S_MAX = 120.0
"""Without a byte: both ends ping every 5 s, js-libp2p every 30."""

HALF_CLOSED_S_MAX = 10.0
"""Without a byte, once one end has said that it sends no more."""

PIECE_BYTES = 65_000
"""Passed on at once: one frame."""

TURN_BYTES = 4096
"""Passed on per turn where many circuits share the rate: with all of them busy, each has its turn
every half second, so that the pings among its bytes arrive before the other end gives it up."""


@dataclass(frozen=True)
class RelayStatistics:
    """What a relay does now, and did so far."""

    reservations: int
    circuits: int
    bytes: int
    """Carried so far, both ways."""
    refused: int
    """Requests refused so far for lack of room."""


class End(Protocol):
    """One end of what a relay carries: a stream, or a socket that is used like one."""

    buffer: bytearray
    ended: bool
    dead: bool
    finished: bool

    async def wait_buffered(self, size: int) -> None:
        """Wait until that many bytes are unread, or no more will come."""
        ...

    def take(self, size: int) -> bytes:
        """Remove and return unread bytes."""
        ...

    def room(self) -> int:
        """How many bytes may be sent now."""
        ...

    async def wait_room(self, *, or_end: bool = False) -> None:
        """Wait until bytes may be sent or never can."""
        ...

    def send_now(self, data: bytes) -> int:
        """Send as much as there is room for; return how much."""
        ...

    def finish(self) -> None:
        """Send no more."""
        ...

    def abort(self) -> None:
        """End it now, in both directions."""
        ...


class Relay:
    """The relay of one host.

    Args:
        host: whose streams it serves.
        limits: what it gives.
        addresses: returns where the relay is reached.
        unix_s: the wall-clock time, for hidden peers to know when to renew.
        is_on: returns whether it takes reservations and calls.
        protocol: under which it is asked.
    """

    def __init__(
        self,
        host: IHost,
        limits: RelayLimits,
        addresses: Callable[[], list[str]],
        unix_s: Callable[[], float],
        is_on: Callable[[], bool],
        protocol: str = HOP,
    ) -> None:
        self.is_on = is_on
        self._addresses, self._unix_s = addresses, unix_s
        self._table: RelayTable[ID, Connection] = RelayTable(limits)
        self._total = Bucket(limits.bytes_per_s, limits.burst_bytes)
        self._turn = trio.Lock()
        self._asking: dict[ID, int] = {}
        self._bytes = self._refused = 0
        host.set_stream_handler(TProtocol(protocol), self._serve)
        if protocol == HOP:
            let_guests_through(host, self._held_by)

    def share_rate(self, other: "Relay") -> None:
        """Carry no more than another relay of this host and this one may together."""
        self._total, self._turn = other._total, other._turn

    def statistics(self) -> RelayStatistics:
        """Return what it does now."""
        table = self._table
        return RelayStatistics(table.reservations, table.circuits, self._bytes, self._refused)

    async def _serve(self, inbound: INetStream) -> None:
        muxed: Any = inbound
        stream, connection = muxed.muxed_stream, muxed.muxed_conn
        if not isinstance(stream, Stream) or not isinstance(connection, Connection):
            await inbound.reset()
            return
        peer: ID = connection.peer_id
        asking = self._asking.get(peer, 0)
        if asking >= ASKING_PER_PEER_MAX or sum(self._asking.values()) >= ASKING_MAX:
            self._refused += 1
            stream.abort()
            return
        self._asking[peer] = asking + 1
        try:
            target = await self._hear(stream, connection)
        finally:
            self._asking[peer] -= 1
            if not self._asking[peer]:
                del self._asking[peer]
        if target is None:
            await messages.hang_up(stream)
            return
        found, asked = target
        try:
            await self._carry(stream, found, self._pace_s(asked))
        finally:
            self._table.ended(peer, asked.peer)
            stream.abort()
            found.abort()

    def _pace_s(self, asked: ConnectTo) -> float:
        """Return how much time is between two pieces of what is carried; 0: they go as they come.

        What hidden peers say is in no rhythm.
        """
        del asked
        return 0.0

    async def _hear(self, stream: Stream, connection: Connection) -> tuple[End, ConnectTo] | None:
        """Answer one request; return the way to the other peer if it was for a circuit.

        That circuit is counted then, and must be given back.
        """
        stream.keep_window()
        try:
            with trio.fail_after(ASK_S_MAX):
                asked = messages.read_hop_request(await read_delimited(stream, MESSAGE_BYTES_MAX))
        except messages.MalformedMessage as error:
            log.info("peer %s asks for what is no circuit: %s", connection.peer_id, error)
            stream.send_now(messages.hop_answer(CircuitStatus.MALFORMED_MESSAGE))
            return None
        except (MuxedStreamReset, trio.TooSlowError):
            stream.abort()
            return None
        if connection.relay is not None or not self.is_on():
            stream.send_now(messages.hop_answer(CircuitStatus.PERMISSION_DENIED))
        elif isinstance(asked, messages.Reserve):
            stream.send_now(self._reserve(connection))
        else:
            status, found = await self._connect(connection, asked.peer)
            stream.send_now(messages.hop_answer(status))
            return (found, asked) if found else None
        return None

    def _reserve(self, connection: Connection) -> bytes:
        """Give a reservation, and return the answer."""
        peer, now = connection.peer_id, trio.current_time()
        remote = connection.get_remote_address()
        if connection.is_closed:
            return messages.hop_answer(messages.CircuitStatus.RESERVATION_REFUSED)
        is_new = self._table.find(peer, now) is not connection
        if not self._table.reserve(peer, connection, site_of(remote[0] if remote else "?"), now):
            self._refused += 1
            return messages.hop_answer(CircuitStatus.RESERVATION_REFUSED)
        if is_new:
            connection.call_at_end(partial(self._table.drop, peer, connection))
            log.info("peer %s can be called through this one", peer)
        expires = int(self._unix_s() + self._table.limits.reservation_s)
        return messages.reserved(expires, self._addresses()[: messages.ADDRESSES_MAX])

    def _held_by(self, peer: ID) -> Connection | None:
        """Return the connection to a peer that can be called through this one."""
        connection = self._table.find(peer, trio.current_time()) if self.is_on() else None
        return None if connection is None or connection.is_closed else connection

    async def _connect(self, asking: Connection, target: ID) -> tuple[CircuitStatus, End | None]:
        """Bring a caller to a hidden peer; return its stream if it takes the call."""
        caller = asking.peer_id
        connection = self._table.find(target, trio.current_time())
        if connection is None or connection.is_closed:
            return CircuitStatus.NO_RESERVATION, None
        if not self._table.connect(caller, target, trio.current_time()):
            self._refused += 1
            return CircuitStatus.RESOURCE_LIMIT_EXCEEDED, None
        found: Stream | None = None
        is_open = False
        try:
            with trio.fail_after(STOP_S_MAX):
                found = await open_stream(
                    connection,
                    PeerId(str(target)),
                    STOP,
                    watched=False,
                    first=messages.stop_request(caller),
                )
                found.keep_window()
                body = await read_delimited(found, MESSAGE_BYTES_MAX)
            is_open = messages.read_stop_answer(body).status == CircuitStatus.OK
        except (PeerError, MuxedStreamReset, messages.MalformedMessage, trio.TooSlowError) as error:
            log.info("peer %s takes no call: %s", target, error)
        finally:
            if not is_open:
                self._table.ended(caller, target)
                if found:
                    found.abort()
        return (CircuitStatus.OK, found) if is_open else (CircuitStatus.CONNECTION_FAILED, None)

    async def _carry(self, one: End, other: End, pace_s: float) -> None:
        """Pass on bytes both ways, until both ends are done or one of them is gone."""
        limits = self._table.limits
        with trio.move_on_after(IDLE_S_MAX) as patience:
            async with trio.open_nursery() as nursery:
                for source, target in ((one, other), (other, one)):
                    rate = Bucket(limits.circuit_bytes_per_s, limits.burst_bytes / 4)
                    beats = Beats(pace_s) if pace_s else None
                    nursery.start_soon(self._pump, source, target, rate, patience, beats)

    async def _pump(
        self,
        source: End,
        target: End,
        rate: Bucket,
        patience: trio.CancelScope,
        beats: Beats | None,
    ) -> None:
        """Pass on bytes one way; what the target does not take stays unread at the source."""
        while True:
            await source.wait_buffered(1)
            if not source.buffer:
                break
            if beats:
                await trio.sleep(beats.wait_s(trio.current_time(), len(source.buffer)))
            await target.wait_room(or_end=False)
            if not target.room():
                break  # it is gone
            allowed = await self._allowed(rate, min(len(source.buffer), PIECE_BYTES))
            size = min(allowed, target.room(), len(source.buffer))
            if not size:
                continue  # one of the two has gone meanwhile, or is behind
            target.send_now(source.take(size))
            rate.spend(size)
            self._total.spend(size)
            self._bytes += size
            is_half = source.finished or target.ended
            patience.deadline = trio.current_time() + (HALF_CLOSED_S_MAX if is_half else IDLE_S_MAX)
        if source.ended and not source.dead and not target.dead:
            patience.deadline = min(patience.deadline, trio.current_time() + HALF_CLOSED_S_MAX)
            await target.wait_room()  # what a socket has not taken yet goes before the end
            target.finish()
        else:
            patience.cancel()

    async def _allowed(self, rate: Bucket, wanted: int) -> int:
        """Wait until bytes may pass; return how many. Those who wait take turns."""
        least = min(wanted, TURN_BYTES)
        if pause_s := rate.wait_s(least, trio.current_time()):
            await trio.sleep(pause_s)
        if self._turn.locked() or self._total.wait_s(least, trio.current_time()):
            async with self._turn:
                if pause_s := self._total.wait_s(least, trio.current_time()):
                    await trio.sleep(pause_s)
                return least
        now = trio.current_time()
        return max(least, int(min(wanted, rate.level(now), self._total.level(now))))
