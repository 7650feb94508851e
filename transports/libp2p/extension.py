"""Extending a path: a relay dials one of its swarm's peers for a caller who must not be seen there.

It is asked like a relay of hidden peers, by the same messages under another name, and carries bytes
that it cannot read. It goes on over a plain connection, so the peer that it dials needs to know
nothing of this, and sees an ordinary caller at the relay's address. It is no open proxy: a caller
names a peer and no address, that peer must be in the relay's own directory, and the relay goes only
where the peer has proved to it who it is.
"""

import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final

import trio
from libp2p.abc import IHost
from libp2p.peer.id import ID

from p2pinfer.core.errors import PeerError
from p2pinfer.core.ids import PeerId
from transports.interfaces import is_global
from transports.libp2p import circuit_messages as messages
from transports.libp2p.circuit_messages import CircuitStatus
from transports.libp2p.dialling import REACHED
from transports.libp2p.host import protocol_id
from transports.libp2p.muxer import Connection
from transports.libp2p.padding import PACE_MS_MAX, PACE_MS_MIN
from transports.libp2p.relay import PIECE_BYTES, End, Relay, log
from transports.libp2p.relay_limits import RelayLimits

EXTEND: Final = "extend"
"""The protocol's name in a network."""

EXTENSIONS_MAX = 256
"""Carried at once; each has a socket, and 128 KiB in this process."""

EXTENSIONS_PER_PEER_MAX = 64
"""Of one caller, and to one peer: a requester has one to each stage, auditor and gossip neighbour,
and all requesters of a relay meet at the same stages."""

OPENINGS_PER_MINUTE = 60.0
"""Of one caller beyond that: directories are compared with another peer every half a minute."""

REACH_S_MAX = 5.0
"""For the peer to prove who it is, and to take another connection."""

Place = tuple[str, int]
"""A host and a port."""


class Extender(Relay):
    """The relay of one host for paths.

    Args:
        host: whose streams it serves.
        network: of which swarm.
        relay: what else the host carries for others: both share its rate, and are on together.
        limits: of that relay.
        reach: returns a direct connection that this peer has made to another; raises PeerError.
        addresses_of: returns where a peer of the directory is; nothing if it is not there.
        own: returns where this peer itself is.
    """

    def __init__(
        self,
        host: IHost,
        network: str,
        relay: Relay,
        limits: RelayLimits,
        reach: Callable[[PeerId, Sequence[str]], Awaitable[Connection]],
        addresses_of: Callable[[PeerId], Sequence[str]],
        own: Callable[[], Sequence[str]],
    ) -> None:
        super().__init__(
            host,
            replace(
                limits,
                circuits_max=EXTENSIONS_MAX,
                circuits_per_peer_max=EXTENSIONS_PER_PEER_MAX,
                openings_per_minute=OPENINGS_PER_MINUTE,
            ),
            list,
            lambda: 0.0,
            relay.is_on,
            protocol_id(network, EXTEND),
        )
        self.share_rate(relay)
        self._me = host.get_id()
        self._reach, self._addresses_of, self._own = reach, addresses_of, own

    def _reserve(self, connection: Connection) -> bytes:
        """Say that this relay extends paths; who asks so wants nothing else."""
        del connection
        return messages.hop_answer(CircuitStatus.OK)

    def _pace_s(self, asked: messages.ConnectTo) -> float:
        """Return the caller's pace, so that what its line adds to the rhythm ends here."""
        return asked.pace_ms / 1000 if PACE_MS_MIN <= asked.pace_ms <= PACE_MS_MAX else 0.0

    async def _connect(self, asking: Connection, target: ID) -> tuple[CircuitStatus, End | None]:
        """Dial a peer for a caller; return the way to it."""
        caller = asking.peer_id
        addresses = self._own() if target == self._me else self._addresses_of(PeerId(str(target)))
        if not addresses:
            return CircuitStatus.NO_RESERVATION, None
        if not self._table.connect(caller, target, trio.current_time()):
            self._refused += 1
            return CircuitStatus.RESOURCE_LIMIT_EXCEEDED, None
        found: SocketEnd | None = None
        status = CircuitStatus.CONNECTION_FAILED
        try:
            with trio.fail_after(REACH_S_MAX):
                place = await self._place(target, addresses)
                if not is_global(place[0]) and _is_far(asking):
                    status = CircuitStatus.PERMISSION_DENIED  # it would look into a home's network
                else:
                    found = SocketEnd(await trio.open_tcp_stream(*place))
        except (PeerError, OSError, trio.TooSlowError) as error:
            log.info("no path is extended to peer %s: %s", target, error)
        finally:
            if found is None:
                self._table.ended(caller, target)
        return (CircuitStatus.OK, found) if found else (status, None)

    async def _place(self, target: ID, addresses: Sequence[str]) -> Place:
        """Return where a peer has just proved to be, or did before; raises PeerError."""
        if target == self._me:
            return next(filter(None, map(_place_in, addresses)))
        peer = PeerId(str(target))
        remote = (await self._reach(peer, addresses)).get_remote_address()
        if remote is None:
            raise PeerError(peer, "it is not known where it is")
        return remote


def _place_in(address: str) -> Place | None:
    found = REACHED.match(address)
    return (found[2], int(found[3].split("/")[2])) if found else None


def _is_far(asking: Connection) -> bool:
    remote = asking.get_remote_address()
    return remote is not None and is_global(remote[0])


class SocketEnd:
    """A TCP connection that a relay uses like one of our streams."""

    def __init__(self, tcp: trio.SocketStream) -> None:
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = socket.socket(fileno=tcp.socket.detach())
        self._socket.setblocking(False)
        self.buffer = bytearray()
        self.ended = self.dead = self.finished = False
        self._queue = bytearray()

    async def wait_buffered(self, size: int) -> None:
        """Wait until that many bytes are unread, or no more will come."""
        while len(self.buffer) < size and not (self.ended or self.dead):
            try:
                await trio.lowlevel.wait_readable(self._socket)
                data = self._socket.recv(PIECE_BYTES)
            except BlockingIOError:
                continue
            except (OSError, trio.ClosedResourceError):
                self.abort()
                return
            self.ended = not data
            self.buffer += data

    def take(self, size: int) -> bytes:
        """Remove and return unread bytes."""
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data

    def room(self) -> int:
        """How many bytes may be sent now: none while the socket lags behind."""
        return 0 if self.dead or self.finished or self._queue else PIECE_BYTES

    async def wait_room(self, *, or_end: bool = False) -> None:
        """Wait until bytes may be sent or never can."""
        while self._queue and not (self.dead or (or_end and self.ended)):
            try:
                await trio.lowlevel.wait_writable(self._socket)
            except (OSError, trio.ClosedResourceError):
                self.abort()
                return
            self._flush()

    def send_now(self, data: bytes) -> int:
        """Send; what the socket does not take is kept until it does."""
        self._queue += data
        self._flush()
        return len(data)

    def finish(self) -> None:
        """Send no more."""
        if not self.dead and not self.finished:
            self.finished = True
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError:
                self.abort()

    def abort(self) -> None:
        """Close the socket; tasks that wait for it are woken."""
        self.dead = True
        self.buffer.clear()
        self._queue.clear()
        if self._socket.fileno() != -1:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    def _flush(self) -> None:
        if self.dead:
            return
        try:
            sent = self._socket.send(self._queue)
        except BlockingIOError:
            return
        except OSError:
            self.abort()
            return
        del self._queue[:sent]
