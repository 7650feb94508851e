"""How two peers agree on what a stream carries, and messages that say their length first.

Both the name of the protocol and the greeting go out at once, so that opening a stream takes one
round trip: https://github.com/multiformats/multistream-select
"""

from collections.abc import Sequence
from typing import Final

import trio
from libp2p.abc import IMultiselectCommunicator, ISecureConn
from libp2p.custom_types import TProtocol
from libp2p.io.exceptions import IOException
from libp2p.protocol_muxer.exceptions import MultiselectCommunicatorError
from libp2p.protocol_muxer.multiselect_client import (
    DEFAULT_NEGOTIATE_TIMEOUT,
    MultiselectClient,
)
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamReset

from p2pinfer.core.errors import ChannelClosed, PeerUnavailable
from p2pinfer.core.ids import PeerId
from transports.libp2p.muxer import Connection
from transports.libp2p.noise_records import circuit_below
from transports.libp2p.protobuf import delimited
from transports.libp2p.stream import Stream

OPEN_S_MAX = 10.0
"""For a connected peer to say whether it speaks a protocol."""

MULTISTREAM: Final = "/multistream/1.0.0"

LINE_BYTES_MAX = 1024
"""A line of the negotiation: a protocol's name; go-libp2p has the same limit."""

VARINT_BYTES_MAX = 4
"""Of a length: 256 MiB, which is more than any limit here."""


async def open_stream(
    muxed: Connection, peer: PeerId, name: str, *, watched: bool = True, first: bytes = b""
) -> Stream:
    """Open a stream and agree on its protocol; nothing is left behind if that is cancelled.

    While it is ``watched`` a dead peer is noticed within 2 s. What is ``first`` goes out with the
    name, which saves a round trip.

    Raises:
        PeerUnavailable: the peer does not speak it, or does not answer.
        ChannelClosed: the connection has ended, or the peer refused the stream.
    """
    try:
        stream = muxed.open_now()
    except MuxedConnUnavailable as error:
        kind = ChannelClosed if muxed.is_closed else PeerUnavailable
        raise kind(peer, f"cannot open a channel to {peer}: {error}") from error
    if watched:
        muxed.watch(stream)
    try:
        with trio.fail_after(OPEN_S_MAX):
            await stream.write(_line(MULTISTREAM) + _line(name) + first)
            for expected in (MULTISTREAM, name):
                answer = await _read_line(stream)
                if answer != expected:
                    raise PeerUnavailable(
                        peer, f"{peer} does not speak {name}: is it of another network?"
                    )
    except trio.TooSlowError:
        stream.abort()
        raise PeerUnavailable(peer, f"{peer} did not answer within {OPEN_S_MAX:g} s") from None
    except MuxedStreamReset as error:
        stream.abort()
        raise ChannelClosed(peer, f"{peer} refused the channel: {muxed.fault or error}") from error
    except BaseException:
        stream.abort()
        raise
    return stream


async def _read_line(stream: Stream) -> str:
    """Read one line: its length (a varint), then the text and a newline."""
    line = await read_delimited(stream, LINE_BYTES_MAX)
    if not line:
        raise MuxedStreamReset("it does not negotiate")
    return line[:-1].decode("utf-8", "replace")


async def read_delimited(stream: Stream, bytes_max: int) -> bytes:
    """Read one message: its length (a varint), then its bytes.

    Raises:
        MuxedStreamReset: the stream ended, or the message is longer than allowed.
    """
    size = 0
    for shift in range(0, 7 * VARINT_BYTES_MAX, 7):
        byte = await _read_exactly(stream, 1)
        size |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            break
    else:
        raise MuxedStreamReset("a length that does not end")
    if size > bytes_max:
        raise MuxedStreamReset(f"a message of {size} bytes; the limit is {bytes_max}")
    return await _read_exactly(stream, size)


async def _read_exactly(stream: Stream, size: int) -> bytes:
    await stream.wait_buffered(size)
    if len(stream.buffer) < size:
        raise MuxedStreamReset("it ended the channel")
    return stream.take(size)


def _line(text: str) -> bytes:
    return delimited(text.encode() + b"\n")


class JoinedClient(MultiselectClient):
    """libp2p's negotiation with its first two lines in one message, which saves a round trip.

    Over a circuit another one is saved: the lines go out with the first bytes of the protocol.
    """

    async def select_one_of(
        self,
        protocols: Sequence[TProtocol],
        communicator: IMultiselectCommunicator,
        negotiate_timeout: int = DEFAULT_NEGOTIATE_TIMEOUT,
    ) -> TProtocol:
        """Agree on one of some protocols; raises MultiselectClientError."""
        if isinstance(communicator, MultiselectCommunicator):
            if pipe := circuit_below(communicator.read_writer):
                pipe.propose(_line(MULTISTREAM) + _line(protocols[0]))
                return protocols[0]
            communicator = _Joined(communicator, protocols[0])
        return await super().select_one_of(protocols, communicator, negotiate_timeout)


async def agree_on_muxer(conn: ISecureConn, name: str) -> bool:
    """Propose a muxer over a circuit, without waiting for the answer; False if it is none."""
    pipe = circuit_below(conn)
    if pipe is None or not conn.is_initiator:
        return False
    pipe.muxer_due = _line(MULTISTREAM) + _line(name)
    await conn.write(pipe.muxer_due)
    return True


class _Joined(MultiselectCommunicator):
    """Sends the name of the first protocol together with the greeting."""

    def __init__(self, plain: MultiselectCommunicator, first: str) -> None:
        super().__init__(plain.read_writer)
        self._joined = [MULTISTREAM, first]

    async def write(self, msg_str: str) -> None:
        """Send a line, unless it went out before."""
        if self._joined and msg_str == self._joined[0]:
            if msg_str == MULTISTREAM:
                try:
                    await self.read_writer.write(b"".join(map(_line, self._joined)))
                except IOException as error:
                    raise MultiselectCommunicatorError(str(error)) from error
            del self._joined[0]
            return
        await super().write(msg_str)
