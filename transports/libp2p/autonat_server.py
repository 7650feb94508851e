"""Dialling peers that ask for it, so that they learn whether others can: AutoNAT v2's server.

A stranger decides which address this machine dials. So it dials seldom, one public address a
request, from a port of its own (what comes from the port that the asker knows would pass its NAT),
and where the address is not the asker's own, only after the asker has sent more than the dial
costs its target.
"""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

import trio
from libp2p.abc import INetStream
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamError
from libp2p.transport.upgrader import TransportUpgrader

from p2pinfer.core.errors import PeerError, RemoteProtocolError
from p2pinfer.core.ids import PeerId
from transports.libp2p.autonat_messages import (
    DIAL_BACK,
    MESSAGE_BYTES_MAX,
    DialDataRequest,
    DialDataResponse,
    DialRequest,
    DialResponse,
    DialStatus,
    RequestStatus,
    decode,
    encode,
    encode_nonce,
    is_taken,
)
from transports.libp2p.dialling import REACHED
from transports.libp2p.host import log
from transports.libp2p.muxer import Connection
from transports.libp2p.negotiation import open_stream, read_delimited
from transports.libp2p.reach_inquiry import family_of, is_global
from transports.libp2p.stream import Stream

WINDOW_S = 60.0

DIALS_MAX = 60
"""In a window, for all peers together; go-libp2p has the same limits."""

DIALS_PER_PEER_MAX = 12
"""In a window, for one peer."""

DIALS_PER_HOST_MAX = 12
"""In a window, to one address, for all askers: identities cost nothing."""

AT_ONCE_MAX = 4
"""Requests under way for one peer: it asks about a few addresses at once."""

DATA_BYTES_MIN, DATA_BYTES_MAX = 30_000, 100_000
"""To be sent first if the address is not the asker's: a dial and a handshake are some 3 KB."""

REQUEST_S_MAX = 10.0
"""For the asker to send what it must."""

DIAL_S_MAX = 3.0
"""For the address to answer: a lost packet is sent again after one second."""

DIAL_BACK_S_MAX = 3.0
"""For the handshakes and the nonce: eight round trips."""

CLOSE_S_MAX = 1.0
"""For the socket to close."""


class DialRates:
    """How often this peer has dialled lately, for which peers and to which hosts."""

    def __init__(self) -> None:
        self._dials: deque[tuple[float, PeerId, str]] = deque()

    def take(self, now: float, peer: PeerId, host: str) -> bool:
        """Count a dial, if it is allowed."""
        while self._dials and self._dials[0][0] <= now - WINDOW_S:
            self._dials.popleft()
        of_peer = sum(each[1] == peer for each in self._dials)
        of_host = sum(each[2] == host for each in self._dials)
        if (
            len(self._dials) >= DIALS_MAX
            or of_peer >= DIALS_PER_PEER_MAX
            or of_host >= DIALS_PER_HOST_MAX
        ):
            return False
        self._dials.append((now, peer, host))
        return True


def choose(
    addresses: Sequence[str], families: Collection[str], own_hosts: Collection[str]
) -> tuple[int, str, int] | None:
    """Return the index, host and port of the first address that may be dialled.

    Args:
        addresses: as a stranger sent them; no names, which would be resolved here.
        families: that this machine has a way out by.
        own_hosts: this machine's addresses, which the asker has no business with.
    """
    for index, address in enumerate(addresses):
        found = REACHED.fullmatch(address)
        if not found or found[1] not in families:
            continue
        host, rest = found[2], found[3].split("/")
        if (
            rest[3:4] not in ([], ["p2p"])
            or len(rest) not in (3, 5)
            or not is_global(host)
            or host in own_hosts
        ):
            continue
        if family_of(host) == found[1] and 0 < int(rest[2]) < 1 << 16:
            return index, host, int(rest[2])
    return None


