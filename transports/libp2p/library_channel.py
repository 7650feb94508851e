"""Channels on libp2p's own streams, for comparison with `transports.libp2p.channel`.

Not for use with strangers: a cancellation during a read or write can end the whole connection.
"""

from collections.abc import Callable
from typing import Any

import trio
from libp2p.abc import IHost, INetStream
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError

from p2pinfer.core.errors import ChannelClosed, PeerUnavailable, RemoteProtocolError
from p2pinfer.core.ids import PeerId
from transports.base import MESSAGE_BYTES_MAX, Channel, begun, receive_one_by_one
from transports.libp2p.channel import StreamChannel
from transports.libp2p.dialling import libp2p_id, root
from transports.libp2p.stream import Stream

LENGTH_BYTES = 4


class LibraryChannel:
    """A `transports.base.Channel` on any libp2p stream."""

    def __init__(self, stream: INetStream, remote: PeerId) -> None:
        self._stream = stream
        self._remote = remote
        self._lock = trio.Lock()

    @property
    def remote(self) -> PeerId:
        """The peer at the other end."""
        return self._remote

    def send_now(self, message: bytes) -> bool:  # noqa: ARG002 - none is ever taken
        """Send nothing: libp2p's own muxer always waits."""
        return False

    async def send(self, message: bytes) -> None:
        """Send one message."""
        if len(message) > MESSAGE_BYTES_MAX:
            raise ValueError(f"a message of {len(message)} bytes; the limit is {MESSAGE_BYTES_MAX}")
        async with self._lock:
            try:
                await self._stream.write(len(message).to_bytes(LENGTH_BYTES, "big") + message)
            except BaseLibp2pError as error:
                raise ChannelClosed(self._remote, "the stream ended") from error

    async def receive(self) -> bytes:
        """Return the next message."""
        size = int.from_bytes(await self._exactly(LENGTH_BYTES), "big")
        if size > MESSAGE_BYTES_MAX:
            raise RemoteProtocolError(self._remote, f"announced a message of {size} bytes")
        return await self._exactly(size)

    async def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                more = await self._stream.read(size - len(data))
            except BaseLibp2pError as error:
                raise ChannelClosed(self._remote, "the stream ended") from error
            if not more:
                raise ChannelClosed(self._remote, "the stream ended")
            data += more
        return bytes(data)

    async def receive_each(self, take: Callable[[bytes], bool]) -> None:
        """Receive them in turn; see the protocol."""
        await receive_one_by_one(self, take)

    async def close(self) -> None:
        """Send no more."""
        await self._stream.close()

    def abort(self) -> None:
        """Do nothing: libp2p's streams cannot be ended without waiting."""


async def open_library(host: IHost, peer: PeerId, name: TProtocol, first: bytes) -> Channel:
    """Open a channel on libp2p's own muxer; raises PeerUnavailable."""
    try:
        channel = LibraryChannel(await host.new_stream(libp2p_id(peer), [name]), peer)
    except Exception as error:
        raise PeerUnavailable(peer, f"cannot open {name}: {root(error)}") from error
    return await begun(channel, first)


def wrap(stream: Any) -> Channel:
    """Make a channel of an inbound stream, of either muxer, whose protocol is agreed."""
    muxed = stream.muxed_stream
    remote = PeerId(str(stream.muxed_conn.peer_id))
    if isinstance(muxed, Stream):
        return StreamChannel(muxed, remote)
    return LibraryChannel(stream, remote)
