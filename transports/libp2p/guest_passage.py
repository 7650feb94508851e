"""How a guest reaches a hidden peer: a relay passes on a few bytes for it, and no connection.

The relays of a private network carry nobody who lacks its key, which a guest is to get first. So a
guest names the hidden peer where others name their handshake, and a stream of that peer's takes the
place of the relay. The handshake under the token runs from end to end: the relay learns who is
called, and neither the token nor the key. To who names a peer that is not there, a relay is a host
that does not know the handshake.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import trio
from libp2p.abc import IHost, INetStream, IRawConnection, ISecureConn, ISecureTransport
from libp2p.custom_types import TProtocol
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.exceptions import HandshakeFailure
from libp2p.security.security_multistream import SecurityMultistream

from p2pinfer.core.ids import PeerId
from transports.libp2p.guest_doors import Find, add_doors
from transports.libp2p.muxer import Connection
from transports.libp2p.negotiation import open_stream
from transports.libp2p.noise_records import StreamPipe
from transports.libp2p.private_noise import PRIVATE_NOISE_ID
from transports.libp2p.relay_limits import Bucket
from transports.libp2p.stream import Stream

log: Final = logging.getLogger("p2pinfer.relay")

PASSAGE: Final = "/p2pinfer/noise-guest-through/1/"
"""Said to a relay, before the hidden peer's id."""

GUEST: Final = TProtocol("/p2pinfer/guest/1")
"""The stream on which a relay brings a guest."""

PASSAGE_BYTES_MAX: Final = 8192
"""Each way: a handshake, and a key, are some 600."""

PASSAGE_S_MAX: Final = 8.0
"""For all of it, over links of half a second."""

PASSAGES_MAX: Final = 8
"""At once, at a relay and at a hidden peer: guests are few, and strangers may knock."""

PASSAGES_PER_S: Final = 0.5
PASSAGES_BURST: Final = 20
"""What strangers may make a relay ask of its hidden peers."""


def let_guests_through(host: IHost, hidden: Callable[[ID], Connection | None]) -> None:
    """Let a relay of a private network pass guests on to the peers that it is held by.

    ``hidden`` returns the connection to a peer with a reservation.
    """
    swarm: Any = host.get_network()
    security = swarm.upgrader.security_multistream
    if PRIVATE_NOISE_ID not in security.transports:
        return  # anybody may call through the relay, or founders invite
    rate, taken = Bucket(PASSAGES_PER_S, PASSAGES_BURST), trio.CapacityLimiter(PASSAGES_MAX)

    def passage(name: str) -> ISecureTransport | None:
        if not name.startswith(PASSAGE):
            return None
        with suppress(ValueError):
            peer = ID.from_string(name.removeprefix(PASSAGE))
            connection = hidden(peer)
            if connection and taken.available_tokens and rate.level(trio.current_time()) >= 1:
                return _Passage(connection, rate, taken)
        return None

    add_doors(security, passage)


class _Passage(ISecureTransport):
    """What stands at a relay in the place of a handshake."""

    def __init__(self, hidden: Connection, rate: Bucket, taken: trio.CapacityLimiter) -> None:
        self._hidden, self._rate, self._taken = hidden, rate, taken

    async def secure_inbound(self, conn: IRawConnection) -> ISecureConn:
        """Pass on what a guest and the hidden peer say; raises, since no connection follows."""
        self._rate.spend(1)
        peer = PeerId(str(self._hidden.peer_id))
        with trio.move_on_after(PASSAGE_S_MAX):
            async with self._taken:
                stream = await open_stream(self._hidden, peer, GUEST, watched=False)
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_pass_on, conn, stream, nursery.cancel_scope)
                        nursery.start_soon(_pass_on, stream, conn, nursery.cancel_scope)
                finally:
                    stream.abort()
        raise HandshakeFailure("a guest was passed on, and is gone")

    async def secure_outbound(self, conn: IRawConnection, peer_id: ID) -> ISecureConn:  # noqa: ARG002
        """Raise: a relay calls nobody so."""
        raise HandshakeFailure("a passage is for those who call")


async def _pass_on(source: Any, target: Any, both: trio.CancelScope) -> None:
    """Pass on bytes one way, until either end is gone or has said too much."""
    left = PASSAGE_BYTES_MAX
    with suppress(Exception):  # an end that hangs up, in whatever way, ends the passage alone
        while left and (data := await source.read(left)):
            await target.write(data)
            left -= len(data)
    both.cancel()


def take_guests(host: IHost, door: Find) -> None:
    """Answer guests that relays bring, as those that call themselves."""
    taken = trio.CapacityLimiter(PASSAGES_MAX)

    async def serve(inbound: INetStream) -> None:
        given: Any = inbound
        stream, relay = given.muxed_stream, given.muxed_conn
        if not isinstance(stream, Stream) or not taken.available_tokens:
            await inbound.reset()
            return
        doors = SecurityMultistream({})
        add_doors(doors, door)
        pipe = StreamPipe(stream, PeerId(str(relay.peer_id)), PeerId("a guest"))
        try:
            async with taken:
                with trio.fail_after(PASSAGE_S_MAX):
                    await doors.secure_inbound(RawConnection(pipe, initiator=False))
        except Exception as error:  # noqa: BLE001 -- a guest's handshake ends only itself
            log.debug("a guest through %s: %r", relay.peer_id, error)
        finally:
            stream.abort()

    host.set_stream_handler(GUEST, serve)


class ThroughRelay(ISecureTransport):
    """A guest's side: after it the connection leads to the hidden peer, and says nothing yet."""

    async def secure_outbound(self, conn: IRawConnection, peer_id: ID) -> Any:  # noqa: ARG002
        """Return the connection as it is."""
        return conn

    async def secure_inbound(self, conn: IRawConnection) -> ISecureConn:  # noqa: ARG002
        """Raise: nobody calls a guest."""
        raise HandshakeFailure("nobody calls a guest")
