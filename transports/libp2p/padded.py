"""How two peers agree to fill up what they say to each other: see `padding`.

Who asks proposes a shape on a stream of its own; the other end takes it, and answers with a byte.
Peers of before do not know the protocol: what they are told, and say, stays as long as it is.
"""

from functools import partial
from typing import Any, Final

import trio
from libp2p.abc import IHost, INetStream
from libp2p.stream_muxer.exceptions import MuxedStreamReset

from p2pinfer.core.errors import PeerError
from p2pinfer.core.ids import PeerId
from transports.libp2p.host import log, protocol_id
from transports.libp2p.muxer import Connection
from transports.libp2p.negotiation import open_stream
from transports.libp2p.padding import SHAPE_BYTES, BadShape, CellShape, Padder
from transports.libp2p.path import Extension
from transports.libp2p.stream import Stream

PADDED: Final = "padded"
"""The protocol's name in a network."""

AGREE_S_MAX: Final = 5.0
"""For a connected peer to take a shape, or to send one."""

_AGREED: Final = b"\x01"


class Padding:
    """One host's part: it takes the shapes that callers propose, and proposes its own.

    Args:
        host: whose connections they are.
        network: of which swarm.
        via: the path that this host is on: what to propose to peers that it calls.
    """

    def __init__(self, host: IHost, network: str, via: Extension | None) -> None:
        self._shape = via.shape if via else None
        self._protocol = protocol_id(network, PADDED)
        host.set_stream_handler(self._protocol, _take)

    async def propose(self, muxed: object) -> None:
        """Agree with the other end of a new connection, where it knows how; never raises."""
        if self._shape is None or not isinstance(muxed, Connection) or muxed.padder:
            return
        peer = PeerId(str(muxed.peer_id))
        try:
            with trio.fail_after(AGREE_S_MAX):
                first = self._shape.encode()
                stream = await open_stream(muxed, peer, self._protocol, watched=False, first=first)
                await stream.wait_buffered(len(_AGREED))
                if stream.buffer[: len(_AGREED)] == _AGREED:
                    fill_up(muxed, self._shape)
                else:
                    log.info("%s does not take the shape proposed", peer)
                stream.abort()
        except (PeerError, trio.TooSlowError) as error:
            log.info("what is said to %s is not filled up: %s", peer, error)


def fill_up(connection: Connection, shape: CellShape) -> None:
    """Fill up all that is sent from now on; the remote drops what fills it."""
    connection.padder = Padder(shape)
    if shape.pace_ms:
        connection.start_soon(partial(_keep_time, connection, connection.padder))


async def _keep_time(connection: Connection, padder: Padder) -> None:
    """Send one cell at each beat, while data goes."""
    while True:
        with trio.move_on_after(padder.wait_s(trio.current_time())) as beat:
            await connection.beater.park()
        if beat.cancelled_caught:
            connection.beat(padder)


async def _take(inbound: INetStream) -> None:
    """Take the shape that a caller proposes, once for a connection."""
    muxed: Any = inbound
    stream, connection = muxed.muxed_stream, muxed.muxed_conn
    if not isinstance(stream, Stream) or not isinstance(connection, Connection):
        await inbound.reset()
        return
    try:
        with trio.fail_after(AGREE_S_MAX):
            await stream.wait_buffered(SHAPE_BYTES)
        shape = CellShape.decode(bytes(stream.buffer[:SHAPE_BYTES]))
        if connection.padder:
            raise BadShape("a second one")
        fill_up(connection, shape)
        await stream.write(_AGREED)
        stream.finish()
    except (BadShape, MuxedStreamReset, trio.TooSlowError) as error:
        log.info("peer %s proposes no shape: %s", connection.peer_id, error or "silent")
        stream.abort()
