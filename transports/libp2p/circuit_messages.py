"""What relays, hidden peers and callers say to each other before a circuit carries bytes.

Circuit relay v2: https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md
Each message is protobuf with its length before it, a varint. No message of ours holds a ``limit``:
whoever sees one takes the circuit for one of a few kilobytes, and refuses most protocols on it. Our
relays limit rates instead, by reading no faster, which needs no message.
"""

from dataclasses import dataclass
from typing import Final, TypeVar

import trio
from google.protobuf.message import DecodeError
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import (
    HopMessage,
    PeerId,
    Reservation,
    Status,
    StopMessage,
)
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it ships no types

from transports.libp2p.negotiation import read_exactly
from transports.libp2p.stream import Stream

HOP: Final = "/libp2p/circuit/relay/0.2.0/hop"
"""Spoken by relays: to reserve, and to be connected."""

STOP: Final = "/libp2p/circuit/relay/0.2.0/stop"
"""Spoken by hidden peers: a relay brings a caller."""

MESSAGE_BYTES_MAX = 4096
"""As the specification and go-libp2p have it."""

PEER_ID_BYTES_MAX = 64
"""An Ed25519 key's id is 38 bytes, the hash of any other key's 34."""

ADDRESSES_MAX = 16
"""Of a relay that are looked at; each is at most a message long, and few are dialled."""

OK: Final = Status.OK
REFUSED: Final = Status.RESERVATION_REFUSED
BUSY: Final = Status.RESOURCE_LIMIT_EXCEEDED
DENIED: Final = Status.PERMISSION_DENIED
FAILED: Final = Status.CONNECTION_FAILED
NO_RESERVATION: Final = Status.NO_RESERVATION
MALFORMED: Final = Status.MALFORMED_MESSAGE


class MalformedMessage(Exception):
    """The remote sent what no correct peer sends."""


@dataclass(frozen=True)
class Reserve:
    """A hidden peer asks to be reachable through this relay."""


@dataclass(frozen=True)
class ConnectTo:
    """A caller asks to be connected with a hidden peer."""

    peer: ID


@dataclass(frozen=True)
class Answer:
    """What a relay, or a hidden peer, says to that."""

    status: int
    expires_unix_s: int = 0
    """When a reservation ends; 0 where there is none."""
    addresses: tuple[str, ...] = ()
    """At which the relay says to be reached."""


def read_hop_request(body: bytes) -> Reserve | ConnectTo:
    """Judge what came on a HOP stream at a relay; raises MalformedMessage."""
    said = _parse(HopMessage, body)
    if said.HasField("type") and said.type == HopMessage.RESERVE:
        return Reserve()
    if said.HasField("type") and said.type == HopMessage.CONNECT and said.HasField("peer"):
        return ConnectTo(_peer(said.peer.id))
    raise MalformedMessage("no request to a relay")


def read_hop_answer(body: bytes) -> Answer:
    """Judge what a relay answered; raises MalformedMessage."""
    said = _parse(HopMessage, body)
    if not said.HasField("type") or said.type != HopMessage.STATUS or not said.HasField("status"):
        raise MalformedMessage("no answer of a relay")
    addresses = []
    for raw in said.reservation.addrs[:ADDRESSES_MAX]:
        try:
            addresses.append(str(Multiaddr(raw)))
        except Exception:  # noqa: BLE001, PERF203, S112 - it has many, and an odd one harms nobody
            continue
    return Answer(said.status, said.reservation.expire, tuple(addresses))


def read_stop_request(body: bytes) -> ID:
    """Return the caller that a relay brings; raises MalformedMessage."""
    said = _parse(StopMessage, body)
    if not said.HasField("type") or said.type != StopMessage.CONNECT or not said.HasField("peer"):
        raise MalformedMessage("no call")
    return _peer(said.peer.id)


def read_stop_answer(body: bytes) -> Answer:
    """Judge what a hidden peer answered; raises MalformedMessage."""
    said = _parse(StopMessage, body)
    if not said.HasField("type") or said.type != StopMessage.STATUS or not said.HasField("status"):
        raise MalformedMessage("no answer to a call")
    return Answer(said.status)


def reserve_request() -> bytes:
    """Ask a relay for a reservation."""
    return _framed(HopMessage(type=HopMessage.RESERVE))


def connect_request(peer: ID) -> bytes:
    """Ask a relay for a circuit."""
    return _framed(HopMessage(type=HopMessage.CONNECT, peer=PeerId(id=peer.to_bytes())))


def reserved(expires_unix_s: int, addresses: list[str]) -> bytes:
    """Grant a reservation."""
    raw = [Multiaddr(address).to_bytes() for address in addresses]
    granted = Reservation(expire=expires_unix_s, addrs=raw)
    return _framed(HopMessage(type=HopMessage.STATUS, status=OK, reservation=granted))


def hop_answer(status: Status.ValueType) -> bytes:
    """Answer a request to a relay."""
    return _framed(HopMessage(type=HopMessage.STATUS, status=status))


def stop_request(caller: ID) -> bytes:
    """Bring a caller to a hidden peer."""
    return _framed(StopMessage(type=StopMessage.CONNECT, peer=PeerId(id=caller.to_bytes())))


def stop_answer(status: Status.ValueType) -> bytes:
    """Answer a call."""
    return _framed(StopMessage(type=StopMessage.STATUS, status=status))


async def read_message(stream: Stream) -> bytes:
    """Read one message, not a byte beyond it.

    Raises:
        MalformedMessage: it is too long.
        MuxedStreamReset: the stream ended.
    """
    size = 0
    for shift in (0, 7):
        (byte,) = await read_exactly(stream, 1)
        size |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    else:
        raise MalformedMessage("a message longer than any is")
    if size > MESSAGE_BYTES_MAX:
        raise MalformedMessage(f"a message of {size} bytes")
    return await read_exactly(stream, size)


def name_of(status: int) -> str:
    """Return a status in words."""
    names = {value: name for name, value in Status.items()}
    return str(names.get(status, f"status {status}")).lower().replace("_", " ")


async def end(stream: Stream, patience_s: float = 1.0) -> None:
    """Close a stream whose last word was said, once the other side has read it."""
    stream.finish()
    with trio.move_on_after(patience_s):
        await stream.wait_end()
    stream.abort()


def _framed(message: HopMessage | StopMessage) -> bytes:
    body = message.SerializeToString()
    assert len(body) <= MESSAGE_BYTES_MAX, "a message of ours"
    head = bytes([len(body)]) if len(body) < 0x80 else bytes([len(body) & 0x7F | 0x80, len(body) >> 7])
    return head + body


M = TypeVar("M", HopMessage, StopMessage)


def _parse(kind: type[M], body: bytes) -> M:
    message = kind()
    try:
        message.ParseFromString(body)
    except (DecodeError, ValueError) as error:
        raise MalformedMessage(str(error)) from error
    return message


def _peer(raw: bytes) -> ID:
    if not 2 < len(raw) <= PEER_ID_BYTES_MAX:
        raise MalformedMessage(f"a peer id of {len(raw)} bytes")
    return ID(raw)


