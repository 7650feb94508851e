"""How two peers agree on what a stream carries, and messages that say their length first.

Both the name of the protocol and the greeting go out at once, so that opening a stream takes one
round trip: https://github.com/multiformats/multistream-select
"""

from typing import Final

import trio
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamReset

from p2pinfer.core.errors import ChannelClosed, PeerUnavailable
from p2pinfer.core.ids import PeerId
from transports.libp2p.muxer import Connection
from transports.libp2p.protobuf import delimited
from transports.libp2p.stream import Stream

OPEN_S_MAX = 10.0
"""For a connected peer to say whether it speaks a protocol."""

MULTISTREAM: Final = "/multistream/1.0.0"

LINE_BYTES_MAX = 1024
"""A line of the negotiation: a protocol's name; go-libp2p has the same limit."""

VARINT_BYTES_MAX = 4
"""Of a length: 256 MiB, which is more than any limit here."""


async def open_stream(muxed: Connection, peer: PeerId, name: str) -> Stream:
    """Open a stream and agree on its protocol; nothing is left behind if that is cancelled.

    Raises:
        PeerUnavailable: the peer does not speak it, or does not answer.
        ChannelClosed: the connection has ended, or the peer refused the stream.
    """
    try:
        stream = muxed.open_now()
    except MuxedConnUnavailable as error:
        kind = ChannelClosed if muxed.is_closed else PeerUnavailable
        raise kind(peer, f"cannot open a channel to {peer}: {error}") from error
    muxed.watch(stream)
    try:
        with trio.fail_after(OPEN_S_MAX):
            await stream.write(_line(MULTISTREAM) + _line(name))
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
