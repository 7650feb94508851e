"""Asking other peers to dial this one: AutoNAT v2's client.

What a server says is not believed. An address counts only if the nonce comes back by a connection
that is new, was not made by this peer, and comes from outside; see `autonat_messages`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import trio
from libp2p.abc import INetStream
from libp2p.stream_muxer.exceptions import MuxedStreamError

from p2pinfer.core.errors import PeerError, RemoteProtocolError
from p2pinfer.core.ids import PeerId
from transports.libp2p.autonat_messages import (
    CHUNK_BYTES,
    DIAL_REQUEST,
    MESSAGE_BYTES_MAX,
    TAKEN,
    DialDataRequest,
    DialDataResponse,
    DialRequest,
    DialResponse,
    DialStatus,
    RequestStatus,
    decode,
    decode_nonce,
    encode,
)
from transports.libp2p.host import log
from transports.libp2p.muxer import Connection
from transports.libp2p.negotiation import open_stream, read_delimited
from transports.libp2p.reach_inquiry import DialOutcome, is_global
from transports.libp2p.stream import Stream

ASK_S_MAX = 12.0
"""For a server to answer: it may want 100 KB first, and dial for some seconds."""

DATA_BYTES_MAX = 100_000
"""Sent to a server that asks for data, as much as the specification lets it ask for."""

NONCE_S_MAX = 3.0
"""For a dial back to say its nonce."""


@dataclass
class _Ask:
    """A question under way."""

    older: frozenset[int]
    """The connections of that time, which prove nothing."""
    is_proved: bool = False


@dataclass
class DialBacks:
    """Nonces that other peers were given, and which of them came back.

    Args:
        connections: returns the live ones.
        draw: returns a new nonce of 64 bits that nobody can guess.
    """

    connections: Callable[[], list[Connection]]
    draw: Callable[[], int]
    _asks: dict[int, _Ask] = field(default_factory=dict)

    async def serve(self, stream: INetStream) -> None:
        """Take a nonce from a peer that has dialled."""
        inner: Any = getattr(stream, "muxed_stream", None)
        muxed: Any = stream.muxed_conn
        if not isinstance(inner, Stream) or not isinstance(muxed, Connection):
            return
        try:
            with trio.fail_after(NONCE_S_MAX):
                nonce = decode_nonce(await read_delimited(inner, MESSAGE_BYTES_MAX))
                if self._take(nonce, muxed):
                    await inner.write(TAKEN)
        except (ValueError, MuxedStreamError, trio.TooSlowError) as error:
            log.debug("a dial back brings no nonce: %r", error)
            inner.abort()

    def _take(self, nonce: int, muxed: Connection) -> bool:
        """Judge a nonce by the connection that brings it."""
        ask, remote = self._asks.get(nonce), muxed.get_remote_address()
        if ask is None or muxed.is_initiator or id(muxed) in ask.older:
            return False
        if remote is None or not is_global(remote[0]):
            return False
        ask.is_proved = True
        return True

    async def ask(self, server: Connection, address: str) -> DialOutcome:
        """Have a peer dial one address of ours; never raises for what it does."""
        nonce = self.draw()
        known = self.connections()  # held until the end, so that no other takes its id
        ask = self._asks[nonce] = _Ask(frozenset(map(id, known)))
        peer = PeerId(str(server.peer_id))
        try:
            with trio.fail_after(ASK_S_MAX):
                answer = await _ask(server, peer, address, nonce)
        except (PeerError, MuxedStreamError, ValueError, trio.TooSlowError) as error:
            log.debug("peer %s was asked to dial %s: %r", peer, address, error)
            answer = None
        finally:
            del self._asks[nonce], known
        log.debug("peer %s was asked to dial %s: %s, %s", peer, address, answer, ask.is_proved)
        if ask.is_proved:
            return DialOutcome.PROVED
        if (
            answer
            and answer.status is RequestStatus.OK
            and answer.dial_status is DialStatus.DIAL_ERROR
        ):
            return DialOutcome.FAILED
        return DialOutcome.NO_ANSWER


async def _ask(server: Connection, peer: PeerId, address: str, nonce: int) -> DialResponse:
    """Ask, and send data if the peer wants some.

    Raises:
        PeerUnavailable, ChannelClosed: it does not speak the protocol, or is gone.
        RemoteProtocolError, MuxedStreamError, ValueError: it broke the protocol.
    """
    stream = await open_stream(server, peer, DIAL_REQUEST)
    try:
        await stream.write(encode(DialRequest((address,), nonce)))
        answer = decode(await read_delimited(stream, MESSAGE_BYTES_MAX))
        if isinstance(answer, DialDataRequest):
            if answer.index or not 0 < answer.size <= DATA_BYTES_MAX:
                raise ValueError(f"it wants {answer.size} bytes for address {answer.index}")
            for start in range(0, answer.size, CHUNK_BYTES):
                part = DialDataResponse(min(CHUNK_BYTES, answer.size - start))
                await stream.write(encode(part))
            answer = decode(await read_delimited(stream, MESSAGE_BYTES_MAX))
        if not isinstance(answer, DialResponse):
            raise RemoteProtocolError(peer, "it answers with something else")
        return answer
    finally:
        stream.abort()