@dataclass
class AutonatServer:
    """Serves requests to dial.

    Args:
        upgrader: shakes hands under a key of its own, so that the dial replaces no connection.
        families: returns those that this machine has a way out by.
        own_hosts: returns this machine's addresses.
        chance: draws how many bytes to ask for.
    """

    upgrader: TransportUpgrader
    families: Callable[[], Collection[str]]
    own_hosts: Callable[[], Collection[str]]
    chance: Random
    rates: DialRates = field(default_factory=DialRates)
    _busy: dict[PeerId, int] = field(default_factory=dict)

    async def serve(self, stream: INetStream) -> None:
        """Answer one request."""
        muxed: Any = stream.muxed_conn
        inner: Any = getattr(stream, "muxed_stream", None)
        if not isinstance(inner, Stream) or not isinstance(muxed, Connection):
            return
        peer = PeerId(str(muxed.peer_id))
        busy = self._busy.get(peer, 0)
        self._busy[peer] = busy + 1
        try:
            answer = DialResponse(RequestStatus.REQUEST_REJECTED)
            if busy < AT_ONCE_MAX:
                with trio.fail_after(REQUEST_S_MAX + DIAL_S_MAX + DIAL_BACK_S_MAX):
                    answer = await self._answer(inner, muxed, peer)
            await inner.write(encode(answer))
        except (PeerError, ValueError, MuxedStreamError, trio.TooSlowError) as error:
            log.debug("peer %s asked for a dial, and then %r", peer, error)
            inner.abort()
        finally:
            self._busy[peer] -= 1
            if not self._busy[peer]:
                del self._busy[peer]

    async def _answer(self, stream: Stream, muxed: Connection, peer: PeerId) -> DialResponse:
        with trio.fail_after(REQUEST_S_MAX):
            request = decode(await read_delimited(stream, MESSAGE_BYTES_MAX))
        if not isinstance(request, DialRequest):
            raise RemoteProtocolError(peer, "it begins with something else than a request")
        found = choose(request.addresses, self.families(), self.own_hosts())
        if found is None:
            return DialResponse(RequestStatus.DIAL_REFUSED)
        index, host, port = found
        if not self.rates.take(trio.current_time(), peer, host):
            return DialResponse(RequestStatus.REQUEST_REJECTED)
        remote = muxed.get_remote_address()
        if remote is None or remote[0] != host:
            with trio.fail_after(REQUEST_S_MAX):
                await self._take_data(stream, peer, index)
        status = await self._dial(host, port, muxed.peer_id, request.nonce)
        return DialResponse(RequestStatus.OK, index, status)

    async def _take_data(self, stream: Stream, peer: PeerId, index: int) -> None:
        """Have the asker send more than the dial costs its target."""
        left = self.chance.randrange(DATA_BYTES_MIN, DATA_BYTES_MAX + 1)
        await stream.write(encode(DialDataRequest(index, left)))
        while left > 0:
            part = decode(await read_delimited(stream, MESSAGE_BYTES_MAX))
            if not isinstance(part, DialDataResponse) or not part.size:
                raise RemoteProtocolError(peer, "it sends something else than data")
            left -= part.size

    async def _dial(self, host: str, port: int, peer: ID, nonce: int) -> DialStatus:
        """Connect to an address, and hand over the nonce if this peer is there."""
        try:
            with trio.fail_after(DIAL_S_MAX):
                tcp = await trio.open_tcp_stream(host, port)
        except (OSError, trio.TooSlowError):
            return DialStatus.DIAL_ERROR
        return await self._hand_over(RawConnection(TrioTCPStream(tcp), True), peer, nonce)

    async def _hand_over(self, raw: RawConnection, peer: ID, nonce: int) -> DialStatus:
        status = DialStatus.DIAL_ERROR
        try:
            with trio.move_on_after(DIAL_BACK_S_MAX):
                secured = await self.upgrader.upgrade_security(raw, True, peer)
                await self.upgrader.muxer_multistream.select_transport(secured)
                status = DialStatus.DIAL_BACK_ERROR
                if await _say(Connection(secured, peer), nonce):
                    status = DialStatus.OK
        except Exception as error:  # noqa: BLE001 - a stranger provokes any
            log.debug("a dial back ended: %r", error)
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_S_MAX):
                await raw.close()
        return status


async def _say(connection: Connection, nonce: int) -> bool:
    """Hand over a nonce by a new connection, and end that; say whether it was taken."""
    taken = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.start)
        nursery.start_soon(refuse_streams, connection)
        try:
            stream = await open_stream(connection, PeerId(str(connection.peer_id)), DIAL_BACK)
            await stream.write(encode_nonce(nonce))
            taken = is_taken(await read_delimited(stream, MESSAGE_BYTES_MAX))
        except (PeerError, MuxedStreamError, ValueError) as error:
            log.debug("a nonce was not taken: %r", error)
        finally:
            connection.leave()
            nursery.cancel_scope.cancel()
    return taken


async def refuse_streams(connection: Connection) -> None:
    """Serve nothing on this connection."""
    with suppress(MuxedConnUnavailable):
        while True:
            await (await connection.accept_stream()).reset()


def ways_out(routed: Collection[str]) -> set[str]:
    """Return the families by which this machine reaches the Internet, by its own addresses."""
    found = {family_of(host) for host in routed if ":" not in host or is_global(host)}
    return found & {"ip4", "ip6"}
