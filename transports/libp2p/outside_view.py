"""Where the Internet sees the port that a hidden peer listens on: its relays are asked.

A NAT gives each port of this machine one of its own, so only what comes from the listening port
shows which one leads to it. For that a relay is dialled once more, from there, under a key drawn
now: to the relay this is a stranger, and it tells each where he comes from (identify). The
connection stays while somebody may want to know, since the NAT may forget the port with it.
"""

import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import trio
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it ships no types

from p2pinfer.core.ids import PeerId
from transports.libp2p import protobuf
from transports.libp2p.autonat_server import refuse_streams
from transports.libp2p.host import log
from transports.libp2p.muxer import Connection
from transports.libp2p.negotiation import open_stream, read_delimited
from transports.libp2p.punching_rules import Place, place_of
from transports.libp2p.reach_inquiry import is_global

LOOK_S_MAX = 5.0
"""For a relay to answer; six round trips."""

KEPT_S = 30.0
"""For which the view is kept after it was last wanted: a relay has few connections to give."""

IDENTIFY_BYTES_MAX = 16 * 1024
"""As much as go-libp2p takes, twice."""

_OBSERVED: Final = 4
"""The field of identify's message."""

_NO_LINGER: Final = struct.pack("ii", 1, 0)
_LINGER: Final = struct.pack("ii", 0, 0)


@dataclass(frozen=True)
class View:
    """What a relay sees."""

    here: Place
    """This machine's address and port, to dial from."""
    outside: Place
    """Where that is seen."""


@dataclass
class _Look:
    """One relay that is asked."""

    view: View | None = None
    seen: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class OutsideView:
    """What relays see of one host.

    Args:
        upgrader: shakes hands under a key that nobody knows.
        here: returns where this machine listens; port 0 if it does not.
        touch: called with a host that is dialled from there.
    """

    def __init__(
        self,
        upgrader: TransportUpgrader,
        here: Callable[[], Place],
        touch: Callable[[str], object],
    ) -> None:
        self._upgrader, self._here, self._touch = upgrader, here, touch
        self._looks: dict[str, _Look] = {}

    async def look(
        self, relay: Connection, said: Iterable[str], nursery: trio.Nursery
    ) -> View | None:
        """Return what a relay sees, None if that cannot be found out; it is asked in a nursery.

        ``said`` are the multiaddrs that it says itself: it may be connected by IPv6.
        """
        remote = _by_ipv4(relay, said)
        if remote is None:
            return None
        host = remote[0]
        found = self._looks.get(host)
        if found is None:
            found = self._looks[host] = _Look()
            nursery.start_soon(self._keep, found, relay.peer_id, remote)
        found.scope.deadline = trio.current_time() + KEPT_S
        await found.seen.wait()
        return found.view

    async def _keep(self, look: _Look, relay: ID, remote: Place) -> None:
        """Ask a relay, and stay connected until the answer is no longer wanted."""
        try:
            with look.scope:
                await self._ask(look, relay, remote)
        except Exception as error:  # noqa: BLE001 - the other end of a handshake provokes any
            log.debug("relay %s does not say where it sees this peer: %r", relay, error)
        finally:
            look.seen.set()
            self._looks.pop(remote[0], None)

    async def _ask(self, look: _Look, relay: ID, remote: Place) -> None:
        with trio.fail_after(LOOK_S_MAX) as patience:
            self._touch(remote[0])
            tcp = await connect_from(self._here(), remote)
            here = tcp.socket.getsockname()
            raw = RawConnection(TrioTCPStream(tcp), True)
            try:
                secured = await self._upgrader.upgrade_security(raw, True, relay)
                await self._upgrader.muxer_multistream.select_transport(secured)
                connection = Connection(secured, relay)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(connection.start)
                    nursery.start_soon(refuse_streams, connection)
                    try:
                        outside = await _observed(connection)
                        look.view = View((here[0], here[1]), outside)
                        look.seen.set()
                        patience.deadline = float("inf")
                        await connection.event_closed.wait()
                    finally:
                        connection.leave()
                        nursery.cancel_scope.cancel()
            finally:
                with trio.CancelScope(shield=True), trio.move_on_after(1.0):
                    await raw.close()


def _by_ipv4(relay: Connection, said: Iterable[str]) -> Place | None:
    """Return where a relay that was dialled is reached in the Internet by IPv4."""
    remote = relay.get_remote_address()
    if remote is None or not relay.is_initiator or not is_global(remote[0]):
        return None
    told = (place for each in said if (place := place_of(each)))
    ways = (each for each in (remote, *told) if ":" not in each[0] and is_global(each[0]))
    return next(ways, None)


async def _observed(connection: Connection) -> Place:
    """Ask who is at the other end where it sees this one.

    Raises:
        ValueError: it does not say so.
    """
    peer = PeerId(str(connection.peer_id))
    stream = await open_stream(connection, peer, IDENTIFY, watched=False)
    try:
        fields = protobuf.parse(await read_delimited(stream, IDENTIFY_BYTES_MAX))
    finally:
        stream.abort()
    found = place_of(str(Multiaddr(protobuf.data_of(fields, _OBSERVED) or b"")))
    if found is None or ":" in found[0] or not is_global(found[0]):
        raise ValueError("it sees no IPv4 address of the Internet")
    return found


async def connect_from(here: Place, place: Place) -> trio.SocketStream:
    """Connect from a port that others of this process use as well.

    However the connection ends, the way from this port to that place is free again at once; call
    `end_gently` once what is sent matters.

    Raises:
        OSError: nobody takes it there, or this very connection exists already.
    """
    sock = trio.socket.socket(socket.AF_INET6 if ":" in place[0] else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        await sock.bind(here)
        await sock.connect(place)
        return trio.SocketStream(sock)
    except BaseException:
        sock.close()
        raise


def end_gently(sock: trio.socket.SocketType) -> None:
    """Have what was sent arrive also when the connection is closed here."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
